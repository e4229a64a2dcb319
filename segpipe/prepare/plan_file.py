"""A plan made elsewhere, from `plan.file`: plan.json of segpipe, or plans.json of nnU-Net."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.prepare.nnunet_plans import ARCHITECTURES, NAMES, from_nnunet
from segpipe.prepare.plan import Configuration
from segpipe.prepare.schemes import SCHEMES

SETTING = "params.yaml: plan.file"
FIELDS = [field.name for field in fields(Configuration)]


def read(path: Path, channel_names: list[str]) -> dict[str, Any]:
    """The plan of a file as plan.json has it. Keys that mean nothing here are left out.

    channel_names : of the dataset that it is to be used for
    Raises SegpipeError where the file is absent, no plan, or one that cannot be for this dataset.
    """
    content = _json(path)
    plan = _own(content, path) if "intensities" in content else from_nnunet(content, path)
    raise_all(str(path), _problems(plan, channel_names, path))
    plan["configurations"] = {name: asdict(value) for name, value in plan["configurations"].items()}
    plan["reasons"] = [f"taken from {path.name}, as params.yaml asks for (plan.file)", *plan["reasons"]]
    return plan


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


def _own(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """plan.json with its configurations as `Configuration`."""
    problems, configurations = [], {}
    for name, values in content["configurations"].items():
        known = {key: value for key, value in values.items() if key in FIELDS}
        try:
            configurations[name] = TypeAdapter(Configuration).validate_python(known)
        except ValidationError as error:
            problems += [_of_value(item, f"{path}: configurations.{name}") for item in error.errors()]
    raise_all(str(path), problems)
    return {
        "transpose_forward": content.get("transpose_forward"),
        "transpose_backward": content.get("transpose_backward"),
        "reasons": content.get("reasons", []),
        "not_planned": content.get("not_planned", {}),
        "configurations": configurations,
        "intensities": content["intensities"],
    }


def _of_value(item: Any, where: str) -> str:
    key = ".".join(map(str, item["loc"]))
    found = "nothing" if item["type"] == "missing" else item["input"]
    cure = "write the plan anew, or correct the value"
    return problem("a value of the plan is wrong", where=f"{where}.{key}", found=found, expected=item["msg"], cure=cure)


def _problems(plan: Mapping[str, Any], channel_names: list[str], path: Path) -> Iterator[str]:
    """What does not fit together, or does not fit the dataset."""
    forward, backward = plan["transpose_forward"], plan["transpose_backward"]
    if sorted(forward or []) != [0, 1, 2] or backward != [forward.index(axis) for axis in range(3)]:
        yield _problem(
            "the axes are no order of 0, 1, 2 and back", path, f"{forward} and {backward}", "[0, 1, 2] twice"
        )
    absent = [name for index, name in enumerate(channel_names) if str(index) not in plan["intensities"]]
    if absent:
        yield _problem("no intensities of a channel", path, f"none of {', '.join(absent)}", "those of every channel")
    for name, planned in plan["configurations"].items():
        for key, found, expected in _differences(name, planned, plan["configurations"], len(channel_names)):
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
    for axis, edge in enumerate(planned.patch_size):
        total = 1
        for stride in planned.strides:
            total *= stride[axis] if axis < len(stride) else 1
        if edge % total:
            yield "patch_size", edge, f"along axis {axis} a multiple of {total}, the product of the strides"


def _problem(what: str, where: object, found: object, expected: str) -> str:
    cure = "take a plan that was made for such a dataset, or correct the file"
    return problem(what, where=where, found=found, expected=expected, cure=cure)
