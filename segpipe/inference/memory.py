"""How much main memory a case takes while it is predicted, told before it is."""

import contextlib
from collections.abc import Iterator
from math import prod

import torch

from segpipe import device, machine
from segpipe.data.image import Volume
from segpipe.errors import SegpipeError, problem
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Model, forward_bytes
from segpipe.inference.tiles import VOXELS_PER_FORWARD
from segpipe.params import Params
from segpipe.prepare.preprocess import case_target_mm
from segpipe.prepare.presets import PRESETS
from segpipe.prepare.spacing import resampled_shape
from segpipe.training import tiers

COPIES = 3  # of the image, of float32, that are there together while it is prepared
GB = 1e9


# The same of a MODEL, which does not say for which GPU it was planned: as of the default plan.
GPU_BYTES = int(GB * PRESETS["plain"].gb) // 2


def gpu_bytes(params: Params) -> int:
    """What a prediction keeps free of a GPU that it shares. It takes more where there is more.

    Half of the plan's: it needs no gradients, and no feature maps but those of the layer at work.
    """
    return tiers.planned_bytes(params) // 2


def needed_bytes(ensemble: Ensemble, volume: Volume, uncertainty: bool = False) -> int:
    """Main memory for one case, an estimate: image, preparation, logits within their bound, the widest forward pass.

    uncertainty : whether configurations are compared, of which sums are kept if there are several
    """
    sums = len(ensemble.labels.heads) + 1 if uncertainty and len(ensemble.counted) > 1 else 0
    on_file = prod(volume.shape) * (4 * len(volume.array) + 2 + 4 * sums)
    return on_file + max(_of_model(model, volume) for model in ensemble.models.values())


def _of_model(model: Model, volume: Volume) -> int:
    forward = model.content["plan"]["transpose_forward"]
    shape = [volume.shape[axis] for axis in forward]
    spacing_mm = tuple(volume.spacing_mm[axis] for axis in forward)
    voxels = prod(resampled_shape(shape, spacing_mm, case_target_mm(volume.spacing_mm, forward, model.planned)))
    prepared = COPIES * 4 * len(volume.array) * max(voxels, prod(volume.shape))
    if model.device.type != "cpu":
        return prepared
    at_once = max(1, VOXELS_PER_FORWARD["cpu"] // prod(model.planned.patch_size))
    logits = min(device.buffer_bytes(model.device), 4 * len(model.labels.heads) * voxels)
    return prepared + logits + at_once * forward_bytes(model)


class TooLarge(SegpipeError):
    """A case that the free memory does not hold."""


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error says that memory, of the host or of a device, was not enough."""
    is_of_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, TooLarge | MemoryError | torch.OutOfMemoryError) or is_of_torch


@contextlib.contextmanager
def told(where: object) -> Iterator[None]:
    """Raise SegpipeError where the memory does not hold what is done in the block."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SegpipeError) or not is_exhausted(error):
            raise
        raise exhausted(where, error) from error


def exhausted(where: object, error: BaseException) -> SegpipeError:
    """What to do about memory, of the host or of a device, that was not enough. where : what was predicted"""
    of_device = isinstance(error, torch.OutOfMemoryError)
    elsewhere = "predict on a GPU with more memory, or on the CPU (device cpu), which takes longer"
    return SegpipeError(
        problem(
            "the device's memory is full" if of_device else "the memory is full",
            where=where,
            found=str(error).partition(". ")[0] or type(error).__name__,
            expected="room for the networks, the image and a patch on its way through them",
            cure=f"free the GPU of other processes (nvidia-smi lists them), or {elsewhere}"
            if of_device
            else "predict on a machine with more memory, or end what else runs on this one",
        )
    )


def require(case: str, ensemble: Ensemble, volume: Volume, uncertainty: bool = False) -> None:
    """Raise TooLarge for a case that was read and will not fit: a job killed for its memory loses the others too."""
    needed, free = needed_bytes(ensemble, volume, uncertainty), machine.available_bytes()
    needed -= volume.array.nbytes
    if needed > free:
        raise TooLarge(
            problem(
                "a case larger than the memory",
                where=f"{case}: {volume.shape} voxels (Z, Y, X), {len(volume.array)} channels",
                found=f"{free / GB:.1f} GB free",
                expected=f"about {needed / GB:.1f} GB",
                cure="predict it on a machine with more memory, or crop it",
            )
        )


def fits_twice(ensemble: Ensemble, volume: Volume) -> bool:
    """Whether another case like this one may be read while this one is predicted."""
    return 2 * needed_bytes(ensemble, volume) < machine.available_bytes()
