"""The command `segpipe <verb>`: one module of this room per verb, imported only when its verb is asked for.

A verb's module has two functions:

    add(parser)   its arguments (argparse), with a description
    run(args)     what it does; SegpipeError for bad input

To add one: write the module, and a line in VERBS.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import segpipe
from segpipe.cli.outcome import exit_codes, start_log

# Verb to what `segpipe --help` says of it. The module of `import-msd` is import_msd.py.
VERBS = {
    "check": "look for what is wrong with a dataset, and show its cases on a page",
    "plan": "show the plan of a dataset, and why it is as it is",
    "import-msd": "turn a Decathlon task, a folder or its .tar, into a dataset in nnU-Net's layout",
    "import-bids": "turn a BIDS dataset with label maps in a derivative into one in nnU-Net's layout",
    "predict": "segment a folder of images with trained models",
    "import-nnunet": "turn models that nnU-Net trained into one of segpipe",
    "export-nnunet": "write a model as folders that nnU-Net predicts with",
    "export-nnunet-predictions": "write probabilities as nnU-Net's own ensemble command reads them",
    "export-nnunet-preprocessed": "write the preprocessed cases as nnU-Net itself trains on them",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. Exit codes: 0; 2 for bad input or a wrong call; 1 for an unexpected error, with a traceback."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    start_log(None)
    with exit_codes():
        asked = next((argument for argument in given if argument in VERBS), None)
        module = importlib.import_module(f"segpipe.cli.{asked.replace('-', '_')}") if asked else None
        args = _parser(asked, module).parse_args(given)
        assert module is not None  # a verb is required
        module.run(args)


def _parser(asked: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    """All verbs by name; the arguments of the one that is asked for."""
    parser = argparse.ArgumentParser(prog="segpipe", description=segpipe.__doc__)
    parser.add_argument("--version", action="version", version=f"segpipe {segpipe.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, summary in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if module and name == asked:
            module.add(verb)
    return parser
