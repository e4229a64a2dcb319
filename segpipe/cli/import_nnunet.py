"""`segpipe import-nnunet FOLDER|ZIP --out MODEL`."""

import argparse
from pathlib import Path

from segpipe.interop.nnunet_import import import_model


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "source", type=Path, help="nnU-Net's model folder (above fold_0), or a folder or zip of several"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL", help="new folder for the model")


def run(args: argparse.Namespace) -> None:
    """Import all folds and configurations that are there."""
    import_model(args.source, args.out)
