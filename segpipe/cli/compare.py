"""`segpipe compare PATH ...`."""

import argparse
from logging import getLogger

from segpipe import digest
from segpipe.cli.outcome import require_file
from segpipe.cli.settings import load_params
from segpipe.experiments import compared, csv_file, tables

log = getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Print the tables, write the file that is asked for.

    Raises SegpipeError with everything that cannot be compared.
    """
    settings = load_params(args).evaluate
    if args.out is not None:
        require_file(args.out)
    results, left_out = compared.read(args.paths, args.only_finished)
    for said in left_out:
        log.info("left out: %s", said)
    comparison = compared.compare(results, args.reference, settings)
    print("\n\n".join(map(tables.text, tables.of(comparison))))
    if notes := tables.notes(comparison):
        print("\n  ".join([f"\n{tables.NOTES}", *notes]))
    if args.out is not None and args.out.suffix == ".csv":
        csv_file.write(args.out, comparison)
    elif args.out is not None:
        digest.write_text(args.out, tables.markdown(comparison))
