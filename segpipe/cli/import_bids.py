"""`segpipe import-bids BIDS_ROOT --derivative NAME --suffix T1w --out DATASET`."""

import argparse

from segpipe.data import bids


def run(args: argparse.Namespace) -> None:
    """Convert the derivative; the dataset's folder appears when it is complete."""
    source = bids.Source(args.root, args.derivative, args.suffix, args.label_suffix, args.label_desc)
    bids.convert(source, args.out)
