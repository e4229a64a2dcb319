"""From logits on the network's grid to softmax and segmentation on the file's grid; what is saved of them."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from segpipe.data.labels import Labels
from segpipe.prepare.preprocess import Grid
from segpipe.prepare.resample import resample_image

Probabilities = NDArray[np.floating]


def to_file_grid(logits: NDArray[np.float32], grid: Grid, labels: Labels) -> NDArray[np.float32]:
    """Probabilities on the grid of the case's file: resample the logits, softmax, undo crop and transposition.

    logits : (heads, Z, Y, X) on the preprocessed grid. Outside the crop everything is background. Logits are
    resampled linearly, nearest along a separate axis (nnunetv2/inference/export_prediction.py).
    """
    resampled = resample_image(logits, grid.cropped_shape, grid.separate, order=1)
    probabilities = np.zeros((len(logits), *grid.shape), np.float32)
    probabilities[: not labels.has_regions] = 1  # of plain classes the first is the background
    probabilities[:, *(slice(start, stop) for start, stop in grid.crop)] = (
        sigmoid(resampled) if labels.has_regions else softmax(resampled)
    )
    return np.ascontiguousarray(probabilities.transpose(0, *(axis + 1 for axis in grid.transpose_backward)))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the first axis."""
    powers = np.exp(logits - logits.max(0))
    result: NDArray[np.float32] = powers / powers.sum(0)
    return result


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each region on its own; exact for large negative and positive values."""
    result: NDArray[np.float32] = expit(logits)
    return result


def segmentation(probabilities: Probabilities, labels: Labels) -> NDArray[np.int16]:
    """The label map, (Z, Y, X): the most probable class, or the regions above one half painted in their order."""
    if labels.regions_order is None:
        return probabilities.argmax(0).astype(np.int16)
    painted = np.zeros(probabilities.shape[1:], np.int16)
    for probability, value in zip(probabilities, labels.regions_order, strict=True):
        painted[probability > 0.5] = value
    return painted
