"""Logits from the network's grid to the file's, block by block: a full-resolution copy of all classes never exists.

Linear, nearest along a separate axis, as nnunetv2/inference/export_prediction.py resamples logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from segpipe.prepare.preprocess import Grid
from segpipe.prepare.resample import nearest_index, spline_matrix

# Voxels of a block along an axis. Small ones stay in a CPU's cache and are often of one class; a GPU has to be filled,
# with blocks of about so many logits.
BLOCK = {"cpu": 32, "cuda": 256, "mps": 128}
VALUES_PER_BLOCK = 2**26

Column = tuple[slice, slice]
Region = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Piece:
    """Some places along one axis of the file's grid, the network's they are made of, and how; None: as they are."""

    out: slice
    made_of: slice
    matrix: Tensor | None


class Planes(Protocol):
    """Logits along the first axis, in a column; window.Sweep is one."""

    def depth(self, needs: list[tuple[int, int]]) -> int:
        """Planes that have to be in memory so that these ranges can be asked for, one after the other."""

    def planes(self, start: int, stop: int, depth: int) -> Tensor:
        """(n, stop - start, Y, X) float32, valid until the next call."""


class Source(Protocol):
    """Logits of a case on the network's grid."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, Z, Y, X)."""

    def column(self, rows: slice, columns: slice) -> Planes:
        """Those of some rows and columns."""


@dataclass(frozen=True)
class Whole:
    """A Source that is in memory as a whole. logits : (n, Z, Y, X)"""

    logits: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, Z, Y, X)."""
        return tuple(self.logits.shape)

    def column(self, rows: slice, columns: slice) -> "Whole":
        """Those of some rows and columns."""
        return Whole(self.logits[:, :, rows, columns])

    def depth(self, needs: list[tuple[int, int]]) -> int:
        """All planes are there."""
        return self.logits.shape[1]

    def planes(self, start: int, stop: int, depth: int) -> Tensor:
        """(n, stop - start, Y, X)."""
        return self.logits[:, start:stop]


@dataclass(frozen=True)
class Block:
    """A box of the file's cropped grid. where : (Z, Y, X) in the plan's order; support : logits that it is made of"""

    where: Region
    support: Tensor
    matrices: tuple[Tensor | None, Tensor | None, Tensor | None]

    @property
    def is_resampled(self) -> bool:
        """Whether the file's grid is another one."""
        return any(matrix is not None for matrix in self.matrices)

    @cached_property
    def logits(self) -> Tensor:
        """On the file's grid, (n, Z, Y, X)."""
        z, y, x = self.matrices
        result = self.support
        if x is not None:
            result = result @ x.T
        if y is not None:
            result = y @ result
        if z is not None:
            result = (z @ result.flatten(2)).unflatten(2, result.shape[2:])
        return result

    def forget(self) -> None:
        """Let go of the logits on the file's grid."""
        self.__dict__.pop("logits", None)


def blocks(source: Source, grid: Grid, device: torch.device, buffer_bytes: int) -> Iterator[list[Block]]:
    """All blocks of a case, those that are ready together in one list, each list valid until the next one.

    buffer_bytes : that the planes in memory may take; where they would take more, the case is done in columns
    """
    edge = block_edge(source.shape[0], device.type)
    axes = [
        pieces(n_in, n_out, axis == grid.separate, edge, device)
        for axis, (n_in, n_out) in enumerate(zip(source.shape[1:], grid.cropped_shape, strict=True))
    ]
    needs = [(piece.made_of.start, piece.made_of.stop) for piece in axes[0]]
    for rows, columns in _columns(source, axes, needs, buffer_bytes):
        yield from _of_column(source, axes[0], rows, columns)


def block_edge(n: int, device: str) -> int:
    """Voxels of a block along an axis, for n logits per voxel."""
    return min(BLOCK[device], max(BLOCK["cpu"], round((VALUES_PER_BLOCK / n) ** (1 / 3))))


def _of_column(source: Source, axis: list[Piece], rows: list[Piece], columns: list[Piece]) -> Iterator[list[Block]]:
    """The blocks of a column, plane by plane; nothing of it is left when the next one begins."""
    needs = [(piece.made_of.start, piece.made_of.stop) for piece in axis]
    y0, x0 = rows[0].made_of.start, columns[0].made_of.start
    planes = source.column(slice(y0, rows[-1].made_of.stop), slice(x0, columns[-1].made_of.stop))
    depth = planes.depth(needs)
    for z in axis:
        known = planes.planes(z.made_of.start, z.made_of.stop, depth)
        yield [
            Block(
                (z.out, y.out, x.out),
                known[:, :, _after(y.made_of, y0), _after(x.made_of, x0)],
                (z.matrix, y.matrix, x.matrix),
            )
            for y, x in product(rows, columns)
        ]


def pieces(n_in: int, n_out: int, nearest: bool, edge: int, device: torch.device) -> list[Piece]:
    """One axis in equal pieces of about `edge` places of the file's grid."""
    bounds = [round(part) for part in np.linspace(0, n_out, max(1, round(n_out / edge)) + 1)]
    outs = [slice(start, stop) for start, stop in pairwise(bounds)]
    if n_in == n_out:
        return [Piece(out, out, None) for out in outs]
    matrix = np.eye(n_in, dtype=np.float32)[nearest_index(n_in, n_out)] if nearest else spline_matrix(n_in, n_out, 1)
    used = [np.flatnonzero(matrix[out].any(axis=0)) for out in outs]
    made_of = [slice(int(places[0]), int(places[-1]) + 1) for places in used]
    return [
        Piece(out, of, torch.from_numpy(np.ascontiguousarray(matrix[out, of])).to(device))
        for out, of in zip(outs, made_of, strict=True)
    ]


def _columns(
    source: Source, axes: list[list[Piece]], needs: list[tuple[int, int]], buffer_bytes: int
) -> list[tuple[list[Piece], list[Piece]]]:
    """Rows and columns of pieces in as few parts as the buffer allows; the longer side is cut first."""
    cuts = [1, 1]
    while True:
        parts = [_cut(axis, n) for axis, n in zip(axes[1:], cuts, strict=True)]
        sides = [max(part[-1].made_of.stop - part[0].made_of.start for part in of) for of in parts]
        rows, columns = (slice(of[0][0].made_of.start, of[0][-1].made_of.stop) for of in parts)
        depth = source.column(rows, columns).depth(needs)
        fits = 4 * source.shape[0] * depth * sides[0] * sides[1] <= buffer_bytes
        longer = max((0, 1), key=lambda axis: (cuts[axis] < len(axes[axis + 1]), sides[axis]))
        if fits or cuts[longer] >= len(axes[longer + 1]):
            return [(row, column) for row in parts[0] for column in parts[1]]
        cuts[longer] += 1


def _cut(axis: list[Piece], n_parts: int) -> list[list[Piece]]:
    """An axis in so many parts of about the same length."""
    bounds = [round(index * len(axis) / n_parts) for index in range(n_parts + 1)]
    return [axis[start:stop] for start, stop in pairwise(bounds)]


def _after(part: slice, start: int) -> slice:
    return slice(part.start - start, part.stop - start)
