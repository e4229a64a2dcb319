"""From the fingerprint and the settings to the plan: pure, and with a reason for every decision.

Rules and constants of nnunetv2/experiment_planning/experiment_planners/default_experiment_planner.py. Spacings and
shapes are in the plan's axis order: the axis with the largest spacing first (`transpose_forward`).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import Overrides, Params
from segpipe.prepare.spacing import Array, Numbers, axis_order, resampled_shape, target_spacing
from segpipe.prepare.topology import CONVS_PER_STAGE, Topology, feature_map_size, features_per_stage, topology

log = getLogger(__name__)

FEATURES_BASE = 32
REFERENCE_GB = 8
REFERENCE_FEATURE_MAPS = {2: 85e6, 3: 560e6}  # values that fit into REFERENCE_GB, by number of axes ...
REFERENCE_BATCH = {2: 12, 3: 2}  # ... at this batch size
MIN_BATCH = 2
MAX_DATASET_SHARE = 0.05  # of all voxels, seen in one batch
START_PATCH_VOXELS = {2: 2048**2, 3: 256**3}
LOWRES_BELOW = 0.25  # 3d_lowres is planned where a patch sees less of the median case
LOWRES_STEP = 1.03
LOWRES_MIN_RATIO = 2  # and kept where its median case has that many times fewer voxels
MASKED_NORM_BELOW = 0.75  # median share of the volume that is left after cropping

NORMALISATIONS = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


@dataclass(frozen=True)
class Configuration:
    """All that preprocessing, training and prediction need to know of one configuration.

    Axes in the plan's order; a 2d configuration has two.

    architecture : plain (convolutions only) or resenc (residual blocks in the encoder)
    n_conv_per_stage : convolutions of the encoder's stages; of a resenc encoder residual blocks
    previous_stage : configuration whose segmentation is a further input, one channel per foreground class; None without
    """

    architecture: str
    spacing_mm: list[float]
    patch_size: list[int]
    batch_size: int
    median_shape: list[float]
    features_per_stage: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    n_conv_per_stage: list[int]
    n_conv_per_stage_decoder: list[int]
    normalisation: list[str]
    use_mask_for_norm: list[bool]
    batch_dice: bool
    previous_stage: str | None
    reasons: list[str]


@dataclass(frozen=True)
class Dataset:
    """What planning needs of the fingerprint and of dataset.json.

    spacings_mm, shapes : (cases, 3), in the order of the files
    """

    spacings_mm: Array
    shapes: Array
    relative_size: float
    n_classes: int
    channel_names: list[str]

    @classmethod
    def of(cls, cases: Cases, fingerprint: dict[str, Any]) -> "Dataset":
        """From the two files that the earlier rules wrote."""
        entries = list(fingerprint["cases"].values())
        return cls(
            np.array([entry["spacing_mm"] for entry in entries], float),
            np.array([entry["shape_after_crop"] for entry in entries], float),
            fingerprint["median_relative_size_after_cropping"],
            len(cases.labels.heads),
            cases.channel_names,
        )


def write(cases: Cases, fingerprint_path: Path, params: Params, out: Path) -> None:
    """Plan every configuration and write plan.json.

    Raises SegpipeError where params.yaml asks for a configuration that the plan does not offer.
    """
    fingerprint = digest.read_json(fingerprint_path)
    plan = plan_dataset(Dataset.of(cases, fingerprint), params.plan.gpu_memory_gb, params.plan.overrides)
    plan["intensities"] = fingerprint["channels"]
    missing = [name for name in params.configurations if name not in plan["configurations"]]
    if missing:
        raise SegpipeError(
            problem(
                "the plan does not offer a configuration",
                where="params.yaml: configurations",
                found=", ".join(missing),
                expected=", ".join(plan["configurations"]),
                cure="ask for one of these (3d needs 3D images, 3d_lowres large ones)",
            )
        )
    digest.write_json(out, plan)
    for name in params.configurations:
        log.info("%s:\n  %s", name, "\n  ".join(plan["configurations"][name]["reasons"]))


def read(path: Path) -> dict[str, Any]:
    """plan.json, with its configurations as `Configuration`."""
    plan: dict[str, Any] = digest.read_json(path)
    plan["configurations"] = {name: Configuration(**value) for name, value in plan["configurations"].items()}
    return plan


def plan_dataset(dataset: Dataset, gpu_memory_gb: float, overrides: Overrides) -> dict[str, Any]:
    """The plan: axis order and all configurations that the dataset allows."""
    target_mm = target_spacing(dataset.spacings_mm, dataset.shapes)
    forward = axis_order(target_mm)
    planner = _Planner(dataset, gpu_memory_gb, overrides, forward)
    return {
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "configurations": {name: asdict(value) for name, value in planner.configurations(target_mm[forward]).items()},
    }


def normalisation(channel_name: str) -> str:
    """How a channel is normalised follows from its name; z-score where the name says nothing."""
    return NORMALISATIONS.get(channel_name.casefold(), "zscore")


class _Planner:
    """The configurations of one dataset; holds what all of them share."""

    def __init__(self, dataset: Dataset, gpu_memory_gb: float, overrides: Overrides, forward: list[int]) -> None:
        self.n_classes, self.n_cases = dataset.n_classes, len(dataset.shapes)
        self.gpu_memory_gb, self.overrides = gpu_memory_gb, overrides
        self.spacings_mm, self.shapes = dataset.spacings_mm[:, forward], dataset.shapes[:, forward]
        self.schemes = [normalisation(name) for name in dataset.channel_names]
        masked = dataset.relative_size < MASKED_NORM_BELOW
        self.use_mask = [masked and scheme == "zscore" for scheme in self.schemes]

    def median_shape(self, target_mm: Array) -> Array:
        """Median over the cases of their shape at a spacing."""
        pairs = zip(self.shapes, self.spacings_mm, strict=True)
        return np.median([resampled_shape(shape, spacing, target_mm) for shape, spacing in pairs], axis=0)

    def configurations(self, target_mm: Array) -> dict[str, Configuration]:
        in_plane_mm = self._spacing("2d", target_mm[1:])
        shape = self.median_shape(np.array([target_mm[0], *in_plane_mm]))
        plans = {"2d": self.configuration("2d", in_plane_mm, shape[1:], math.prod(shape), True)}
        if shape[0] == 1:
            return plans
        fullres_mm = self._spacing("3d_fullres", target_mm)
        shape = self.median_shape(fullres_mm)
        fullres = self.configuration("3d_fullres", fullres_mm, shape, math.prod(shape), False)
        lowres = self._lowres(fullres, shape)
        if lowres:
            # where a patch sees little of a case, Dice over the whole batch is the steadier loss
            plans["3d_lowres"] = lowres
            fullres = Configuration(**{**asdict(fullres), "batch_dice": True})
        return {**plans, "3d_fullres": fullres}

    def _spacing(self, name: str, planned_mm: Array) -> Array:
        override = self._override("spacing_mm", name, len(planned_mm))
        return planned_mm if override is None else np.array(override, float)

    def _override(self, key: str, name: str, n_axes: int) -> Any:
        """What params.yaml says instead of the rule. A list given for all configurations counts where it fits."""
        value = self.overrides.of(key, name)
        if not isinstance(value, list) or len(value) == n_axes:
            return value
        if not isinstance(getattr(self.overrides, key), dict):
            return None
        raise SegpipeError(
            problem(
                "wrong number of axes",
                where=f"params.yaml: plan.overrides.{key}.{name}",
                found=value,
                expected=f"{n_axes} numbers",
                cure="give one number per axis of the configuration",
            )
        )

    def _lowres(self, fullres: Configuration, shape: Array) -> Configuration | None:
        """Coarsen the spacing until a patch sees a quarter of the median case; coarse axes wait for the others."""
        fullres_mm = np.array(fullres.spacing_mm)
        if isinstance(self.overrides.spacing_mm, dict) and "3d_lowres" in self.overrides.spacing_mm:
            spacing_mm = self._spacing("3d_lowres", fullres_mm)
            coarse_shape = self.median_shape(spacing_mm)
            return self.configuration("3d_lowres", spacing_mm, coarse_shape, math.prod(coarse_shape), False)
        spacing_mm, plan, seen, voxels = fullres_mm.copy(), None, math.prod(fullres.patch_size), math.prod(shape)
        while seen / voxels < LOWRES_BELOW:
            finer = spacing_mm.max() / spacing_mm > 2
            spacing_mm[finer if finer.any() else slice(None)] *= LOWRES_STEP
            coarse_shape = fullres_mm / spacing_mm * shape
            voxels = math.prod(coarse_shape)
            plan = self.configuration("3d_lowres", spacing_mm, np.round(coarse_shape), voxels, False)
            seen = math.prod(plan.patch_size)
        return plan if math.prod(shape) / voxels >= LOWRES_MIN_RATIO else None

    def configuration(
        self, name: str, spacing_mm: Array, shape: Array, voxels_per_case: float, batch_dice: bool
    ) -> Configuration:
        n_axes, reasons = len(spacing_mm), [f"spacing {_numbers(spacing_mm)} mm, median shape {_numbers(shape)}"]
        base = self._override("features_base", name, n_axes) or FEATURES_BASE
        planned_patch = self._override("patch_size", name, n_axes)
        if planned_patch:
            stages = topology(spacing_mm, planned_patch)
            reasons.append(
                f"patch {_numbers(stages.patch_size)}: asked for {_numbers(planned_patch)}, strides divide it"
            )
        else:
            stages = self._largest_patch(spacing_mm, shape, base, reasons)
        features = features_per_stage(len(stages.strides), base, n_axes)
        batch = self._override("batch_size", name, n_axes)
        if batch:
            reasons.append(f"batch {batch}: asked for")
        else:
            batch = self._batch(stages, features, voxels_per_case, reasons)
        reasons.append(f"normalisation {', '.join(self.schemes)}; inside the nonzero mask: {self.use_mask}")
        return Configuration(
            architecture="plain",
            spacing_mm=spacing_mm.tolist(),
            patch_size=list(stages.patch_size),
            batch_size=batch,
            median_shape=[float(n) for n in shape],
            features_per_stage=list(features),
            kernel_sizes=[list(kernel) for kernel in stages.kernel_sizes],
            strides=[list(stride) for stride in stages.strides],
            n_conv_per_stage=[CONVS_PER_STAGE] * len(features),
            n_conv_per_stage_decoder=[CONVS_PER_STAGE] * (len(features) - 1),
            normalisation=self.schemes,
            use_mask_for_norm=self.use_mask,
            batch_dice=batch_dice,
            previous_stage=None,
            reasons=reasons,
        )

    def _feature_maps(self, stages: Topology, features: Sequence[int]) -> int:
        return feature_map_size(stages.patch_size, stages.strides, features, self.n_classes)

    def _budget(self, n_axes: int) -> float:
        return REFERENCE_FEATURE_MAPS[n_axes] * self.gpu_memory_gb / REFERENCE_GB

    def _largest_patch(self, spacing_mm: Array, shape: Array, base: int, reasons: list[str]) -> Topology:
        """Start with a patch in the aspect ratio of the spacing, no larger than the median case; shrink it to fit."""
        n_axes = len(spacing_mm)
        aspect = 1 / spacing_mm
        edge = aspect * (START_PATCH_VOXELS[n_axes] / math.prod(aspect)) ** (1 / n_axes)
        stages = topology(spacing_mm, [min(round(e), n) for e, n in zip(edge, shape, strict=True)])
        shrunk = 0
        while self._feature_maps(
            stages, features_per_stage(len(stages.strides), base, n_axes)
        ) * MIN_BATCH / REFERENCE_BATCH[n_axes] > self._budget(n_axes):
            stages, shrunk = _shrink(stages, spacing_mm, shape), shrunk + 1
        reasons.append(
            f"patch {_numbers(stages.patch_size)}: median shape, shrunk {shrunk} times to fit {self.gpu_memory_gb:g} GB"
        )
        return stages

    def _batch(self, stages: Topology, features: Sequence[int], voxels_per_case: float, reasons: list[str]) -> int:
        n_axes = len(stages.patch_size)
        fits = round(self._budget(n_axes) / self._feature_maps(stages, features) * REFERENCE_BATCH[n_axes])
        share = round(voxels_per_case * self.n_cases * MAX_DATASET_SHARE / math.prod(stages.patch_size))
        batch = max(min(fits, share), MIN_BATCH)
        reasons.append(f"batch {batch}: {fits} fit into memory, {share} show 5 % of the dataset, at least {MIN_BATCH}")
        return batch


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


def _numbers(values: Numbers) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
