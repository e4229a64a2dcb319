"""Measure the volumes of labels and predictions."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Write volumes.csv: voxels and volume of each class in each label and each prediction."""
    from segpipe.data.cases import Cases
    from segpipe.report import volumes

    cases = Cases.read(Path(args.cases), params.dataset)
    predicted = Path(args.predictions) if args.predictions else None
    volumes.write(cases, [Path(folder) for folder in args.validated], predicted, Path(args.out), params.runtime)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--validated+", "--predictions?", "--out")
