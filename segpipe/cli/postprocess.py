"""`segpipe postprocess FOLDER --rules postprocessing.json -o OUT`."""

import argparse

from segpipe.cli.outcome import require_folder
from segpipe.inference.postprocess_folder import postprocess_folder


def run(args: argparse.Namespace) -> None:
    """Apply the rules to all segmentations of the folder."""
    require_folder(args.out)
    postprocess_folder(args.folder, args.rules, args.out)
