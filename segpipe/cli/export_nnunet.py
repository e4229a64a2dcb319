"""`segpipe export-nnunet MODEL --out FOLDER`."""

import argparse
from pathlib import Path

from segpipe.cli.options import comma_separated
from segpipe.interop.nnunet_export import export_model


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="results/ of a pipeline, or an imported model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for nnU-Net's")
    parser.add_argument("--configurations", type=comma_separated, help="2d,3d_fullres; default: all")
    parser.add_argument("--folds", type=comma_separated, help="0,1; default: all")
    parser.add_argument("--checkpoint", choices=("final", "best"), default="final", help="default: final")
    parser.add_argument("--weights", choices=("raw", "averaged"), default="raw", help="averaged: those of train.ema")


def run(args: argparse.Namespace) -> None:
    """Export what is asked for, with the first stage of a cascade."""
    export_model(args.model, args.out, args.checkpoint, args.weights, args.configurations, args.folds)
