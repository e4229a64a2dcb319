"""From patch and spacing to the U-Net's stages, and what its feature maps cost.

Rules of nnunetv2/experiment_planning/experiment_planners/network_topology.py and of the feature-map estimate in
dynamic_network_architectures. Everything is plain arithmetic: no network is built.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_EDGE = 4  # voxels of the coarsest feature map along each axis
SAME_SPACING = 2  # axes whose spacings differ by less than this factor are treated alike

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The stages of a U-Net.

    strides, kernel_sizes : one per stage, per axis
    patch_size : the given patch, padded to what the strides divide
    divisible_by : per axis
    """

    strides: tuple[Axes, ...]
    kernel_sizes: tuple[Axes, ...]
    patch_size: Axes
    divisible_by: Axes


def topology(spacing_mm: Iterable[float], patch_size: Sequence[float]) -> Topology:
    """Halve the axes that are finest and still long enough, stage by stage, until none is left."""
    spacing, size = list(spacing_mm), list(patch_size)
    axes = range(len(spacing))
    kernel = [1] * len(spacing)
    strides, kernels = [(1,) * len(spacing)], []
    while pooled := _axes_to_pool(spacing, size):
        # once an axis has caught up with the finest one its convolutions see neighbours along it, for good
        kernel = [3 if kernel[a] == 3 or spacing[a] / min(spacing) < SAME_SPACING else 1 for a in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in pooled else 1 for a in axes))
        spacing = [spacing[a] * 2 if a in pooled else spacing[a] for a in axes]
        size = [math.ceil(size[a] / 2) if a in pooled else size[a] for a in axes]
    kernels.append((3,) * len(spacing))
    divisible_by = tuple(math.prod(stride[a] for stride in strides) for a in axes)
    padded = tuple(math.ceil(patch_size[a] / divisible_by[a]) * divisible_by[a] for a in axes)
    return Topology(tuple(strides), tuple(kernels), padded, divisible_by)


def _axes_to_pool(spacing: list[float], size: list[float]) -> list[int]:
    long_enough = [axis for axis in range(len(size)) if size[axis] >= 2 * MIN_EDGE]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    pooled = [axis for axis in long_enough if spacing[axis] / finest < SAME_SPACING]
    # a single axis is worth a stage of its own only where it stays longer than the others would have to be
    return [] if len(pooled) == 1 and size[pooled[0]] < 3 * MIN_EDGE else pooled


def features_per_stage(n_stages: int, base: int, n_axes: int) -> tuple[int, ...]:
    """Channels double per stage up to 512 in 2d, 320 in 3d."""
    return tuple(min(base * 2**stage, 512 if n_axes == 2 else 320) for stage in range(n_stages))


@dataclass(frozen=True)
class Layers:
    """What a U-Net has in its stages.

    features : channels of each stage
    encoder : convolutions of each stage, or residual blocks
    decoder : convolutions of each stage, the coarsest first
    """

    features: Sequence[int]
    encoder: Sequence[int]
    decoder: Sequence[int]
    residual: bool


def feature_map_size(patch_size: Sequence[int], strides: Sequence[Axes], layers: Layers, n_classes: int) -> int:
    """Values in all feature maps that convolutions of a U-Net write for one patch: the memory proxy."""
    voxels, size = [], list(patch_size)
    for stride in strides:
        size = [edge // step for edge, step in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
    maps = [channels * count for channels, count in zip(layers.features, voxels, strict=True)]
    written = _written_by_blocks(strides, layers) if layers.residual else layers.encoder
    encoder = sum(n * size for n, size in zip(written, maps, strict=True))
    # a stage of the decoder convolves after one transposed convolution
    decoder = sum((n + 1) * size for n, size in zip(reversed(layers.decoder), maps[:-1], strict=True))
    return encoder + decoder + n_classes * voxels[0]


def _written_by_blocks(strides: Sequence[Axes], layers: Layers) -> list[int]:
    """Feature maps of each stage of a residual encoder: two per block, one of a skip that computes, the stem's."""
    before = [layers.features[0], *layers.features]
    skips = [n != m or max(stride) > 1 for n, m, stride in zip(before, layers.features, strides, strict=False)]
    first = [1] + [0] * (len(strides) - 1)
    return [2 * n + skip + stem for n, skip, stem in zip(layers.encoder, skips, first, strict=True)]
