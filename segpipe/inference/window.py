"""Sliding-window prediction of one preprocessed case: tiles, mirroring, Gaussian blending.

Rules of nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py: half a patch of overlap, a
Gaussian of an eighth of the patch, the mean of the logits over all mirrored versions. The logits come plane by plane,
so that those of a whole case never have to be in memory.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from math import ceil, prod

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import pad

SIGMA = 1 / 8  # of the patch edge
VOXELS_PER_FORWARD = {"cpu": 2**18, "cuda": 2**23, "mps": 2**21}  # tiles and flips go through the network together
VALUES_PER_FORWARD = {"cpu": 2**27, "cuda": 2**30, "mps": 2**28}  # of the logits of those tiles
VALUES_AT_ONCE = 2**24  # logits that are weighted together: their copy stays small

Tile = tuple[int, int, int]  # its first voxel per axis
Flip = tuple[int, ...]
Region = tuple[slice, slice, slice]


def tile_starts(size: int, edge: int, step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread, at most `step_size` of an edge apart."""
    n_steps = ceil((size - edge) / (edge * step_size)) + 1
    stride = (size - edge) / (n_steps - 1) if n_steps > 1 else 0
    return [int(np.round(stride * i)) for i in range(n_steps)]


@functools.lru_cache(maxsize=32)
def profile(edge: int) -> Tensor:
    """Weight along one axis of a tile: a Gaussian around its centre, nowhere zero (exp(-8) at the ends)."""
    weights = np.zeros(edge)
    weights[edge // 2] = 1
    weights = gaussian_filter1d(weights, edge * SIGMA, mode="constant")
    return torch.from_numpy(weights / weights.max()).float()


def importance(patch_size: Sequence[int]) -> Tensor:
    """Weight of each voxel of a tile: the product of the profiles of its axes."""
    weights = torch.ones(())
    for edge in patch_size:
        weights = weights[..., None] * profile(edge)
    return weights


def mirrorings(axes: Sequence[int]) -> list[Flip]:
    """All combinations of mirrored axes, none included."""
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))


@dataclass(frozen=True)
class Tiles:
    """How the networks of a configuration see a case, whatever the case.

    patch : (Z, Y, X); flat : whether the networks are 2d ones, which see it slice by slice
    mirror_axes : of the networks' own axes
    dtype : of the convolutions; float32 is no autocast
    apart : give the logits of each network instead of their mean
    most : tiles and flips that may go through the networks together, whatever their size; None: as many as are fast
    """

    networks: Sequence[nn.Module]
    n_heads: int
    patch: tuple[int, int, int]
    flat: bool
    mirror_axes: tuple[int, ...]
    step_size: float
    dtype: torch.dtype
    apart: bool = False
    most: int | None = None

    @property
    def flips(self) -> list[Flip]:
        """Each combination of mirrored axes, counted in (C, Z, Y, X)."""
        return [tuple(axis + 1 + self.flat for axis in axes) for axes in mirrorings(self.mirror_axes)]

    @property
    def n_out(self) -> int:
        """How many logits a voxel has."""
        return self.n_heads * (len(self.networks) if self.apart else 1)

    def starts(self, shape: Sequence[int]) -> list[list[int]]:
        """First voxels of the tiles of a case along each axis, in the case padded to a patch at least."""
        edges = zip(shape, self.patch, strict=True)
        return [tile_starts(max(size, edge), edge, self.step_size) for size, edge in edges]

    def at_once(self, device: str) -> int:
        """How many tiles and flips go through the networks together."""
        voxels = prod(self.patch)
        by_values = VALUES_PER_FORWARD[device] // (voxels * self.n_heads * len(self.networks))
        fast = min(VOXELS_PER_FORWARD[device] // voxels, by_values)
        return max(1, fast if self.most is None else min(fast, self.most))

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of some tiles, (N, n_out, Z, Y, X) float32."""
        inputs = inputs.squeeze(2) if self.flat else inputs
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = [network(inputs).float() for network in self.networks]
        logits = torch.cat(outputs, 1) if self.apart else _mean(outputs)
        return logits.unsqueeze(2) if self.flat else logits


def _mean(outputs: list[Tensor]) -> Tensor:
    total = outputs[0]
    for one in outputs[1:]:
        total += one
    return total if len(outputs) == 1 else total / len(outputs)


class Seen:
    """A case as the networks see it: padded to a patch at least.

    image : (C, Z, Y, X) float32 on the device of the networks
    shape : of its logits, (n_out, Z, Y, X)
    """

    def __init__(self, tiles: Tiles, image: Tensor) -> None:
        self.tiles = tiles
        self.padded, self.inside = _padded(image, tiles.patch)
        self.shape = (tiles.n_out, *image.shape[1:])
        self.starts = tiles.starts(image.shape[1:])
        self.weights = importance(tiles.patch).to(image.device)
        self._uniform = self._uniform_tiles()
        self._known: dict[tuple[float, ...], Tensor] = {}

    def column(self, rows: slice, columns: slice) -> "Sweep":
        """The logits of some rows and columns."""
        return Sweep(self, (rows, columns))

    def is_uniform(self, tile: Tile) -> bool:
        """Whether each channel has one value all over a tile, as around a body whose air is clipped."""
        return tile in self._uniform

    def of_uniform(self, tile: Tile) -> Tensor:
        """The logits of a uniform tile, summed over all mirrored versions, (n_out, Z, Y, X).

        They are those of any other tile with these values, so they are computed once.
        """
        values = self._uniform[tile]
        if values not in self._known:
            self._known.clear()  # there are seldom two kinds, and a tile of many classes is large
            logits = self.tiles.forward(self.cut(tile)[None])[0]
            self._known[values] = sum((logits.flip(flip) for flip in self.tiles.flips), torch.zeros_like(logits))
        return self._known[values]

    def cut(self, tile: Tile) -> Tensor:
        """The image in a tile, (C, Z, Y, X)."""
        z, y, x = (slice(start, start + edge) for start, edge in zip(tile, self.tiles.patch, strict=True))
        return self.padded[:, z, y, x]

    def _uniform_tiles(self) -> dict[Tile, tuple[float, ...]]:
        """The uniform tiles, where there are several tiles, and the value of each channel."""
        tiles = [(z, y, x) for z, y, x in product(*self.starts)]
        if len(tiles) == 1:
            return {}
        cut = map(self.cut, tiles)
        limits = torch.stack([torch.stack((one.amin((1, 2, 3)), one.amax((1, 2, 3)))) for one in cut]).tolist()
        return {tile: tuple(low) for tile, (low, high) in zip(tiles, limits, strict=True) if low == high}


class Sweep:
    """The logits of a case, or of a column of it, along the first axis.

    column : rows and columns (Y, X) that are asked for; of the tiles only those that reach into them are computed
    """

    def __init__(self, seen: Seen, column: tuple[slice, slice]) -> None:
        self.seen, self.tiles = seen, seen.tiles
        rows, columns = (
            slice(part.start + inside.start, part.stop + inside.start)
            for part, inside in zip(column, seen.inside[1:], strict=True)
        )
        self.region = seen.inside[0], rows, columns
        patch = self.tiles.patch
        near = [_reaching(*of) for of in zip(seen.starts, patch, self.region, strict=True)]
        self.groups = self._groups([(z, y, x) for z, y, x in product(*near)])
        device = seen.padded.device
        sums = (_summed(*of) for of in zip(seen.starts, patch, seen.padded.shape[1:], strict=True))
        self.sums = [total[part].to(device) for total, part in zip(sums, (slice(None), rows, columns), strict=True)]
        # of the planes in the buffer: the first one, the first that is not divided yet; the next group of tiles
        self.base, self.divided, self.next = 0, 0, 0
        self.buffer = torch.zeros(0)

    def _groups(self, tiles: list[Tile]) -> list[list[tuple[Tile, Flip]]]:
        """What goes through the networks together, by the first axis. A uniform tile is a group by itself."""
        at_once = self.tiles.at_once(self.seen.padded.device.type)
        groups: list[list[tuple[Tile, Flip]]] = []
        for tile in tiles:
            alone = self.seen.is_uniform(tile)
            for flip in self.tiles.flips[:1] if alone else self.tiles.flips:
                if alone or not groups or len(groups[-1]) == at_once or self.seen.is_uniform(groups[-1][0][0]):
                    groups.append([])
                groups[-1].append((tile, flip))
        return groups

    def depth(self, needs: Sequence[tuple[int, int]]) -> int:
        """Planes that the buffer must hold so that these ranges can be asked for, one after the other."""
        first, edge, deepest, next_group = self.region[0].start, self.tiles.patch[0], 1, 0
        top = 0
        for start, stop in needs:
            while next_group < len(self.groups) and self.groups[next_group][0][0][0] < stop + first:
                top = max(top, self.groups[next_group][-1][0][0] + edge)
                next_group += 1
            deepest = max(deepest, top - start - first, stop - start)
        return deepest

    @torch.inference_mode()
    def planes(self, start: int, stop: int, depth: int) -> Tensor:
        """Logits of the planes from start to stop, (n_out, stop - start, Y, X) float32: a view, until the next call.

        Neither start nor stop may go back. depth : of the buffer, as `depth` says it for all calls to come
        """
        first = self.region[0].start
        self._drop(start + first, depth)
        while self.next < len(self.groups) and self.groups[self.next][0][0][0] < stop + first:
            self._run(self.groups[self.next])
            self.next += 1
        self._divide(stop + first)
        return self.buffer[:, start + first - self.base : stop + first - self.base]

    def _drop(self, start: int, depth: int) -> None:
        """Let the buffer begin with the plane `start`."""
        if not len(self.buffer):
            size = [region.stop - region.start for region in self.region[1:]]
            self.buffer = torch.zeros((self.tiles.n_out, depth, *size), device=self.seen.padded.device)
            self.base = self.divided = start
        gone = min(start - self.base, self.buffer.shape[1])
        if gone:
            for head in self.buffer:  # one after the other: what moves within the same memory needs a copy
                head[: len(head) - gone] = head[gone:].clone()
                head[len(head) - gone :] = 0
        self.base = start

    def _run(self, group: list[tuple[Tile, Flip]]) -> None:
        """Add the tiles of a group, each version of them, to the buffer."""
        if self.seen.is_uniform(group[0][0]):
            return self._add(group[0][0], self.seen.of_uniform(group[0][0]))
        inputs = torch.stack([self.seen.cut(tile).flip(flip) for tile, flip in group])
        for (tile, flip), logits in zip(group, self.tiles.forward(inputs), strict=True):
            self._add(tile, logits, flip)

    def _add(self, tile: Tile, logits: Tensor, flip: Flip = ()) -> None:
        """Add the weighted logits (n_out, Z, Y, X) of a tile where it is in the column."""
        buffered = (slice(self.base, self.base + self.buffer.shape[1]), *self.region[1:])
        inside, where = [], []
        for start, edge, of in zip(tile, self.tiles.patch, buffered, strict=True):
            low, high = max(start, of.start), min(start + edge, of.stop)
            if low >= high:
                return
            inside.append(slice(low - start, high - start))
            where.append(slice(low - of.start, high - of.start))
        heads = max(1, VALUES_AT_ONCE // prod(self.tiles.patch))
        for target, part in zip(self.buffer.split(heads), logits.split(heads), strict=True):
            target[:, *where].addcmul_(part.flip(flip)[:, *inside], self.seen.weights[*inside])

    def _divide(self, stop: int) -> None:
        """Make means of what was summed, up to the plane `stop`."""
        start = max(self.divided, self.base)
        if stop > start:
            part = self.buffer[:, start - self.base : stop - self.base]
            z, y, x = self.sums
            part /= z[start:stop, None, None] * y[:, None] * x * len(self.tiles.flips)
            self.divided = stop


def _padded(image: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, Region]:
    """Pad a case that is smaller than the patch with zeros on both sides; also where the case is inside."""
    missing = [max(edge - n, 0) for n, edge in zip(image.shape[1:], patch, strict=True)]
    sides = [(m // 2, m - m // 2) for m in missing]
    z, y, x = (slice(before, before + n) for (before, _), n in zip(sides, image.shape[1:], strict=True))
    return pad(image, [width for pair in reversed(sides) for width in pair]) if any(missing) else image, (z, y, x)


def _reaching(starts: list[int], edge: int, region: slice) -> list[int]:
    """The tiles along one axis that reach into a region."""
    return [start for start in starts if start < region.stop and start + edge > region.start]


def _summed(starts: list[int], edge: int, size: int) -> Tensor:
    """Sum of the weights of all tiles along one axis."""
    total = torch.zeros(size)
    for start in starts:
        total[start : start + edge] += profile(edge)
    return total
