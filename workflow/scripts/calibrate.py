"""Calibrate the probabilities of the cross-validation."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Compare the saved softmax of all folds with the labels; write calibration.json."""
    from segpipe.data.cases import Cases
    from segpipe.inference import calibrate

    cases = Cases.read(Path(args.cases), params.dataset)
    calibrate.calibrate(cases, [Path(folder) for folder in args.validations], Path(args.out), params)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--validations+", "--out")
