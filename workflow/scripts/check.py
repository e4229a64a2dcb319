"""Check the raw dataset and list its cases."""

from argparse import Namespace
from pathlib import Path

from segpipe.cli import scripts
from segpipe.params import Params


def main(args: Namespace, params: Params) -> None:
    """Check every file of the raw dataset; write cases.json and check.html, or report all problems at once."""
    from segpipe.data import check

    check.check(Path(args.dataset), Path(args.out), params.check, params.splits.n_folds)


if __name__ == "__main__":
    scripts.run(main, "--dataset", "--out")
