"""The tiles of a sliding window: where they lie, how they are weighted, how they go through the networks.

Rules of nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py: half a patch of overlap, a
Gaussian of an eighth of the patch, the mean of the logits over all mirrored versions.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import ceil, prod
from typing import TypeVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

SIGMA = 1 / 8  # of the patch edge
VOXELS_PER_FORWARD = {"cpu": 2**18, "cuda": 2**23, "mps": 2**21}  # tiles and flips go through the network together
VALUES_PER_FORWARD = {"cpu": 2**27, "cuda": 2**30, "mps": 2**28}  # of the logits of those tiles

T = TypeVar("T")
Flip = tuple[int, ...]


def tile_starts(size: int, edge: int, step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread, at most `step_size` of an edge apart.

    The slices of a 2d configuration once each, as in nnU-Net (predict_from_raw_data.py): there is nothing between them.
    """
    if edge == 1:
        return list(range(size))
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
        """How many tiles and flips go through the networks together: a power of two, as in `in_few_sizes`."""
        voxels = prod(self.patch)
        by_values = VALUES_PER_FORWARD[device] // (voxels * self.n_heads * len(self.networks))
        fast = min(VOXELS_PER_FORWARD[device] // voxels, by_values)
        return 2 ** (max(1, fast if self.most is None else min(fast, self.most)).bit_length() - 1)

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of some tiles, (N, n_out, Z, Y, X) float32."""
        inputs = inputs.squeeze(2) if self.flat else inputs
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = (network(inputs).float() for network in self.networks)
            logits = torch.cat([*outputs], 1) if self.apart else _mean(outputs)
        return logits.unsqueeze(2) if self.flat else logits


def in_few_sizes(group: list[T]) -> Iterator[list[T]]:
    """Parts of a group, whose lengths are powers of two: for each new shape cuDNN tries its algorithms."""
    while group:
        n = 2 ** (len(group).bit_length() - 1)
        yield group[:n]
        group = group[n:]


def _mean(outputs: Iterator[Tensor]) -> Tensor:
    """One after the other, so that those of two are in memory together and not of all."""
    total, n = next(outputs), 1
    for one in outputs:
        total, n = total + one if n == 1 else total.add_(one), n + 1
    return total if n == 1 else total.div_(n)
