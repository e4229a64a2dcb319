"""`segpipe export-nnunet-predictions PREDICTIONS --images IMAGES --model MODEL --out FOLDER`."""

import argparse

from segpipe.interop.nnunet_predictions import export_predictions


def run(args: argparse.Namespace) -> None:
    """Export all cases that have probabilities."""
    export_predictions(args.predictions, args.images, args.model, args.checkpoint, args.out)
