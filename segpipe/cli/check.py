"""`segpipe check DATASET`."""

import argparse
from pathlib import Path

from segpipe.cli.settings import add_params, load_params
from segpipe.data import check, check_report


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("dataset", type=Path, help="folder in nnU-Net raw layout, or a Decathlon task folder")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where check.html goes; default: here"
    )
    add_params(parser)


def run(args: argparse.Namespace) -> None:
    """Check every file of the dataset; print the table and write the page, whatever is found.

    Raises SegpipeError with all problems.
    """
    params = load_params(args)
    report = check.inspect(args.dataset, params.check, params.splits.n_folds)
    page = args.out / check.PAGE
    check.write_page(report, page)
    print(check_report.table(report))
    print(f"\npictures of all cases: {page}")
    check.raise_problems(report)
