"""Rotation and scaling of one patch: the image linearly, the maps by a vote of the voxels around (nnU-Net's rule).

A label wins with the largest sum of linear weights among the corners of its cell, which is what interpolating each
label's mask gives, at a cost that does not depend on the number of labels. On the host most voxels need no vote: a cell
with one label at all its corners has that label. Elsewhere every voxel votes, so that no shape depends on the data.

Padding is a label of its own and also lies around the box, where the image is 0.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from segpipe.training.held import PADDING_LABEL, sent

FULL_SCORE = 1000  # of a label at all corners; nnU-Net compares the scores in float16, so that close ones are equal
CHUNK = 32768  # voxels at a time on the host: what is computed of them stays in the cache
MIXED = -(2**15)  # the bit that marks the code of a cell with more than one label; labels are -1 to 32766

Array = NDArray[np.float64]


def warp(
    image: Tensor, maps: Tensor, patch_size: tuple[int, ...], matrix: Array, centre: Array, in_plane: bool
) -> tuple[Tensor, Tensor]:
    """Sample a patch of `patch_size` around `centre`, turned and scaled by `matrix`.

    image : (C, Z, Y, X) float32; maps : (M, Z, Y, X) int16, PADDING_LABEL to 32766
    matrix, centre : (3, 3), (3,), in voxels of the image
    in_plane : the patch has the slices of the image
    """
    axes = slice(1, 3) if in_plane else slice(0, 3)
    patch, matrix, centre = patch_size[axes], matrix[axes, axes], centre[axes]
    image, maps, centre = _with_border(image, maps, patch, matrix, centre)
    box = tuple(image.shape[-len(patch) :])
    # slices that stay slices are as good as channels
    tables, labels = (volume.reshape(-1, int(np.prod(box))) for volume in (image, maps))
    rows, columns = sent([lines.numpy() for lines in _lines(patch, matrix, centre)], image.device)
    run = _few_votes if image.device.type == "cpu" else _all_votes
    sampled, voted = run(tables, labels, rows, columns, box)
    kept = image.ndim - len(patch)
    return sampled.view(*image.shape[:kept], *patch), voted.view(*maps.shape[:kept], *patch)


def _with_border(
    image: Tensor, maps: Tensor, patch: Sequence[int], matrix: Array, centre: Array
) -> tuple[Tensor, Tensor, Array]:
    """Padding on the sides that the patch reaches beyond: one voxel before, two behind, so that cells lie inside."""
    extent = np.abs(matrix) @ ((np.array(patch) - 1) / 2)
    before = (centre - extent < 0).astype(int)
    behind = 2 * (centre + extent > np.array(image.shape[-len(patch) :]) - 2)
    sides = np.stack([before, behind], 1)[::-1].ravel().tolist()
    if any(sides):
        image, maps = pad(image, sides), pad(maps, sides, value=PADDING_LABEL)
    return image, maps, centre + before


def _lines(patch: Sequence[int], matrix: Array, centre: Array) -> tuple[Tensor, Tensor]:
    """Voxel (row, column) of a patch lies at rows[axis, row] + columns[axis, column] of the box.

    (axes, product of the other edges), (axes, last edge) float32
    """
    lines = [np.arange(edge) - (edge - 1) / 2 for edge in patch]
    others = np.stack([line.ravel() for line in np.meshgrid(*lines[:-1], indexing="ij")])
    rows, columns = matrix[:, :-1] @ others + centre[:, None], matrix[:, -1:] * lines[-1]
    return torch.from_numpy(rows).float(), torch.from_numpy(columns).float()


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
    scores = [_interpolated((labels == own).to(fractions[0].dtype), fractions) for own in labels]
    rounded = torch.stack(scores).mul_(FULL_SCORE).half().float()
    is_best = rounded >= rounded.amax(0)
    lowest = torch.where(is_best, labels, -MIXED - 1).amin(0)
    chosen = _nearest(fractions).expand_as(lowest)[None]
    return torch.where(is_best.gather(0, chosen)[0], labels.gather(0, chosen)[0], lowest)


def _all_votes(
    tables: Tensor, labels: Tensor, rows: Tensor, columns: Tensor, box: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Channels (T, voxels of the box) to (T, voxels of the patch), label maps (L, ...) as well."""
    index, fractions = _cells(
        [(row[:, None] + column).view(-1) for row, column in zip(rows, columns, strict=True)], box
    )
    corners = [index + corner for corner in _corners(box)]
    image = _interpolated(torch.stack([tables[:, one] for one in corners]), fractions)
    return image, _vote(torch.stack([labels[:, one] for one in corners]), fractions)


def _few_votes(
    tables: Tensor, labels: Tensor, rows: Tensor, columns: Tensor, box: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The same, with votes only where they are needed, and at any time of few voxels."""
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
    nearest = torch.zeros_like(fractions[0], dtype=torch.int64)
    for fraction in fractions:
        nearest = nearest * 2 + (fraction > 0.5)
    return nearest


def _voted(labels: Tensor, fractions: Sequence[Tensor]) -> Tensor:
    """`_vote` for (corners, N) on the host: of most voxels the label of the nearest corner has half of the weight."""
    nearest = labels.gather(0, _nearest(fractions)[None])
    weight = _interpolated(labels.float().eq_(nearest.float()), fractions)
    voted, rest = nearest[0], torch.from_numpy(np.flatnonzero(weight.numpy() < 0.5))
    voted[rest] = _vote(labels[:, rest], [one[rest] for one in fractions])
    return voted
