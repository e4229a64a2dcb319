"""The command `segpipe <verb>`: one module of this room per verb, imported only when its verb is run.

A verb has two functions:

    <verb>(parser)   in arguments.py: its arguments (argparse)
    run(args)        in its own module: what it does; SegpipeError for bad input

To add one: write both, and a line in VERBS.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

import segpipe
from segpipe import launched
from segpipe.cli import arguments
from segpipe.cli.outcome import exit_codes, start_log

# Verb to what `segpipe --help` says of it. Function and module of `import-msd` are called import_msd.
VERBS = {
    "init": "make a new experiment: a folder with settings of its own",
    "compare": "put the results of several experiments into one table",
    "check": "look for what is wrong with a dataset, and show its cases on a page",
    "plan": "show the plan of a dataset, and why it is as it is",
    "import-msd": "turn a Decathlon task, a folder or its .tar, into a dataset in nnU-Net's layout",
    "import-bids": "turn a BIDS dataset with label maps in a derivative into one in nnU-Net's layout",
    "predict": "segment a folder of images with trained models",
    "ensemble": "average the probabilities of several predictions, of segpipe or nnU-Net",
    "postprocess": "apply the rules of a postprocessing.json to a folder of segmentations",
    "evaluate": "score segmentations against references",
    "import-nnunet": "turn models that nnU-Net trained into one of segpipe",
    "export-nnunet": "write a model as folders that nnU-Net predicts with",
    "export-onnx": "write networks as ONNX, with a description of all that is done around them",
    "export-nnunet-predictions": "write probabilities as nnU-Net's own ensemble command reads them",
    "export-nnunet-preprocessed": "write the preprocessed cases as nnU-Net itself trains on them",
}


def main(given: Sequence[str] | None = None) -> None:
    """Run one verb. Exit codes: 0; 2 for bad input or a wrong call; 1 for an unexpected error, with a traceback."""
    launched.begin()
    words = [*(sys.argv[1:] if given is None else given)]
    args = _parser().parse_args(words, argparse.Namespace(words=words))
    start_log(None)
    with exit_codes():
        importlib.import_module(f"segpipe.cli.{args.module}").run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="segpipe", description=segpipe.__doc__)
    parser.add_argument("--version", action="version", version=f"segpipe {segpipe.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        module = name.replace("-", "_")
        getattr(arguments, module)(verb)
        verb.set_defaults(module=module)
    return parser


if __name__ == "__main__":
    main()
