"""`segpipe export-onnx MODEL --out FOLDER`."""

import argparse

from segpipe.interop.onnx import export_model


def run(args: argparse.Namespace) -> None:
    """Export what is asked for, with the first stage of a cascade."""
    export_model(args.model, args.out, args.checkpoint, args.weights, args.configurations, args.folds)
