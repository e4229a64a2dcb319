"""From the fingerprint and the settings to the plan: pure, and with a reason for every decision.

Rules and constants of nnunetv2/experiment_planning/experiment_planners/default_experiment_planner.py. Spacings and
shapes are in the plan's axis order: the axis with the largest spacing first (`transpose_forward`).
"""

import math
from dataclasses import asdict, dataclass, replace
from logging import getLogger
from typing import Any

import numpy as np

from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import CASCADE, FULLRES, LOWRES
from segpipe.params import Plan as Settings
from segpipe.prepare import schemes
from segpipe.prepare.plan import Configuration
from segpipe.prepare.presets import PRESETS
from segpipe.prepare.sizing import Sizing, listed, pooling
from segpipe.prepare.spacing import Array, axis_order, resampled_shape, target_spacing
from segpipe.prepare.topology import Topology, features_per_stage, topology

log = getLogger(__name__)

FEATURES_BASE = 32
LOWRES_BELOW = 0.25  # 3d_lowres is planned where a patch sees less of the median case
LOWRES_STEP = 1.03
LOWRES_MIN_RATIO = 2  # and kept where its median case has that many times fewer voxels
FAR_TOO_LARGE = 1.5  # times the memory target: worth a warning


@dataclass(frozen=True)
class Dataset:
    """What planning needs of the fingerprint and of dataset.json.

    spacings_mm, shapes : (cases, 3), in the order of the files
    n_classes : entries of `labels` in dataset.json, background and ignore label included
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
            len(cases.labels.names) + (cases.labels.ignore is not None),
            cases.channel_names,
        )


def plan_dataset(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """The plan: axis order and all configurations that the dataset allows, and why there are no others.

    Raises SegpipeError for overrides that do not fit the dataset. Logs those that are rounded or ask for too much.
    """
    target_mm, why = target_spacing(dataset.spacings_mm, dataset.shapes)
    forward = axis_order(target_mm)
    planner = _Planner(dataset, settings, forward)
    planner.plan(target_mm[forward])
    for text in planner.warnings():
        log.warning("params.yaml: plan.overrides: %s", text)
    return {
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "reasons": [
            f"preset {settings.preset} for {planner.sizing.gpu_memory_gb:g} GB",
            f"target spacing {listed(target_mm)} mm in the order of the files: {why}",
            f"axes in the order {', '.join(map(str, forward))} of the files: the largest spacing first",
            *planner.normalised,
        ],
        "not_planned": planner.not_planned,
        "configurations": {name: asdict(value) for name, value in planner.planned.items()},
    }


class _Planner:
    """The configurations of one dataset; holds what all of them share."""

    def __init__(self, dataset: Dataset, settings: Settings, forward: list[int]) -> None:
        preset, self.overrides = PRESETS[settings.preset], settings.overrides
        self.sizing = Sizing(preset, settings.gpu_memory_gb or preset.gb, dataset.n_classes)
        self.n_cases = len(dataset.shapes)
        self.spacings_mm, self.shapes = dataset.spacings_mm[:, forward], dataset.shapes[:, forward]
        self.schemes, reasons = schemes.chosen(dataset.channel_names, settings.normalisation)
        self.use_mask, reason = schemes.masked(self.schemes, dataset.relative_size)
        self.normalised = [*reasons, reason]
        self.planned: dict[str, Configuration] = {}
        self.not_planned: dict[str, str] = {}

    def plan(self, target_mm: Array) -> None:
        """Fill `planned` and `not_planned`."""
        in_plane_mm = self._spacing("2d", target_mm[1:])
        shape = self._median_shape(np.array([target_mm[0], *in_plane_mm]))
        planned = self._configuration("2d", in_plane_mm, shape[1:], math.prod(shape))
        self.planned["2d"] = _because(replace(planned, batch_dice=True), "Dice over the whole batch, as for all slices")
        if shape[0] == 1:
            self.not_planned = dict.fromkeys((FULLRES, LOWRES, CASCADE), "the median case is a single slice")
            return
        fullres_mm = self._spacing(FULLRES, target_mm)
        shape = self._median_shape(fullres_mm)
        fullres = self._configuration(FULLRES, fullres_mm, shape, math.prod(shape))
        lowres = self._lowres(fullres, shape)
        if isinstance(lowres, str):
            self.planned[FULLRES] = _because(fullres, f"Dice of each sample: there is no {LOWRES}")
            self.not_planned = {LOWRES: lowres, CASCADE: f"there is no {LOWRES}"}
            return
        self.planned[LOWRES] = _because(lowres, f"Dice of each sample, as for every {LOWRES}")
        why = "Dice over the whole batch: a patch sees little of a case"
        self.planned[FULLRES] = _because(replace(fullres, batch_dice=True), why)
        self.planned[CASCADE] = self._cascade(target_mm)

    def _cascade(self, target_mm: Array) -> Configuration:
        """Full resolution once more, which sees the segmentation of the low resolution as well."""
        planned = self.planned[FULLRES]
        if self.overrides.name(CASCADE):
            spacing_mm = self._spacing(CASCADE, target_mm)
            shape = self._median_shape(spacing_mm)
            planned = replace(self._configuration(CASCADE, spacing_mm, shape, math.prod(shape)), batch_dice=True)
        return _because(replace(planned, previous_stage=LOWRES), f"also sees what {LOWRES} predicts; planned with it")

    def _median_shape(self, target_mm: Array) -> Array:
        """Median over the cases of their shape at a spacing."""
        pairs = zip(self.shapes, self.spacings_mm, strict=True)
        return np.median([resampled_shape(shape, spacing, target_mm) for shape, spacing in pairs], axis=0)

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

    def _lowres(self, fullres: Configuration, shape: Array) -> Configuration | str:
        """Coarsen the spacing until a patch sees a quarter of the median case; coarse axes wait for the others.

        Returns the configuration, or why there is none.
        """
        fullres_mm = np.array(fullres.spacing_mm)
        if isinstance(self.overrides.spacing_mm, dict) and LOWRES in self.overrides.spacing_mm:
            spacing_mm = self._spacing(LOWRES, fullres_mm)
            coarse_shape = self._median_shape(spacing_mm)
            planned = self._configuration(LOWRES, spacing_mm, coarse_shape, math.prod(coarse_shape))
            return _because(planned, "planned because its spacing is asked for")
        share = math.prod(fullres.patch_size) / math.prod(shape)
        sees = f"a patch of {FULLRES} sees {share:.0%} of the median case"
        if share >= LOWRES_BELOW:
            return f"{sees}; it is planned below {LOWRES_BELOW:.0%}"
        spacing_mm = fullres_mm.copy()
        while share < LOWRES_BELOW:
            finer = spacing_mm.max() / spacing_mm > 2
            spacing_mm[finer if finer.any() else slice(None)] *= LOWRES_STEP
            coarse_shape = fullres_mm / spacing_mm * shape
            voxels = math.prod(coarse_shape)
            planned = self._configuration(LOWRES, spacing_mm, np.round(coarse_shape), voxels)
            share = math.prod(planned.patch_size) / voxels
        ratio = math.prod(shape) / voxels
        if ratio < LOWRES_MIN_RATIO:
            return f"{sees}, but {LOWRES} would have only {ratio:.2g} times fewer voxels, below {LOWRES_MIN_RATIO}"
        why = (
            f"planned because {sees}, below {LOWRES_BELOW:.0%}; spacing coarsened until one of its own sees {share:.0%}"
        )
        return _because(planned, why)

    def _configuration(self, name: str, spacing_mm: Array, shape: Array, voxels_per_case: float) -> Configuration:
        """Patch, batch and network for a spacing; the loss's Dice is of each sample."""
        n_axes = len(spacing_mm)
        base = self._override("features_base", name, n_axes) or FEATURES_BASE
        stages, patch_reason = self._patch(name, spacing_mm, shape, base)
        batch, batch_reason = self._batch(name, stages, base, voxels_per_case)
        layers = self.sizing.preset.layers(features_per_stage(len(stages.strides), base, n_axes))
        return Configuration(
            architecture=self.sizing.preset.architecture,
            spacing_mm=spacing_mm.tolist(),
            patch_size=list(stages.patch_size),
            batch_size=batch,
            median_shape=[float(n) for n in shape],
            features_per_stage=list(layers.features),
            kernel_sizes=[list(kernel) for kernel in stages.kernel_sizes],
            strides=[list(stride) for stride in stages.strides],
            n_conv_per_stage=list(layers.encoder),
            n_conv_per_stage_decoder=list(layers.decoder),
            normalisation=self.schemes,
            use_mask_for_norm=self.use_mask,
            batch_dice=False,
            previous_stage=None,
            reasons=[
                f"spacing {listed(spacing_mm)} mm{self._asked('spacing_mm', name, n_axes)}, "
                f"median shape {listed(shape)}",
                patch_reason,
                pooling(stages),
                f"channels {', '.join(map(str, layers.features))}{self._asked('features_base', name, n_axes)}",
                batch_reason,
                f"memory about {self.sizing.gb(stages, base, batch):.3g} of {self.sizing.gpu_memory_gb:g} GB",
            ],
        )

    def _patch(self, name: str, spacing_mm: Array, shape: Array, base: int) -> tuple[Topology, str]:
        asked = self._override("patch_size", name, len(spacing_mm))
        if not asked:
            return self.sizing.largest_patch(spacing_mm, shape, base)
        stages = topology(spacing_mm, asked)
        rounded = "" if list(stages.patch_size) == asked else ", rounded up to what its strides divide"
        return stages, f"patch {listed(stages.patch_size)}: asked for {listed(asked)}{rounded}"

    def _batch(self, name: str, stages: Topology, base: int, voxels_per_case: float) -> tuple[int, str]:
        asked = self._override("batch_size", name, len(stages.patch_size))
        if asked:
            return asked, f"batch {asked}: asked for"
        return self.sizing.batch(stages, base, voxels_per_case * self.n_cases)

    def _asked(self, key: str, name: str, n_axes: int) -> str:
        return " (asked for)" if self._override(key, name, n_axes) else ""

    def warnings(self) -> list[str]:
        """What became of overrides, where it is not what was asked for."""
        texts = [f"{name} is not planned, so what is given for it counts for nothing: {why}"
                 for name, why in self.not_planned.items() if self.overrides.name(name)]  # fmt: skip
        own = {name: value for name, value in self.planned.items() if name != CASCADE or self.overrides.name(name)}
        for name, planned in own.items():
            n_axes, stages = len(planned.patch_size), topology(planned.spacing_mm, planned.patch_size)
            asked = self._override("patch_size", name, n_axes)
            if asked and asked != planned.patch_size:
                rounded = f"{listed(asked)} is rounded up to {listed(planned.patch_size)}"
                texts.append(f"patch_size: {name}: {rounded}, which the strides divide")
            need = self.sizing.gb(stages, planned.features_per_stage[0], planned.batch_size)
            if need > FAR_TOO_LARGE * self.sizing.gpu_memory_gb:
                texts.append(f"{name} needs about {need:.3g} GB, far more than the {self.sizing.gpu_memory_gb:g} GB of "
                             "plan.gpu_memory_gb")  # fmt: skip
        return texts


def _because(planned: Configuration, reason: str) -> Configuration:
    return replace(planned, reasons=[*planned.reasons, reason])
