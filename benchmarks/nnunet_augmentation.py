"""nnU-Net's side of augmentation.py, run by an interpreter that has nnunetv2 2.8 installed.

Its own training transforms, without the ones of deep supervision, on tensors that lie in memory. What its data loader
does before, reading and padding a box of up to five times the voxels of a patch, is not timed.
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from augmentation_work import CROP, FULL, INTENSITY, MIRROR, SPATIAL, Ready, Sample, serve, volume

try:
    import SimpleITK  # noqa: F401
except ImportError:  # nnU-Net reads images with it; none are read here
    sys.modules["SimpleITK"] = ModuleType("SimpleITK")

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

PLACES = {name: place for place, name in enumerate(INTENSITY, 1)}  # in the list of transforms, after the spatial one


def transforms(patch: list[int]):
    """The initial patch size, and nnU-Net's list for it."""
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch), print_to_log_file=lambda *_: None
    )
    rotation, dummy, initial, mirror = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    return initial, nnUNetTrainer.get_training_transforms(patch, rotation, None, mirror, dummy)


def tune_blur(patch: list[int]) -> None:
    """Let nnU-Net's blur find out how it is fastest, which it does once per process, edge and kernel."""
    for sigma in (0.5, 0.6, 0.75, 0.9, 1.0):  # all numbers of taps between
        blur = one_of(transforms(patch)[1], "blur")
        blur.blur_sigma = (sigma, sigma)
        blur(image=torch.zeros(1, *patch))


def one_of(composed, transform: str):
    """One transform of the list, which happens for certain."""
    if transform in (CROP, SPATIAL):
        spatial = composed.transforms[0]
        spatial.p_rotation = spatial.p_scaling = float(transform == SPATIAL)
        return spatial
    if transform == MIRROR:
        return composed.transforms[1 + len(INTENSITY)]
    inner = composed.transforms[PLACES[transform]].transform
    inner.p_per_channel = 1.0
    return inner


def prepared(patch: list[int], n_labels: int, transform: str) -> tuple[tuple[int, ...], Ready]:
    """The box of a patch, and what makes its samples."""
    initial, composed = transforms(patch)
    run = composed if transform == FULL else one_of(composed, transform)
    box = {
        key: torch.from_numpy(array)[None]
        for key, array in zip(("image", "segmentation"), volume(initial, n_labels), strict=True)
    }
    crop = one_of(transforms(patch)[1], CROP)
    tune_blur(patch)

    def ready(number: int) -> Callable[[], Sample]:
        np.random.seed(number)
        torch.manual_seed(number)
        is_of_box = transform in (FULL, CROP, SPATIAL)
        given = {key: value.clone() for key, value in (box if is_of_box else crop(**box)).items()}

        def sample() -> Sample:
            found = run(**given)
            return found["image"], found["segmentation"]

        return sample

    return tuple(int(edge) for edge in initial), ready


if __name__ == "__main__":
    serve(prepared)
