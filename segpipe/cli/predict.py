"""`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""

import argparse
from pathlib import Path

from segpipe import device
from segpipe.cli.options import comma_separated
from segpipe.inference import models
from segpipe.inference.predict_cases import Chosen, predict_folder


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--model", type=Path, required=True, help="results/ of a pipeline, or an imported model")
    parser.add_argument("-i", "--images", type=Path, required=True, help="folder with CASE_0000.nii.gz ...")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations")
    parser.add_argument(
        "--configurations",
        type=comma_separated,
        help="2d,3d_fullres: probabilities averaged; default: all but first stages",
    )
    parser.add_argument("--folds", type=comma_separated, help="0,1: logits averaged; default: all")
    parser.add_argument("--checkpoint", choices=("final", "best"), default="final", help="default: final")
    parser.add_argument("--weights", choices=("raw", "averaged"), default="raw", help="averaged: those of train.ema")
    parser.add_argument("--probabilities", action="store_true", help="write CASE.npz with the probabilities as well")
    parser.add_argument("--no-mirroring", action="store_true", help="no mean over mirrored versions: faster")
    parser.add_argument(
        "--step-size", type=_share, default=0.5, help="of the sliding window, as a share of the patch; default: 0.5"
    )
    parser.add_argument("--device", default="auto", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps")


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("above 0, at most 1")
    return value


def run(args: argparse.Namespace) -> None:
    """Predict every image of the folder; what cannot be predicted is named at the end."""
    found = models.find(args.model, args.checkpoint, args.configurations, args.folds)
    wanted = args.configurations or models.counted(found)
    paths = [path for folds in found.values() for path in folds.values()]
    ensemble = models.load(paths, wanted, device.use(args.device), args.weights)
    predict_folder(ensemble, args.images, args.out, Chosen(args.step_size, not args.no_mirroring), args.probabilities)
