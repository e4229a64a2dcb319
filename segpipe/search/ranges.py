"""What is varied: the settings that `search.ranges` names, and whether they take each of the values."""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from segpipe import digest
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params import Params, section
from segpipe.training import check as training_check
from segpipe.training import selection

# Settings of `train` that change how a trial is measured and compared, or that a trial never comes to
FIXED = ("train.best", "train.val_iterations_per_epoch", "train.full_validation", "train.on_extend")
# Settings of `plan` that preprocessing does not depend on, so that the same cases serve every trial
PLANNED = ("plan.preset", "plan.gpu_memory_gb", *(f"plan.overrides.{key}" for key in ("batch_size", "features_base")))
PLANNED += ("plan.overrides.patch_size",)
KEYS = {"low", "high", "log", "step"}
NO_MEASURE = ("epoch", "step", "learning_rate")


@dataclass(frozen=True)
class Range:
    """The values of one setting: `choices`, or the numbers from `low` to `high`.

    whole : only whole numbers; log : drawn by their order of magnitude; step : between neighbours, None for any
    """

    choices: list[Any] | None = None
    low: float = 0
    high: float = 0
    whole: bool = False
    log: bool = False
    step: float | None = None

    def has(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if self.choices is not None:
            return value in self.choices
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0
        return abs(steps - round(steps)) < 1e-8

    def grid(self) -> list[Any]:
        """All values. A range of any numbers has no end of them: `check` refuses it."""
        if self.choices is not None:
            return self.choices
        step = self.step or 1
        return [self.low + i * step for i in range(int((self.high - self.low) / step + 1 + 1e-8))]


def of(params: Params) -> dict[str, Range]:
    """The ranges by the key of their setting; `check` has seen to them."""
    return {key: _range(params, key, given) for key, given in params.search.ranges.items()}


def applied(params: Params, values: Mapping[str, Any]) -> Params:
    """The settings with other values, by dotted key. Raises SegpipeError for those that do not go together."""
    try:
        return Params.model_validate(_raw(params, values))
    except ValidationError as error:
        listed = ", ".join(f"{key}: {written(value)}" for key, value in values.items())
        expected, cure = "settings that go together", "narrow search.ranges"
        what = "values that cannot be used together"
        raise SegpipeError(problem(what, where=listed, found=_said(error), expected=expected, cure=cure)) from None


def value_of(params: Params, key: str) -> Any:
    """The present value of a setting, as plain data."""
    value: Any = params.model_dump(by_alias=True, mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def written(value: Any) -> str:
    """A value as a line of params.yaml has it; numbers with four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def configuration(params: Params) -> str:
    """The one that is trained."""
    return params.search.configuration or params.configurations[0]


def of_study(params: Params) -> dict[str, Any]:
    """The settings that decide what a search finds: not the present values of what is varied, nor how many trials."""
    varied = params.search.ranges
    search = {key: value for key, value in section(params, "search").items() if key not in ("trials", "workers")}
    search["configuration"] = configuration(params)
    train = _without(section(params, "train"), "train", {*varied, "train.on_extend"})
    plan = _without(section(params, "plan"), "plan", varied)
    replanned = any(key.startswith("plan.") for key in varied)
    return {"search": search, "train": train, "validate.checkpoint": params.validate_.checkpoint} | (
        {"plan": plan} if replanned else {}
    )


def code_of_study(params: Params) -> list[str]:
    """Digests of the code that decides the value of a trial."""
    rules = ["train", "search_worker"]
    rules += ["full_validation"] if params.train.full_validation.every is not None else []
    rules += ["plan"] if any(key.startswith("plan.") for key in params.search.ranges) else []
    return [digest.of_code(rule) for rule in rules]


def _without(block: Mapping[str, Any], prefix: str, keys: Mapping[str, Any] | set[str]) -> dict[str, Any]:
    """A block of settings without some of them, by dotted key."""
    left = {}
    for name, value in block.items():
        key = f"{prefix}.{name}"
        if key not in keys:
            left[name] = _without(value, key, keys) if isinstance(value, dict) else value
    return left


def check(params: Params, labels: Labels | None) -> None:
    """Raise SegpipeError naming everything in `search` that cannot work.

    labels : of the dataset; None where it is not there yet
    """
    found = [*_range_problems(params, labels), *_configuration_problems(params)]
    if labels is not None:
        found += _measure_problems(params, list(labels.foreground))
    raise_all("params.yaml: search", found)


def _range_problems(params: Params, labels: Labels | None) -> Iterator[str]:
    if not params.search.ranges:
        expected, cure = "a setting or more", "name what is varied, as train.optimiser.learning_rate: [0.01, 0.02]"
        yield problem("nothing to vary", where="params.yaml: search.ranges", found="{}", expected=expected, cure=cure)
    existing = [key for name in ("train", "plan") for key in _paths(name, section(params, name))]
    known = [key for key in existing if key.startswith(PLANNED if key.startswith("plan.") else "train.")]
    known = [key for key in known if not key.startswith(FIXED)]
    for key, given in params.search.ranges.items():
        where = f"params.yaml: search.ranges.{key}"
        if key not in known:
            yield _no_such_key(key, known, existing, where)
            continue
        shape = _shape_problem(given)
        if shape:
            yield problem("a range that is none", where=where, found=written(given), expected=shape, cure="correct it")
            continue
        values = given if isinstance(given, list) else [given["low"], given["high"]]
        refused = [(value, why) for value in values if (why := _refusal(params, labels, key, value))]
        for value, why in refused:
            yield problem(
                "a value that the setting does not take", where=where, found=written(value), expected=why, cure=CURE
            )
        if not refused and params.search.sampler == "grid" and _is_endless(_range(params, key, given)):
            expected, cure = "a list of choices, or a step", "add `step`, list the values, or take another sampler"
            yield problem("a grid of any numbers", where=where, found=written(given), expected=expected, cure=cure)


CURE = "correct the range; the comment beside the setting says what it takes"


def _no_such_key(key: str, known: list[str], existing: list[str], where: str) -> str:
    if key in existing:
        expected = "a setting that changes how is trained, on the same cases"
        cure = "fix it for all trials: it changes how they are measured, or how cases are prepared"
        return problem("a setting that cannot be varied", where=where, found=key, expected=expected, cure=cure)
    near = [name for name in known if name.endswith(f".{key}")] or difflib.get_close_matches(key, known, 1, 0.75)
    cure = f"did you mean {near[0]!r}?" if near else "give the whole key, as train.optimiser.learning_rate"
    expected = f"a key of `train`, or one of {', '.join(PLANNED)}"
    return problem("no setting that can be varied", where=where, found=key, expected=expected, cure=cure)


def _shape_problem(given: Any) -> str | None:
    """What is expected of a range instead, whatever its setting is."""
    if isinstance(given, list):
        differ = len(given) > 1 and not any(a == b for a, b in itertools.combinations(given, 2))
        return None if differ else "two different choices or more"
    if not isinstance(given, dict) or not given.keys() <= KEYS:
        return "a list of choices, or {low: ..., high: ...}, with `log: true` or a `step`"
    return _ends_problem(given)


def _ends_problem(given: dict[str, Any]) -> str | None:
    if not _is_number(given.get("low")) or not _is_number(given.get("high")) or not given["low"] < given["high"]:
        return "numbers as `low` and `high`, low below high"
    if not isinstance(given.get("log", False), bool):
        return "true or false as `log`"
    if given.get("log", False) and (given["low"] <= 0 or "step" in given):
        return "with `log: true` a low above 0, and no step"
    if "step" in given and not (_is_number(given["step"]) and 0 < given["step"] <= given["high"] - given["low"]):
        return "a step above 0, at most high - low"
    return None


def _refusal(params: Params, labels: Labels | None, key: str, value: Any) -> str | None:
    """Why a setting does not take a value; None where it does."""
    try:
        changed = Params.model_validate(_raw(params, {key: value}))
        if labels is not None:
            training_check.check(changed, labels)
    except ValidationError as error:
        return _said(error)
    except SegpipeError as error:
        return str(error)
    return None


def _configuration_problems(params: Params) -> Iterator[str]:
    if configuration(params) not in params.trained:
        found, expected = params.search.configuration, f"one of `configurations`: {', '.join(params.trained)}"
        where, cure = "params.yaml: search.configuration", "name one of these, or null"
        what = "a configuration that is not prepared"
        yield problem(what, where=where, found=found, expected=expected, cure=cure)


def _measure_problems(params: Params, classes: list[str]) -> Iterator[str]:
    measure, where = params.search.measure, "params.yaml: search.measure"
    known = [name for name in selection.columns(params.train, classes) if name not in NO_MEASURE]
    if measure not in known:
        near = difflib.get_close_matches(measure, known, 1, 0.5)
        cure = f"did you mean {near[0]!r}?" if near else "name a column"
        expected = f"one of {', '.join(known)}"
        yield problem("no such column in metrics.csv", where=where, found=measure, expected=expected, cure=cure)
    of_loss = [key for key in params.search.ranges if key.startswith("train.loss")]
    if measure in selection.LOSSES and of_loss:
        found, expected = f"{measure}, with {', '.join(of_loss)} varied", "a measure that means the same in all trials"
        cure = "measure a Dice, dice_ema say, or leave the loss as it is"
        yield problem("losses that cannot be compared", where=where, found=found, expected=expected, cure=cure)


def _paths(prefix: str, block: Mapping[str, Any]) -> Iterator[str]:
    for name, value in block.items():
        yield f"{prefix}.{name}"
        if isinstance(value, dict):
            yield from _paths(f"{prefix}.{name}", value)


def _range(params: Params, key: str, given: Any) -> Range:
    if isinstance(given, list):
        return Range(choices=given)
    # 0 and 1 are the ends of any share as well: whole is what the setting takes no fraction of
    whole = _refusal(params, None, key, (given["low"] + given["high"]) / 2) is not None
    low, high = (given["low"], given["high"]) if whole else (float(given["low"]), float(given["high"]))
    return Range(low=low, high=high, whole=whole, log=given.get("log", False), step=given.get("step"))


def _is_endless(one: Range) -> bool:
    return one.choices is None and not one.whole and one.step is None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _raw(params: Params, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with other values as plain data, by dotted key."""
    raw = params.model_dump(by_alias=True)
    for key, value in values.items():
        *blocks, name = key.split(".")
        block = raw
        for inner in blocks:
            block = block[inner]
        block[name] = value
    return raw


def _said(error: ValidationError) -> str:
    """What the schema says, on one line."""
    said = (item["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for item in error.errors())
    return "; ".join(dict.fromkeys(said))
