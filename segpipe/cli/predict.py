"""`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""

import argparse
from dataclasses import fields

from segpipe.inference.api import Options, Predictor
from segpipe.inference.predict_cases import Written


def run(args: argparse.Namespace) -> None:
    """Predict all images; what cannot be predicted is named at the end."""
    options = {field.name: getattr(args, field.name) for field in fields(Options)}
    written = Written(args.probabilities, args.dtype, uncertainty=args.uncertainty)
    Predictor(args.model, **options).files(args.images, args.out, written)
