"""`segpipe ensemble FOLDER FOLDER ... -o OUT`."""

import argparse

from segpipe.cli.outcome import require_folder
from segpipe.inference.ensemble_folders import ensemble_folders


def run(args: argparse.Namespace) -> None:
    """Average the probabilities of all cases."""
    require_folder(args.out)
    ensemble_folders(args.folders, args.out, args.weights, args.probabilities)
