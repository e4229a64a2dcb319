"""`segpipe export-nnunet-preprocessed --out nnUNet_preprocessed`."""

import argparse
from pathlib import Path

from segpipe.cli.settings import load_params
from segpipe.interop.nnunet_preprocessed import export_preprocessed


def run(args: argparse.Namespace) -> None:
    """Export what the pipeline prepared of the dataset of params.yaml."""
    params = load_params(args)
    folder = Path("data/preprocessed", params.dataset_name)
    export_preprocessed(folder, params, args.out, args.configurations)
