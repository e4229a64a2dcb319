"""Spline resampling with nnU-Net's results (nnunetv2/preprocessing/resampling/default_resampling.py).

A spline interpolation on a regular grid is linear and separable: along each axis it is one small matrix, here taken
from scipy itself by resampling the unit vectors. So boundary handling is scipy's, and the work is left to BLAS.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from segpipe.prepare.spacing import ANISOTROPY

Image = NDArray[np.float32]
Label = NDArray[np.int16]


def separate_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis that is resampled by nearest neighbour because it is much coarser than the others, if there is one.

    Where the old spacing is anisotropic it decides, else the new one; two equally coarse axes are no exception.
    """
    for edges in (np.asarray(spacing_mm), np.asarray(target_mm)):
        if edges.max() / edges.min() > ANISOTROPY:
            coarse = np.flatnonzero(edges == edges.max())
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


@functools.lru_cache(maxsize=256)
def spline_matrix(n_in: int, n_out: int, order: int) -> Image:
    """(n_out, n_in): interpolates along one axis with edge voxels repeated, as skimage.transform.resize does."""
    zooms = [n_out / n_in, 1.0]
    matrix = zoom(np.eye(n_in), zooms, order=order, mode="nearest", grid_mode=True)  # type: ignore[call-overload]
    return np.asarray(matrix, np.float32)


def nearest_index(n_in: int, n_out: int) -> NDArray[np.int_]:
    """For each output voxel the input voxel whose centre is nearest."""
    centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    return np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(int)


def resample_image(image: Image, shape: Sequence[int], separate: int | None, order: int = 3) -> Image:
    """Resample each channel; values stay within the channel's range (within the slice's, along a separate axis).

    image : (C, Z, Y, X) float32; shape : (Z, Y, X) of the result; separate : see `separate_axis`
    """
    if image.shape[1:] == tuple(shape):
        return image
    return np.stack([_resample(channel, shape, separate, order) for channel in image])


def _resample(channel: Image, shape: Sequence[int], separate: int | None, order: int) -> Image:
    result = channel
    for axis in range(3):
        if axis != separate and result.shape[axis] != shape[axis]:
            result = _along(spline_matrix(result.shape[axis], shape[axis], order), result, axis)
    within = tuple(axis for axis in range(3) if axis != separate)
    if order > 1:  # linear interpolation never leaves the range
        result = np.clip(result, channel.min(within, keepdims=True), channel.max(within, keepdims=True))
    return (
        result
        if separate is None
        else np.take(result, nearest_index(channel.shape[separate], shape[separate]), separate)
    )


def _along(matrix: Image, array: Image, axis: int) -> Image:
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)


def resample_label(label: Label, shape: Sequence[int], separate: int | None) -> Label:
    """Resample a label map: each label's mask is interpolated linearly, the highest wins, nearest breaks ties.

    label : (Z, Y, X) int16
    """
    if label.shape == tuple(shape):
        return label
    in_plane = [label.shape[axis] if axis == separate else shape[axis] for axis in range(3)]
    nearest = label
    for axis in range(3):
        nearest = np.take(nearest, nearest_index(label.shape[axis], in_plane[axis]), axis)
    winner, best = nearest.copy(), np.full(in_plane, -1, np.float32)
    for value in np.unique(label):
        score = _resample((label == value).astype(np.float32), in_plane, None, 1)
        better = (score > best + 1e-6) | ((score > best - 1e-6) & (nearest == value))
        winner[better] = value
        np.maximum(best, score, out=best)
    if separate is not None:
        winner = np.take(winner, nearest_index(label.shape[separate], shape[separate]), separate)
    return winner
