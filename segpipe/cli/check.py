"""`segpipe check DATASET`."""

import argparse
from pathlib import Path

from segpipe.cli.settings import add_params, load_params
from segpipe.data import check


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("dataset", type=Path, help="folder in nnU-Net raw layout, or a Decathlon task folder")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for check.html; default: the current one")
    add_params(parser)


def run(args: argparse.Namespace) -> None:
    """Check every file of the dataset and write the page, whatever is found."""
    params = load_params(args)
    check.check(args.dataset, args.out / "cases.json", params.check, params.splits.n_folds)
