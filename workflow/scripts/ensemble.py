"""Ensemble the configurations of one fold."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Average the saved softmax of the members; write segmentations and the fold's summary.json."""
    from segpipe.data.cases import Cases
    from segpipe.inference import ensemble

    cases = Cases.read(Path(args.cases), params.dataset)
    ensemble.ensemble(cases, [Path(folder) for folder in args.validations], Path(args.out), params)


if __name__ == "__main__":
    scripts.run(main, "--fold", "--cases", "--validations+", "--out")
