"""Sliding-window prediction of one preprocessed case: tiles, mirroring, Gaussian blending.

Rules of nnunetv2/inference/sliding_window_prediction.py and predict_from_raw_data.py: half a patch of overlap, a
Gaussian of an eighth of the patch, the mean of the logits over all mirrored versions.
"""

import functools
from collections.abc import Sequence
from itertools import chain, combinations, product
from math import ceil, prod

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import pad

SIGMA = 1 / 8  # of the patch edge
VOXELS_PER_FORWARD = {"cpu": 2**18, "cuda": 2**23, "mps": 2**21}  # tiles and flips go through the network together


def tile_starts(size: int, edge: int, step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: evenly spread, at most `step_size` of an edge apart."""
    n_steps = ceil((size - edge) / (edge * step_size)) + 1
    stride = (size - edge) / (n_steps - 1) if n_steps > 1 else 0
    return [int(np.round(stride * i)) for i in range(n_steps)]


@functools.lru_cache(maxsize=8)
def importance(patch_size: tuple[int, ...]) -> Tensor:
    """Weight of each voxel of a tile: a Gaussian around its centre, nowhere zero (exp(-24) at the corners)."""
    weights = np.zeros(patch_size)
    weights[tuple(edge // 2 for edge in patch_size)] = 1
    weights = gaussian_filter(weights, [edge * SIGMA for edge in patch_size], mode="constant")
    return torch.from_numpy(weights / weights.max()).float()


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All combinations of mirrored axes, none included."""
    return list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))


@torch.inference_mode()
def predict_logits(
    networks: Sequence[nn.Module],
    image: Tensor,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    step_size: float,
    dtype: torch.dtype,
) -> Tensor:
    """Mean logits of several networks for one case.

    image : (C, Z, Y, X) float32 on the device of the networks
    patch_size, mirror_axes : of the network's own axes; a 2d network predicts slice by slice
    dtype : of the convolutions; float32 is no autocast
    Returns (classes, Z, Y, X) float32 on the same device.
    """
    flat = 3 - len(patch_size)
    patch = (*((1,) * flat), *patch_size)
    padded, inside = _padded(image, patch)
    starts = product(*(tile_starts(n, edge, step_size) for n, edge in zip(padded.shape[1:], patch, strict=True)))
    flips = [tuple(axis + flat + 1 for axis in axes) for axes in mirrorings(mirror_axes)]
    work = [(tile, flip) for tile in starts for flip in flips]
    weights = importance(patch).to(image.device)
    blended, total = torch.zeros(0), torch.zeros(padded.shape[1:], device=image.device)
    at_once = max(1, VOXELS_PER_FORWARD[image.device.type] // prod(patch))
    for first in range(0, len(work), at_once):
        group = work[first : first + at_once]
        tiles = torch.stack([_tile(padded, start, patch).flip(flip) for start, flip in group])
        logits = _forward(networks, tiles.squeeze(2) if flat else tiles, dtype)
        logits = logits.unsqueeze(2) if flat else logits
        if not len(blended):
            blended = torch.zeros((logits.shape[1], *padded.shape[1:]), device=image.device)
        for (start, flip), one in zip(group, logits, strict=True):
            _tile(blended, start, patch).add_(one.flip(flip) * weights)
            _tile(total[None], start, patch).add_(weights)
    return (blended / total)[:, *inside]


def _padded(image: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad a case that is smaller than the patch with zeros on both sides; also where the case is inside."""
    missing = [max(edge - n, 0) for n, edge in zip(image.shape[1:], patch, strict=True)]
    sides = [(m // 2, m - m // 2) for m in missing]
    inside = tuple(slice(before, before + n) for (before, _), n in zip(sides, image.shape[1:], strict=True))
    return pad(image, [width for pair in reversed(sides) for width in pair]), inside


def _tile(array: Tensor, start: Sequence[int], patch: Sequence[int]) -> Tensor:
    return array[:, *(slice(a, a + n) for a, n in zip(start, patch, strict=True))]


def _forward(networks: Sequence[nn.Module], tiles: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(tiles.device.type, dtype, enabled=dtype != torch.float32):
        outputs = [network(tiles).float() for network in networks]
    return torch.stack(outputs).mean(0)
