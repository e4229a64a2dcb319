"""A cascade's second input: what the stage before segmented, made worse so that the network learns not to trust it.

Numbers of nnUNetTrainer.get_training_transforms: after everything else p 0.4 for morphology of single classes, p 0.2
for the loss of a component, each class with p 0.5. A ball of radius r holds the voxels up to r away; nnU-Net's, from
skimage with a broken radius, lies half a voxel off the centre.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

OPERATORS = ("dilate", "erode", "close", "open")
RADIUS = (1.0, 8.0)
FAR = np.uint8(127)  # further than any radius, squared; the square of one more step still fits
LARGEST_SHARE = 0.15  # of the patch; a larger component is never lost

Generator = np.random.Generator
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """What happens to the masks of one patch, in order.

    morphology : class, operator and radius in voxels
    losses : class, and which of its components is lost: a share of their number, from 0 to 1
    """

    morphology: list[tuple[int, str, float]]
    losses: list[tuple[int, float]]


def draw(rng: Generator, n_classes: int) -> Drawn:
    """Draw what happens to `n_classes` masks."""
    morphology = [
        (index, OPERATORS[rng.integers(len(OPERATORS))], rng.uniform(*RADIUS)) for index in _chosen(rng, n_classes, 0.4)
    ]
    return Drawn(morphology, [(index, rng.random()) for index in _chosen(rng, n_classes, 0.2)])


def _chosen(rng: Generator, n_classes: int, probability: float) -> list[int]:
    """In random order half of the classes, or none."""
    happens, order, chosen = rng.random() < probability, rng.permutation(n_classes), rng.random(n_classes) < 0.5
    return [int(index) for index in order[chosen]] if happens else []


def apply(masks: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Change the masks of the classes, (N, Z, Y, X) float32 of 0 and 1; they stay disjoint.

    Components are found on the CPU: of a device's masks this waits, in the thread that makes the batch.
    """
    if not drawn.morphology and not drawn.losses:
        return masks
    changed = masks.cpu().numpy() > 0
    for index, operator, radius in drawn.morphology:
        result = _operate(changed[index], operator, radius)
        changed[:, result & ~changed[index]] = False  # what a class gains the others lose
        changed[index] = result
    for index, share in drawn.losses:
        changed[index] &= ~_component(changed[index], share)
    return torch.from_numpy(changed.astype(np.float32)).to(masks.device)


def _operate(mask: Mask, operator: str, radius: float) -> Mask:
    if operator == "dilate":
        return _dilate(mask, radius)
    if operator == "erode":
        return ~_dilate(~mask, radius)
    if operator == "close":
        return ~_dilate(~_dilate(mask, radius), radius)
    return _dilate(~_dilate(~mask, radius), radius)


def _dilate(mask: Mask, radius: float) -> Mask:
    """Squared distances along one axis after the other, no further than the radius: exact, and 20 times as fast as
    a distance transform of the whole patch.
    """
    squared = np.where(mask, np.uint8(0), FAR)
    for axis in range(mask.ndim):
        before = np.moveaxis(squared.copy(), axis, 0)
        after = np.moveaxis(squared, axis, 0)
        for step in range(1, min(int(radius), len(after) - 1) + 1):
            square = np.uint8(step**2)
            np.minimum(after[step:], before[:-step] + square, out=after[step:])
            np.minimum(after[:-step], before[step:] + square, out=after[:-step])
    near: Mask = squared <= radius**2
    return near


def _component(mask: Mask, share: float) -> Mask:
    """One of the components that are not too large, or nothing."""
    components, _ = label(mask, generate_binary_structure(mask.ndim, mask.ndim))
    sizes = np.bincount(components.ravel())[1:]
    small = np.flatnonzero(sizes < LARGEST_SHARE * mask.size) + 1
    return components == small[int(share * len(small))] if len(small) else np.zeros_like(mask)
