"""Failures that a training may meet, in words that say what to change."""

from pathlib import Path

import torch

from segpipe.errors import SegpipeError, problem
from segpipe.prepare.plan import Configuration


class TrainingFailed(SegpipeError):
    """A training that begins and cannot go on with its settings; with other ones it might."""


def out_of_memory(error: torch.OutOfMemoryError, planned: Configuration) -> TrainingFailed:
    """The device is too small for the plan."""
    return TrainingFailed(
        problem(
            "the device's memory is full",
            where=f"batches of {planned.batch_size} patches of {planned.patch_size} voxels",
            found=str(error).partition(". ")[0],
            expected="what plan.gpu_memory_gb of params.yaml says, free for this training",
            cure="free the device, feed from elsewhere (runtime.feeding: host), lower plan.gpu_memory_gb, or lower the "
            "batch size and raise train.accumulate",
        )
    )


def not_written(error: OSError, state: Path) -> SegpipeError:
    """A file of the training could not be read or written."""
    return SegpipeError(
        problem(
            "the training's files cannot be read or written",
            where=error.filename or state,
            found=error.strerror or error,
            expected="a disk with room and the right to write",
            cure="make room, then give the same command again: it continues after the last whole checkpoint",
        )
    )
