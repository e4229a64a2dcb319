"""`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""

import argparse
from dataclasses import fields

from segpipe.cli.outcome import require_folder
from segpipe.errors import SegpipeError, problem
from segpipe.inference.api import Options, Predictor
from segpipe.inference.predict_cases import Written


def run(args: argparse.Namespace) -> None:
    """Predict all images; what cannot be predicted is named at the end."""
    if args.dtype and args.probabilities != "npz":
        found = f"--dtype {args.dtype} " + {"none": "alone", "nifti": "--probabilities nifti"}[args.probabilities]
        expected, cure = "--dtype with --probabilities npz; NIfTI has float32", "leave out --dtype"
        raise SegpipeError(problem("no such type", where="--dtype", found=found, expected=expected, cure=cure))
    options = {field.name: getattr(args, field.name) for field in fields(Options)}
    written = Written(args.probabilities, args.dtype or "float16", uncertainty=args.uncertainty)
    predictor = Predictor(args.model, **options)
    require_folder(args.out)
    predictor.files(args.images, args.out, written)
