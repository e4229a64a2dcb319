"""`segpipe export-nnunet-preprocessed --out nnUNet_preprocessed`."""

import argparse
from pathlib import Path

from segpipe.cli.options import comma_separated
from segpipe.cli.settings import add_params, load_params
from segpipe.interop.nnunet_preprocessed import export_preprocessed


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="nnU-Net's nnUNet_preprocessed; the dataset is new there",
    )
    parser.add_argument("--configurations", type=comma_separated, help="2d,3d_fullres; default: those of params.yaml")
    add_params(parser)


def run(args: argparse.Namespace) -> None:
    """Export what the pipeline prepared of the dataset of params.yaml."""
    params = load_params(args)
    folder = Path("data/preprocessed", params.dataset_name)
    export_preprocessed(folder, params, args.out, args.configurations)
