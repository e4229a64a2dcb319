"""`segpipe check DATASET`."""

import argparse

from segpipe.cli.settings import load_params
from segpipe.data import check, check_report
from segpipe.errors import problem, raise_all


def run(args: argparse.Namespace) -> None:
    """Check every file of the dataset; print the table and write the page, whatever is found.

    Raises SegpipeError with all problems.
    """
    params = load_params(args)
    report = check.inspect(args.dataset, params.check, params.splits.n_folds)
    page = args.out / check.PAGE
    print(check_report.table(report))
    try:
        check.write_page(report, page)
    except OSError as error:
        expected = "a folder that can be written to"
        unwritten = problem("no page", where=page, found=error, expected=expected, cure="name another one with --out")
        raise_all(f"{report.root} was checked", [unwritten, *report.problems])
    print(f"\npictures of all cases: {page}")
    check.raise_problems(report)
