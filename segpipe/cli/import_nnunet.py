"""`segpipe import-nnunet FOLDER|ZIP --out MODEL`."""

import argparse

from segpipe.interop.nnunet_import import import_model


def run(args: argparse.Namespace) -> None:
    """Import all folds and configurations that are there."""
    import_model(args.source, args.out)
