"""`segpipe import-bids BIDS_ROOT --derivative NAME --suffix T1w --out DATASET`."""

import argparse
from pathlib import Path

from segpipe.cli.options import comma_separated
from segpipe.data import bids


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("root", type=Path, metavar="BIDS_ROOT", help="folder with sub-*/ and derivatives/")
    parser.add_argument("--derivative", required=True, help="folder in derivatives/ with the label maps")
    parser.add_argument("--suffix", required=True, type=comma_separated, help="of the images, one per channel: T1w,T2w")
    parser.add_argument("--label-suffix", default="dseg", help="of the label maps: dseg (default), or mask")
    parser.add_argument("--label-desc", help="entity desc of the label maps, where there are several kinds")
    parser.add_argument("--out", type=Path, required=True, help="the dataset: data/raw/Dataset123_Name")


def run(args: argparse.Namespace) -> None:
    """Convert the derivative; the dataset's folder appears when it is complete."""
    source = bids.Source(args.root, args.derivative, args.suffix, args.label_suffix, args.label_desc)
    bids.convert(source, args.out)
