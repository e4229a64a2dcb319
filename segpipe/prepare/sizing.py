"""How large patch and batch may be: what of a network fits into memory, by nnU-Net's proxy, its feature maps."""

import math
from collections.abc import Sequence

import numpy as np

from segpipe.prepare.presets import MIN_BATCH, REFERENCE_BATCH, Preset
from segpipe.prepare.spacing import Array, Numbers
from segpipe.prepare.topology import Topology, feature_map_size, features_per_stage, topology

START_PATCH_VOXELS = {2: 2048**2, 3: 256**3}


class Sizing:
    """A preset with its memory, for networks of `n_classes` outputs."""

    def __init__(self, preset: Preset, gpu_memory_gb: float, n_classes: int) -> None:
        self.preset, self.gpu_memory_gb, self.n_classes = preset, gpu_memory_gb, n_classes

    def feature_maps(self, stages: Topology, base: int) -> int:
        """The memory proxy of one patch."""
        layers = self.preset.layers(features_per_stage(len(stages.strides), base, len(stages.patch_size)))
        return feature_map_size(stages.patch_size, stages.strides, layers, self.n_classes)

    def gb(self, stages: Topology, base: int, batch: int) -> float:
        """Memory of a training, GB, as nnU-Net reckons it."""
        n_axes = len(stages.patch_size)
        share = self.feature_maps(stages, base) / self.preset.feature_maps[n_axes]
        return share * batch / REFERENCE_BATCH[n_axes] * self.preset.gb

    def largest_patch(self, spacing_mm: Array, shape: Array, base: int) -> tuple[Topology, str]:
        """Start with a patch in the aspect ratio of the spacing, no larger than the median case; shrink it to fit.

        Returns the stages of its network, and why.
        """
        n_axes = len(spacing_mm)
        aspect = 1 / spacing_mm
        edge = aspect * (START_PATCH_VOXELS[n_axes] / math.prod(aspect)) ** (1 / n_axes)
        stages = topology(spacing_mm, [min(round(e), n) for e, n in zip(edge, shape, strict=True)])
        planned, shrunk = self.preset.planned_batch[n_axes], 0
        while self.feature_maps(stages, base) * planned / REFERENCE_BATCH[n_axes] > self._budget(n_axes):
            stages, shrunk = _shrink(stages, spacing_mm, shape), shrunk + 1
        return stages, (
            f"patch {listed(stages.patch_size)}: the median case, shrunk {shrunk} times until {planned} fit into "
            f"{self.gpu_memory_gb:g} GB"
        )

    def batch(self, stages: Topology, base: int, voxels: float) -> tuple[int, str]:
        """As many as fit, as long as one batch shows no more than the preset's share of the dataset's `voxels`.

        Returns the batch size, and why.
        """
        n_axes, most = len(stages.patch_size), self.preset.max_dataset_share
        fits = round(self._budget(n_axes) / self.feature_maps(stages, base) * REFERENCE_BATCH[n_axes])
        share = round(voxels * most / math.prod(stages.patch_size))
        batch = max(min(fits, share), MIN_BATCH)
        why = f"{fits} fit into {self.gpu_memory_gb:g} GB, {share} show {most:.0%} of the dataset, at least {MIN_BATCH}"
        return batch, f"batch {batch}: {why}"

    def _budget(self, n_axes: int) -> float:
        return self.preset.feature_maps[n_axes] * (self.gpu_memory_gb / self.preset.gb)


def _shrink(stages: Topology, spacing_mm: Array, shape: Array) -> Topology:
    """Shorten the axis that is longest relative to the median case by one divisible step.

    The step is the divisor of the already shortened patch: shortening may drop a pooling and so allow a finer step.
    """
    patch = np.array(stages.patch_size)
    axis = int(np.argsort(patch / shape)[-1])
    shorter = patch.copy()
    shorter[axis] -= stages.divisible_by[axis]
    patch[axis] -= topology(spacing_mm, shorter.tolist()).divisible_by[axis]
    return topology(spacing_mm, patch.tolist())


def pooling(stages: Topology) -> str:
    """How often each axis is halved, in words."""
    halved = [sum(stride[axis] == 2 for stride in stages.strides) for axis in range(len(stages.patch_size))]
    coarsest = [edge // step for edge, step in zip(stages.patch_size, stages.divisible_by, strict=True)]
    return (
        f"network of {len(stages.strides)} stages: axes halved {listed(halved)} times, the finest first, while 8 "
        f"voxels are left; coarsest feature map {listed(coarsest)}"
    )


def listed(values: Numbers | Sequence[int]) -> str:
    """Numbers of the axes: 1 x 0.5 x 0.5."""
    return " x ".join(f"{value:.4g}" for value in values)
