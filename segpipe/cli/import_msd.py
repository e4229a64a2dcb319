"""`segpipe import-msd TASK`."""

import argparse

from segpipe.data import msd


def run(args: argparse.Namespace) -> None:
    """Convert the task; the dataset's folder appears when it is complete."""
    msd.convert(args.task, args.out)
