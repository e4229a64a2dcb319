"""Extract the dataset's fingerprint."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Extract spacings, shapes and intensity statistics of the training cases."""
    from segpipe.data.cases import Cases
    from segpipe.prepare import fingerprint

    fingerprint.extract(Cases.read(Path(args.cases), params.dataset), Path(args.out), params.runtime)


if __name__ == "__main__":
    scripts.run(main, "--cases", "--out")
