"""A plan made elsewhere, from `plan.file`: plan.json of segpipe, or plans.json of nnU-Net."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.prepare.nnunet_plans import ARCHITECTURES, NAMES, from_nnunet
from segpipe.prepare.plan import Configuration
from segpipe.prepare.schemes import SCHEMES

SETTING = "params.yaml: plan.file"
OF_CT = ("mean", "std", "percentile_00_5", "percentile_99_5")
POSITIVE = (
    *("spacing_mm", "patch_size", "batch_size", "features_per_stage", "kernel_sizes", "strides"),
    *("n_conv_per_stage", "n_conv_per_stage_decoder"),
)


@dataclass(frozen=True)
class _Plan:
    """What plan.json holds."""

    transpose_forward: list[int]
    transpose_backward: list[int]
    configurations: dict[str, Configuration]
    intensities: dict[str, dict[str, FiniteFloat]]
    reasons: list[str] = field(default_factory=list)
    not_planned: dict[str, str] = field(default_factory=dict)


def read(path: Path, channel_names: list[str]) -> dict[str, Any]:
    """The plan of a file as plan.json has it. Keys that mean nothing here are left out.

    channel_names : of the dataset that it is to be used for
    Raises SegpipeError where the file is absent, no plan, or one that cannot be for this dataset.
    """
    content = _json(path)
    plan = _typed(content if "intensities" in content else _from_nnunet(content, path), path)
    raise_all(str(path), _problems(plan, channel_names, path))
    reasons = [f"taken from {path.name}, as params.yaml asks for (plan.file)", *plan.reasons]
    return asdict(replace(plan, reasons=reasons))


def _json(path: Path) -> dict[str, Any]:
    expected = "plan.json of segpipe, or plans.json of nnU-Net"
    if not path.is_file():
        cure = "correct the path, which starts from the working directory, or set null"
        raise SegpipeError(problem("no plan", where=SETTING, found=f"no file {path}", expected=expected, cure=cure))
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        content = error
    if isinstance(content, dict) and isinstance(content.get("configurations"), dict):
        return content
    found = f"{path}: {content}" if isinstance(content, ValueError) else f"{path} without `configurations`"
    raise SegpipeError(
        problem("the file is no plan", where=SETTING, found=found, expected=expected, cure="take a complete plan")
    )


def of_nnunet(plans: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Our plan from nnU-Net's, whatever a hand has made of it.

    where : the file, for messages
    Raises SegpipeError as `from_nnunet` does, and for values of other types than nnU-Net writes.
    """
    try:
        return from_nnunet(plans, where)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        found = f"{type(error).__name__}: {error}"
        raise SegpipeError(
            _problem("a value of the plan is wrong", where, found, "values as nnU-Net writes them")
        ) from None


def _from_nnunet(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The plan of nnU-Net's plans.json as plan.json has it."""
    plan = of_nnunet(content, path)
    return plan | {"configurations": {name: asdict(value) for name, value in plan["configurations"].items()}}


def _typed(content: Mapping[str, Any], path: Path) -> _Plan:
    """Raises SegpipeError for every value that is absent or of another type."""
    try:
        return TypeAdapter(_Plan).validate_python(content)
    except ValidationError as error:
        problems = [_of_value(item, path) for item in error.errors()]
    raise SegpipeError("\n\n".join(problems))


def _of_value(item: Any, path: Path) -> str:
    where = f"{path}: {'.'.join(map(str, item['loc']))}"
    found = "nothing" if item["type"] == "missing" else item["input"]
    cure = "write the plan anew, or correct the value"
    return problem("a value of the plan is wrong", where=where, found=found, expected=item["msg"], cure=cure)


def _problems(plan: _Plan, channel_names: list[str], path: Path) -> Iterator[str]:
    """What does not fit together, or does not fit the dataset."""
    forward, backward = plan.transpose_forward, plan.transpose_backward
    if sorted(forward) != [0, 1, 2] or backward != [forward.index(axis) for axis in range(3)]:
        yield _problem(
            "the axes are no order of 0, 1, 2 and back", path, f"{forward} and {backward}", "[0, 1, 2] twice"
        )
    for index, channel in enumerate(channel_names):
        known = plan.intensities.get(str(index))
        ct = any("ct" in planned.normalisation[index : index + 1] for planned in plan.configurations.values())
        absent = [key for key in OF_CT if ct and key not in (known or {})]
        if known is None or absent:
            lacking = f"no {', '.join(absent)} of {channel}" if known else f"none of {channel}"
            yield _problem("no intensities of a channel", path, lacking, "those of every channel")
    for name, planned in plan.configurations.items():
        for key, found, expected in _differences(name, planned, plan.configurations, len(channel_names)):
            yield _problem("the plan does not fit together", f"{path}: configurations.{name}.{key}", found, expected)


def _differences(
    name: str, planned: Configuration, others: Mapping[str, Configuration], n_channels: int
) -> Iterator[tuple[str, object, str]]:
    """(key, found, expected) of what is wrong in one configuration."""
    n_axes, n_stages = 2 if name == "2d" else 3, len(planned.features_per_stage)
    before = [None, *(other for other in others if other != name)]
    for key, value, choices in (
        ("name", name, NAMES),
        ("architecture", planned.architecture, tuple(ARCHITECTURES.values())),
        ("previous_stage", planned.previous_stage, before),
        *(("normalisation", scheme, SCHEMES) for scheme in planned.normalisation),
    ):
        if value not in choices:
            yield key, value, " or ".join(map(str, choices))
    for keys, length, what in (
        (("spacing_mm", "patch_size", "median_shape"), n_axes, "axis"),
        (("kernel_sizes", "strides", "n_conv_per_stage"), n_stages, "stage"),
        (("n_conv_per_stage_decoder",), n_stages - 1, "stage of the decoder"),
        (("normalisation", "use_mask_for_norm"), n_channels, "channel of the dataset"),
    ):
        for key in keys:
            if len(getattr(planned, key)) != length:
                yield key, getattr(planned, key), f"{length}: one per {what}"
    for key in POSITIVE:
        value = getattr(planned, key)
        numbers = np.hstack(value or [1]) if isinstance(value, list) else value
        if not np.min(numbers) > 0:
            yield key, value, "numbers above 0"
    for key in ("kernel_sizes", "strides"):
        if any(len(edges) != n_axes for edges in getattr(planned, key)):
            yield key, getattr(planned, key), f"{n_axes} numbers per stage: one per axis"
    for axis, edge in enumerate(planned.patch_size):
        total = math.prod(stride[axis] for stride in planned.strides if axis < len(stride))
        if total > 0 and edge % total:
            yield "patch_size", edge, f"along axis {axis} a multiple of {total}, the product of the strides"


def _problem(what: str, where: object, found: object, expected: str) -> str:
    cure = "take a plan that was made for such a dataset, or correct the file"
    return problem(what, where=where, found=found, expected=expected, cure=cure)
