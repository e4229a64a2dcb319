"""Surfaces of masks and the distances between them: elements of a surface, weighted by their area.

Around each corner that eight voxels share, the surface is that of marching cubes: it separates the voxels inside from
those outside, through the middle of each edge between two of them (Lorensen and Cline, 1987). Its area is the weight
of the corner, and the corner its place. These are the elements of DeepMind's surface-distance (Nikolov et al., 2021),
which lists the triangles of each case in a table; here two rules make them, `_segments` and `_triangles`. In an image
of one slice four pixels share a corner, and the surface is a contour, weighted by its length.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from segpipe.evaluation.overlap import Mask, Pair

Floats = NDArray[np.float64]
Point = tuple[float, ...]
Segment = tuple[Point, Point]
Triangle = tuple[Point, Point, Point]

DENSE = 0.2  # points of both surfaces per voxel, from which distances of all voxels take less time than a search tree
ROUNDING = 1e-9  # of sums of areas: 19 of 20 equal ones are 95 %
ROUNDING_MM = 1e-6  # three steps of 0.1 mm are 0.3 mm, whatever their sum as a floating-point number


@dataclass(frozen=True)
class Distances:
    """From each element of a surface to the nearest one of the other.

    mm : of the elements of one mask, then of those of the other
    area : of each, in mm2; of a contour its length, in mm
    n_first : elements of the first mask
    """

    mm: Floats
    area: Floats
    n_first: int

    def percentile_mm(self, share: float) -> float:
        """The distance that this share of each surface does not exceed; the larger of both directions."""
        parts = (slice(None, self.n_first), slice(self.n_first, None))
        return max(_weighted_percentile(self.mm[part], self.area[part], share) for part in parts)

    def mean_mm(self) -> float:
        """Over both surfaces together."""
        return float(np.average(self.mm, weights=self.area))

    def share_within(self, tolerance_mm: float) -> float:
        """The part of both surfaces together that is at most so far from the other."""
        return float(self.area[self.mm <= tolerance_mm + ROUNDING_MM].sum() / self.area.sum())


def distances(pair: Pair, spacing_mm: Sequence[float]) -> Distances:
    """Between the surfaces of both masks, none of which may be empty; outside of the volume is outside of a mask.

    spacing_mm : (Z, Y, X)
    """
    masks, spacing = [pair.predicted, pair.reference], np.array(spacing_mm, np.float64)
    if 1 in pair.shape:
        flat = pair.shape.index(1)
        masks, spacing = [mask.squeeze(flat) for mask in masks], np.delete(spacing, flat)
    codes = [_codes(mask) for mask in masks]
    first, second = ((code != 0) & (code != 2 ** (2**code.ndim) - 1) for code in codes)
    mm = _nearest_mm(first, second, spacing), _nearest_mm(second, first, spacing)
    areas = _areas(tuple(spacing))[codes[0][first]], _areas(tuple(spacing))[codes[1][second]]
    return Distances(np.concatenate(mm), np.concatenate(areas), len(mm[0]))


def _nearest_mm(of: Mask, to: Mask, spacing_mm: Floats) -> Floats:
    """From each point of a surface to the nearest one of another."""
    if np.count_nonzero(of) + np.count_nonzero(to) > DENSE * of.size:
        return np.asarray(distance_transform_edt(~to, sampling=tuple(spacing_mm))[of], np.float64)
    tree = cKDTree(np.argwhere(to) * spacing_mm, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(np.argwhere(of) * spacing_mm)[0], np.float64)


def _weighted_percentile(values: Floats, weights: Floats, share: float) -> float:
    order = values.argsort()
    reached = weights[order].cumsum() * (1 + ROUNDING)
    return float(values[order[min(np.searchsorted(reached, share * weights.sum()), len(order) - 1)]])


def _codes(mask: Mask) -> NDArray[np.uint8]:
    """Around each corner of a mask's voxels those that are inside: one bit each, in the order of `_cube`."""
    padded = np.pad(mask.view(np.uint8), 1)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, start in enumerate(_cube(mask.ndim)):
        codes |= padded[tuple(slice(s, s + n) for s, n in zip(start, codes.shape, strict=True))] << np.uint8(bit)
    return codes


@functools.cache
def _areas(spacing_mm: tuple[float, ...]) -> Floats:
    """Area of the surface around a corner, by its code; of a contour the length."""
    edges = np.array(spacing_mm)
    vectors = _contours() * edges if len(edges) == 2 else _normals() * (edges.prod() / edges)
    return np.asarray(np.linalg.norm(vectors, axis=2).sum(1))


@functools.cache
def _contours() -> Floats:
    """Segments around a corner of pixels, (16 codes, segments, 2), in edges of a pixel."""
    square = _cube(2)
    pieces = [_segments(square, inside) for inside in _insides(square)]
    return _table([[np.subtract(*segment) for segment in segments] for segments in pieces], 2)


@functools.cache
def _normals() -> Floats:
    """Normals of the triangles around a corner of voxels, as long as their area: (256 codes, triangles, 3)."""
    pieces = [[part for loop in _loops(inside) for part in _triangles(loop)] for inside in _insides(_cube(3))]
    return _table([[_normal(triangle) for triangle in triangles] for triangles in pieces], 3)


def _table(vectors: Sequence[Sequence[Floats]], ndim: int) -> Floats:
    """Lists of vectors as one array, filled up with zeros."""
    table = np.zeros((len(vectors), max(map(len, vectors)), ndim))
    for row, some in zip(table, vectors, strict=True):
        row[: len(some)] = np.reshape(some, (-1, ndim))
    return table


def _cube(ndim: int) -> list[Point]:
    """The voxels that share a corner, by the place of their centres."""
    return list(itertools.product((0, 1), repeat=ndim))


def _insides(cube: Sequence[Point]) -> Iterator[list[Point]]:
    """The voxels inside, by code. Where they are more than half, those outside: the surface is the same."""
    for code in range(2 ** len(cube)):
        inside = [voxel for bit, voxel in enumerate(cube) if code >> bit & 1]
        yield inside if 2 * len(inside) <= len(cube) else [voxel for voxel in cube if voxel not in inside]


def _segments(square: Collection[Point], inside: Collection[Point]) -> list[Segment]:
    """Where a surface cuts a square between four voxels: segments between middles of edges.

    Where two opposite voxels of the four are inside, the surface passes between them.
    """
    edges = [(a, b) for a, b in itertools.combinations(square, 2) if np.abs(np.subtract(a, b)).sum() == 1]
    cut = [edge for edge in edges if (edge[0] in inside) != (edge[1] in inside)]
    pieces = [cut] if len(cut) < 4 else [[edge for edge in cut if voxel in edge] for voxel in square if voxel in inside]
    return [(_middle(*ends[0]), _middle(*ends[1])) for ends in pieces if ends]


def _middle(a: Point, b: Point) -> Point:
    return tuple((x + y) / 2 for x, y in zip(a, b, strict=True))


def _loops(inside: Collection[Point]) -> Iterator[list[Point]]:
    """The closed lines in which a surface cuts the faces of the cube between eight voxels."""
    faces = [[voxel for voxel in _cube(3) if voxel[axis] == side] for axis in range(3) for side in (0, 1)]
    left = [segment for face in faces for segment in _segments(face, inside)]
    while left:
        loop = list(left.pop())
        while loop[-1] != loop[0]:
            following = next(segment for segment in left if loop[-1] in segment)
            left.remove(following)
            loop.append(following[following[0] == loop[-1]])
        yield loop[:-1]


def _triangles(loop: Sequence[Point]) -> list[Triangle]:
    """A loop filled with triangles. Of those that fill one that is not flat, surface-distance has the largest."""
    return max(_fillings(loop), key=lambda triangles: sum(np.linalg.norm(_normal(one)) for one in triangles))


def _fillings(loop: Sequence[Point]) -> Iterator[list[Triangle]]:
    """All ways to fill a loop with triangles between its points."""
    if len(loop) < 3:
        yield []
    for middle in range(1, len(loop) - 1):
        for before, after in itertools.product(_fillings(loop[: middle + 1]), _fillings(loop[middle:])):
            yield [(loop[0], loop[middle], loop[-1]), *before, *after]


def _normal(triangle: Triangle) -> Floats:
    a, b, c = map(np.array, triangle)
    return np.cross(b - a, c - a) / 2
