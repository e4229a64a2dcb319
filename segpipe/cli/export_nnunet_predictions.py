"""`segpipe export-nnunet-predictions PREDICTIONS --images IMAGES --model MODEL --out FOLDER`."""

import argparse
from pathlib import Path

from segpipe.interop.nnunet_predictions import export_predictions


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "predictions", type=Path, metavar="PREDICTIONS", help="folder with CASE.npz, or a validation folder"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder with the images that were predicted")
    parser.add_argument("--model", type=Path, required=True, help="the model that predicted them")
    parser.add_argument("--checkpoint", choices=("final", "best"), default="final", help="default: final")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for nnUNetv2_ensemble")


def run(args: argparse.Namespace) -> None:
    """Export all cases that have probabilities."""
    export_predictions(args.predictions, args.images, args.model, args.checkpoint, args.out)
