"""`segpipe import-msd TASK`."""

import argparse
from pathlib import Path

from segpipe.data import msd


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("task", type=Path, help="folder TaskNN_Name of the Decathlon, or its .tar")
    parser.add_argument(
        "--out", type=Path, default=Path("data/raw"), help="where DatasetNNN_Name goes; default: data/raw"
    )


def run(args: argparse.Namespace) -> None:
    """Convert the task; the dataset's folder appears when it is complete."""
    msd.convert(args.task, args.out)
