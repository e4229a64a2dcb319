"""`segpipe predict --model MODEL -i IMAGES -o FOLDER`."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch

from segpipe import device, digest, launched
from segpipe.cli import launch
from segpipe.cli.outcome import require_folder
from segpipe.errors import SegpipeError, problem
from segpipe.inference import memory
from segpipe.inference.api import Options, Predictor
from segpipe.inference.predict_cases import Written, lock
from segpipe.ranks import joined


def run(args: argparse.Namespace) -> None:
    """Predict all images; what cannot be predicted is named at the end."""
    if args.dtype and args.probabilities != "npz":
        found = f"--dtype {args.dtype} " + {"none": "alone", "nifti": "--probabilities nifti"}[args.probabilities]
        expected, cure = "--dtype with --probabilities npz; NIfTI has float32", "leave out --dtype"
        raise SegpipeError(problem("no such type", where="--dtype", found=found, expected=expected, cure=cure))
    require_folder(args.out)
    if args.num_gpus > 1 and not launched.is_rank():
        return _in_ranks(args)
    options = {field.name: getattr(args, field.name) for field in fields(Options)}
    written = Written(args.probabilities, args.dtype or "float16", uncertainty=args.uncertainty)
    with _only_writer(args.out), joined() as ranks:
        Predictor(args.model, start=_start, **options).files(args.images, args.out, written, ranks)


def _start(name: str) -> torch.device:
    """The device, as a rule of the workflow gets its own: leased, and the threads that this process may have."""
    return device.begin(name, None, memory.GPU_BYTES, "--device")


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of what is written before a GPU is asked for, as a launcher does for its ranks: its holder may wait
    for the GPU of those who wait for its lock. Of a wrong call no folder is left.
    """
    if launched.is_rank():
        yield
        return
    is_new = not out.exists()
    with digest.locked(lock(out), "a prediction that begins") as held, launched.keeping(held):
        try:
            yield
        except SegpipeError:
            if is_new:
                _remove_if_empty(out)
            raise


def _in_ranks(args: argparse.Namespace) -> None:
    """The same call in several processes."""
    again = ["-P", "-m", "segpipe.cli.main", *args.words]
    is_new = not args.out.exists()
    try:
        launch.ranks(again, args.num_gpus, args.device, lock(args.out), named=("--num-gpus", "--device"))
    except SystemExit as end:
        if is_new and end.code == launch.BAD_INPUT:
            _remove_if_empty(args.out)
        raise


def _remove_if_empty(out: Path) -> None:
    """Of a wrong call no folder is left. Who waits for the lock meanwhile makes it anew (`launched.holds`)."""
    own = lock(out)
    if {*out.rglob("*")} == {own, own.parent}:
        own.unlink()
        for folder in (own.parent, out):
            with contextlib.suppress(OSError):
                folder.rmdir()
