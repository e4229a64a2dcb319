"""Sliding-window prediction of one preprocessed case, plane by plane.

So the logits of a whole case never have to be in memory. tiles.py has the rules.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from segpipe.inference.tiles import Flip, Tiles, importance, in_few_sizes, profile

VALUES_AT_ONCE = 2**24  # logits that are weighted together: their copy stays small

Tile = tuple[int, int, int]  # its first voxel per axis
Region = tuple[slice, slice, slice]


class Seen:
    """A case as the networks see it: padded to a patch at least.

    image : (C, Z, Y, X) float32 on the device of the networks
    previous : (1, Z, Y, X) what the stage before segmented, of which the networks see a channel for each of the values
        from 1 to n_values - 1; made tile by tile, as there may be many
    shape : of its logits, (n_out, Z, Y, X)
    """

    def __init__(self, tiles: Tiles, image: Tensor, previous: Tensor | None = None, n_values: int = 1) -> None:
        self.tiles = tiles
        self.padded, self.inside = _padded(image, tiles.patch)
        self.previous = None if previous is None else _padded(previous, tiles.patch)[0]
        self.values = torch.arange(1, n_values, device=image.device).reshape(-1, 1, 1, 1)
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
        """What the networks see in a tile, (C, Z, Y, X)."""
        image = self.padded[:, *self._box(tile)]
        if self.previous is None:
            return image
        return torch.cat([image, (self.previous[:, *self._box(tile)] == self.values).to(image.dtype)])

    def _box(self, tile: Tile) -> Region:
        z, y, x = (slice(start, start + edge) for start, edge in zip(tile, self.tiles.patch, strict=True))
        return z, y, x

    def _uniform_tiles(self) -> dict[Tile, tuple[float, ...]]:
        """The uniform tiles, where there are several tiles, and the value of each channel."""
        tiles = [(z, y, x) for z, y, x in product(*self.starts)]
        if len(tiles) == 1:
            return {}
        limits = [_limits(self.padded[:, *self._box(tile)]) for tile in tiles]
        if self.previous is not None:
            before = [_limits(self.previous[:, *self._box(tile)].float()) for tile in tiles]
            limits = [torch.cat(pair, 1) for pair in zip(limits, before, strict=True)]
        found = zip(tiles, torch.stack(limits).tolist(), strict=True)
        return {tile: tuple(low) for tile, (low, high) in found if low == high}


def _limits(part: Tensor) -> Tensor:
    """Lowest and highest value of each channel, (2, C)."""
    return torch.stack((part.amin((1, 2, 3)), part.amax((1, 2, 3))))


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
        return [part for group in groups for part in in_few_sizes(group)]

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
