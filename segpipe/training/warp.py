"""Rotation and scaling of patches: the image linearly, the maps by a vote of the voxels around (nnU-Net's rule).

A label wins with the largest sum of linear weights among the corners of its cell, which is what interpolating each
label's mask gives, at a cost that does not depend on the number of labels. On the host most voxels need no vote: a cell
with one label at all its corners has that label. Elsewhere every voxel votes, so that no shape depends on the data, and
the patches of several samples are one: there a patch costs what it takes to say what is to be done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.training.held import PADDING_LABEL, sent

FULL_SCORE = 1000  # of a label at all corners; nnU-Net compares the scores in float16, so that close ones are equal
CHUNK = 32768  # voxels at a time on the host: what is computed of them stays in the cache
AT_ONCE = 2**20  # voxels of patches at a time elsewhere, half a patch of 128^3; no patch is divided
SCORES = 2**20  # the most that are interpolated at a time, for each corner
MIXED = -(2**15)  # the bit that marks the code of a cell with more than one label; labels are -1 to 32766

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Boxed:
    """Voxels that a patch is sampled from.

    image : (C, Z, Y, X) float32; maps : (M, Z, Y, X) int16, PADDING_LABEL to 32766
    matrix, centre : (3, 3), (3,), in voxels of the image, how the patch is turned and scaled and where its middle lies;
        every voxel of it lies within a cell of the image
    """

    image: Tensor
    maps: Tensor
    matrix: Array
    centre: Array


def at_once(patch_size: Sequence[int], place: torch.device) -> int:
    """How many patches `warp` should be given at a time."""
    return 1 if place.type == "cpu" else max(1, AT_ONCE // prod(patch_size))


def warp(boxes: Sequence[Boxed], patch_size: tuple[int, ...], in_plane: bool) -> list[tuple[Tensor, Tensor]]:
    """Sample image and maps of a patch of each box.

    in_plane : the patches have the slices of the images
    """
    if not boxes:
        return []
    axes = slice(1, 3) if in_plane else slice(0, 3)
    flat = [_flat(one, patch_size[axes], axes) for one in boxes]
    sampled = map(_few_votes, flat) if boxes[0].image.device.type == "cpu" else _all_votes(flat)
    return [(image.view(-1, *patch_size), maps.view(-1, *patch_size)) for image, maps in sampled]


@dataclass(frozen=True)
class _Flat:
    """A box as lines of voxels.

    tables : (T, voxels) float32; labels : (L, voxels) int16; slices that stay slices are as good as channels
    rows, columns : (axes, rows), (axes, columns) float32; voxel (row, column) of the patch lies at
        rows[axis, row] + columns[axis, column]
    box : edges along these axes
    """

    tables: Tensor
    labels: Tensor
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    box: tuple[int, ...]


def _flat(boxed: Boxed, patch: tuple[int, ...], axes: slice) -> _Flat:
    box, matrix = tuple(boxed.image.shape[1:][axes]), boxed.matrix[axes, axes]
    tables, labels = (volume.reshape(-1, prod(box)) for volume in (boxed.image, boxed.maps))
    others, last = _offsets(patch)
    rows, columns = matrix[:, :-1] @ others + boxed.centre[axes, None], matrix[:, -1:] * last
    return _Flat(tables, labels, rows.astype(np.float32), columns.astype(np.float32), box)


@cache
def _offsets(patch: tuple[int, ...]) -> tuple[Array, Array]:
    """From the middle of a patch, of its rows (axes - 1, rows), and along the last axis of its columns."""
    lines = [np.arange(edge) - (edge - 1) / 2 for edge in patch]
    return np.array([line.ravel() for line in np.meshgrid(*lines[:-1], indexing="ij")]), np.array(lines[-1])


def _steps(box: Sequence[int]) -> list[int]:
    """How far apart neighbours along each axis lie in a flat box."""
    steps = [1]
    for edge in reversed(box[1:]):
        steps.insert(0, steps[0] * edge)
    return steps


def _corners(box: Sequence[int]) -> list[int]:
    """The corners of a cell of a flat box, relative to its first; along the last axis they change first."""
    steps = _steps(box)
    return [
        sum(step * side for step, side in zip(steps, sides, strict=True)) for sides in product((0, 1), repeat=len(box))
    ]


def _cells(points: Sequence[Tensor], box: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Of points the first corner of their cell in the flat box, int32, and how far along each axis they lie in it.

    points : (N,) for each axis, changed in place
    """
    points = [point.clamp_(0, edge - 2) for point, edge in zip(points, box, strict=True)]
    steps = _steps(box)
    index = points[0].int() * steps[0]
    for point, step in zip(points[1:], steps[1:], strict=True):
        index = index.add_(point.int(), alpha=step)
    return index, [point.frac_() for point in points]


def _interpolated(corners: Tensor, fractions: Sequence[Tensor]) -> Tensor:
    """(corners, ..., N) to (..., N)."""
    for fraction in fractions:
        half = len(corners) // 2
        corners = torch.lerp(corners[:half], corners[half:], fraction)
    return corners[0]


def _vote(labels: Tensor, fractions: Sequence[Tensor]) -> Tensor:
    """The label with the largest weight; of equal ones that of the nearest corner, or the lowest.

    labels : (corners, ..., N); fractions : (N,) for each axis
    """
    several = 1 + SCORES // (1 + labels[0].numel())
    scores = [
        _interpolated((labels[:, None] == own).to(fractions[0].dtype), fractions) for own in labels.split(several)
    ]
    rounded = torch.cat(scores).mul_(FULL_SCORE).half().float()
    is_best = rounded >= rounded.amax(0)
    lowest = torch.where(is_best, labels, -MIXED - 1).amin(0)
    chosen = _nearest(fractions).expand_as(lowest)[None]
    return torch.where(is_best.gather(0, chosen)[0], labels.gather(0, chosen)[0], lowest)


def _all_votes(several: Sequence[_Flat]) -> list[tuple[Tensor, Tensor]]:
    """Of each, (T, voxels of the patch) and (L, voxels of the patch).

    The boxes lie one behind the other, so that a corner of a cell of one of them is a number.
    """
    index, fractions = _placed(several)
    image, maps = (
        _joined(volumes).index_select(1, index).view(len(volumes[0]), 2 ** len(fractions), -1).movedim(1, 0)
        for volumes in ([one.tables for one in several], [one.labels for one in several])
    )
    both = (_interpolated(image, fractions), _vote(maps, fractions))
    return list(zip(*(one.view(len(one), len(several), -1).unbind(1) for one in both), strict=True))


def _joined(volumes: Sequence[Tensor]) -> Tensor:
    """One behind the other; a single one, which is as large as any, is not copied."""
    return torch.cat(list(volumes), 1) if len(volumes) > 1 else volumes[0]


def _placed(several: Sequence[_Flat]) -> tuple[Tensor, Sequence[Tensor]]:
    """Where the corners of all points' cells are, (corners * N,) int32, and as `_cells` how far the points lie in them.

    (corners, boxes, rows, columns) is the order.
    """
    boxes = [one.box for one in several]
    rows, columns = np.stack([one.rows for one in several], 1), np.stack([one.columns for one in several], 1)
    highest, steps = np.array(boxes).T - 2, np.array([_steps(box) for box in boxes]).T
    firsts = np.cumsum([0, *map(prod, boxes[:-1])]) + np.array(list(product((0, 1), repeat=len(steps)))) @ steps
    of_boxes = [one[..., None, None].astype(np.int32) for one in (highest, steps, firsts)]
    row, column, last, step, first = sent([rows[..., None], columns[:, :, None], *of_boxes], several[0].tables.device)
    points = row + column  # (axes, boxes, rows, columns)
    points = torch.minimum(points.clamp_min_(0), last, out=points)
    index = (points.int() * step).sum(0, dtype=torch.int32)
    return (index + first).view(-1), points.frac_().flatten(1).unbind()


def _few_votes(flat: _Flat) -> tuple[Tensor, Tensor]:
    """The same of one, with votes only where they are needed, and at any time of few voxels."""
    tables, labels, box = flat.tables, flat.labels, flat.box
    rows, columns = torch.from_numpy(flat.rows), torch.from_numpy(flat.columns)
    n_rows, n_columns = rows.shape[1], columns.shape[1]
    image, maps = tables.new_empty(len(tables), n_rows, n_columns), labels.new_empty(len(labels), n_rows, n_columns)
    channels, codes = [_at_corners(one, box) for one in tables], [_codes(one, box) for one in labels]
    for here in torch.arange(n_rows).split(max(1, CHUNK // n_columns)):
        part = slice(int(here[0]), int(here[-1]) + 1)
        points = [(row[part, None] + column).view(-1) for row, column in zip(rows, columns, strict=True)]
        index, fractions = _cells(points, box)
        for channel, out in zip(channels, image, strict=True):
            out[part].view(-1).copy_(_interpolated(_gathered(channel, index), fractions))
        for code, out in zip(codes, maps, strict=True):
            torch.index_select(code, 0, index, out=out[part].view(-1))
    for one, out in zip(labels, maps.flatten(1), strict=True):
        corners, mixed = _at_corners(one, box), np.flatnonzero(out.numpy() < PADDING_LABEL)
        for few in torch.from_numpy(mixed).split(CHUNK):
            row, column = few // n_columns, few % n_columns
            points = [along[row] + across[column] for along, across in zip(rows, columns, strict=True)]
            index, fractions = _cells(points, box)
            out[few] = _voted(_gathered(corners, index), fractions)
    return image, maps


def _at_corners(table: Tensor, box: Sequence[int]) -> list[Tensor]:
    """Views of a flat volume that begin at the corners of its first cell."""
    return [table[corner:] for corner in _corners(box)]


def _gathered(corners: Sequence[Tensor], index: Tensor) -> Tensor:
    """(corners, N)"""
    found = corners[0].new_empty(len(corners), len(index))
    for corner, out in zip(corners, found, strict=True):
        torch.index_select(corner, 0, index, out=out)
    return found


def _codes(labels: Tensor, box: Sequence[int]) -> Tensor:
    """Of each cell of a flat map, by its first corner: its label, or a number below all labels where it has several."""
    lowest = highest = labels
    for step in _steps(box):
        n = len(lowest) - step
        lowest, highest = torch.minimum(lowest[:n], lowest[step:]), torch.maximum(highest[:n], highest[step:])
    # the highest of several labels is at least 0
    return (highest - lowest).clamp_(max=1).mul_(MIXED).bitwise_or_(highest)


def _nearest(fractions: Sequence[Tensor]) -> Tensor:
    """Number of the nearest corner, (N,) int64."""
    nearest = (fractions[0] > 0.5).long()
    for fraction in fractions[1:]:
        nearest.mul_(2).add_(fraction > 0.5)
    return nearest


def _voted(labels: Tensor, fractions: Sequence[Tensor]) -> Tensor:
    """`_vote` for (corners, N) on the host: of most voxels the label of the nearest corner has half of the weight."""
    nearest = labels.gather(0, _nearest(fractions)[None])
    weight = _interpolated(labels.float().eq_(nearest.float()), fractions)
    voted, rest = nearest[0], torch.from_numpy(np.flatnonzero(weight.numpy() < 0.5))
    voted[rest] = _vote(labels[:, rest], [one[rest] for one in fractions])
    return voted
