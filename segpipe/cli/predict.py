"""`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""

import argparse

from segpipe import device
from segpipe.inference import models
from segpipe.inference.predict_cases import Chosen, predict_folder


def run(args: argparse.Namespace) -> None:
    """Predict every image of the folder; what cannot be predicted is named at the end."""
    found = models.find(args.model, args.checkpoint, args.configurations, args.folds)
    wanted = args.configurations or models.counted(found)
    paths = [path for folds in found.values() for path in folds.values()]
    ensemble = models.load(paths, wanted, device.use(args.device), args.weights)
    predict_folder(ensemble, args.images, args.out, Chosen(args.step_size, not args.no_mirroring), args.probabilities)
