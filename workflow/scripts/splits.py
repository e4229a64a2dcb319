"""Split the cases into folds."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Draw the folds of the cross-validation."""
    from segpipe.data import splits
    from segpipe.data.cases import Cases

    splits.write(Cases.read(Path(args.cases), params.dataset), params.splits, Path(args.out))


if __name__ == "__main__":
    scripts.run(main, "--cases", "--out")
