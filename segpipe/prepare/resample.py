"""Spline resampling with nnU-Net's results (nnunetv2/preprocessing/resampling/default_resampling.py).

A spline interpolation on a regular grid is linear and separable: along each axis it is one small matrix, here taken
from scipy itself by resampling the unit vectors. So boundary handling is scipy's, and the work is left to BLAS.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.prepare.spacing import ANISOTROPY

IMAGE_BLOCK = 64  # voxels along an axis, computed at a time
LABEL_BLOCK = 32
NEGLIGIBLE = 1e-8  # weight of a voxel: below single precision
TIE = 1e-6  # shares that differ by less are equal

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
    from scipy.ndimage import zoom  # noqa: PLC0415  # a tenth of a second that only other spacings need

    zooms = [n_out / n_in, 1.0]
    matrix = zoom(np.eye(n_in), zooms, order=order, mode="nearest", grid_mode=True)  # type: ignore[call-overload]
    return np.asarray(matrix, np.float32)


def nearest_index(n_in: int, n_out: int) -> NDArray[np.int_]:
    """For each output voxel the input voxel whose centre is nearest."""
    centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    return np.clip(np.floor(centres + 0.5), 0, n_in - 1).astype(int)


@dataclass(frozen=True)
class Block:
    """Some output places along one axis, the input places that they are made of, and how; None: as they are."""

    out: slice
    made_of: slice
    matrix: Image | None


@functools.lru_cache(maxsize=256)
def _blocks(n_in: int, n_out: int, order: int, size: int) -> tuple[Block, ...]:
    """The axis in blocks of `size` outputs. Far from the diagonal a spline's matrix is zero."""
    rows = [slice(start, min(start + size, n_out)) for start in range(0, n_out, size)]
    if n_in == n_out:
        return tuple(Block(row, row, None) for row in rows)
    matrix = spline_matrix(n_in, n_out, order)
    used = [np.flatnonzero(np.abs(matrix[row]).max(axis=0) > NEGLIGIBLE) for row in rows]
    columns = [slice(int(places[0]), int(places[-1]) + 1) for places in used]
    pairs = zip(rows, columns, strict=True)
    return tuple(Block(row, column, np.ascontiguousarray(matrix[row, column])) for row, column in pairs)


def _apply(matrix: Image, array: Image, axis: int, out: Image | None = None) -> Image:
    """Multiply along one axis of (Z, Y, X); no transposed copies."""
    if axis == 0:
        flat = None if out is None else out.reshape(len(matrix), -1)
        product = np.matmul(matrix, array.reshape(len(array), -1), out=flat)
        return product.reshape(len(matrix), *array.shape[1:])
    return np.matmul(matrix, array, out=out) if axis == 1 else np.matmul(array, matrix.T, out=out)


def _along(array: Image, axis: int, n_out: int, order: int) -> Image:
    """Resample one axis of (Z, Y, X)."""
    if array.shape[axis] == n_out:
        return array
    result = np.empty([n_out if at == axis else n for at, n in enumerate(array.shape)], np.float32)
    before = (slice(None),) * axis
    for block in _blocks(array.shape[axis], n_out, order, IMAGE_BLOCK):
        assert block.matrix is not None
        _apply(block.matrix, array[*before, block.made_of], axis, result[*before, block.out])
    return result


def resample_image(image: Image, shape: Sequence[int], separate: int | None, order: int = 3) -> Image:
    """Resample each channel; values stay within the channel's range (within the slice's, along a separate axis).

    image : (C, Z, Y, X) float32; shape : (Z, Y, X) of the result; separate : see `separate_axis`
    """
    if image.shape[1:] == tuple(shape):
        return image
    result = np.empty((len(image), *shape), np.float32)
    for channel, out in zip(image, result, strict=True):
        _resample(channel, out, separate, order)
    return result


def _resample(channel: Image, out: Image, separate: int | None, order: int) -> None:
    """Resample one channel into `out`, by blocks of the first axis so that what lies between stays small."""
    in_plane = _without(separate, channel.shape, out.shape)
    result = out if in_plane == out.shape else np.empty(in_plane, np.float32)
    within = tuple(axis for axis in range(3) if axis != separate)
    low, high = (np.broadcast_to(limit(within, keepdims=True), in_plane) for limit in (channel.min, channel.max))
    for block in _blocks(channel.shape[0], in_plane[0], order, IMAGE_BLOCK):
        planes = channel[block.made_of]
        if block.matrix is not None:
            planes = _apply(block.matrix, planes, 0)
        for axis in (1, 2):
            planes = _along(planes, axis, in_plane[axis], order)
        np.clip(planes, low[block.out], high[block.out], out=result[block.out])
    if separate is not None and result is not out:
        np.take(result, nearest_index(channel.shape[separate], out.shape[separate]), separate, out=out)


def _without(separate: int | None, old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """The new shape, but for the separate axis."""
    return tuple(old[axis] if axis == separate else new[axis] for axis in range(3))


def resample_label(label: Label, shape: Sequence[int], separate: int | None) -> Label:
    """Resample a label map: each label's mask is interpolated linearly, the highest wins, nearest breaks ties.

    label : (Z, Y, X) int16. Blocks with a single label, most of a volume, need no interpolation.
    """
    if label.shape == tuple(shape):
        return label
    in_plane = _without(separate, label.shape, shape)
    result = np.empty(in_plane, np.int16)
    nearest = [nearest_index(*sizes) for sizes in zip(label.shape, in_plane, strict=True)]
    axes = (_blocks(*sizes, 1, LABEL_BLOCK) for sizes in zip(label.shape, in_plane, strict=True))
    for blocks in itertools.product(*axes):
        part = label[tuple(block.made_of for block in blocks)]
        out = result[tuple(block.out for block in blocks)]
        if part.min() == part.max():
            out[:] = part.flat[0]
        else:
            places = (index[block.out] - block.made_of.start for index, block in zip(nearest, blocks, strict=True))
            out[:] = part[np.ix_(*places)]
            _vote(part, blocks, out)
    return (
        result if separate is None else np.take(result, nearest_index(label.shape[separate], shape[separate]), separate)
    )


def _vote(part: Label, blocks: Sequence[Block], winner: Label) -> None:
    """Give each voxel the label with the largest share; `winner` has the nearest, which breaks ties."""
    nearest, best = winner.copy(), np.full(winner.shape, -1, np.float32)
    for value in np.unique(part):
        share = (part == value).astype(np.float32)
        for axis, block in enumerate(blocks):
            share = share if block.matrix is None else _apply(block.matrix, share, axis)
        better = (share > best + TIE) | ((share > best - TIE) & (nearest == value))
        winner[better] = value
        np.maximum(best, share, out=best)
