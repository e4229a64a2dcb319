"""What experiments have come to: their summaries, read once."""

import json
import math
import re
import shlex
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe import params as params_yaml
from segpipe.data import image
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.experiments import patients
from segpipe.experiments.patients import Patients
from segpipe.params import PARAMS_FILE

Json = dict[str, Any]
Numbers = dict[str, float | None]
CONFIGURATIONS = typing.get_args(params_yaml.Configuration)


@dataclass(frozen=True)
class Result:
    """One line of a comparison: an experiment, one of its configurations, or a summary.json from anywhere.

    name : the path as it was given; of : configurations behind it, as one text
    cases : numbers by case and by class as summary.json calls it; fold_of : fold by case, as far as known
    classes : the names of classes, as far as known
    identity : of the summary, empty for nnU-Net's; mixed : whether its folds have different ones
    recorded : the sections of params.yaml that the summary says it was made with
    patients : None where each case counts as one
    params : params.yaml as it is now; None where there is none
    """

    name: str
    of: str
    cases: Mapping[str, Mapping[str, Numbers]]
    fold_of: Mapping[str, str]
    classes: Mapping[str, str]
    identity: Json = field(default_factory=dict)
    mixed: bool = False
    recorded: Json = field(default_factory=dict)
    params: Json | None = None
    patients: Patients | None = None

    @property
    def folder(self) -> Path:
        """Where its params.yaml lies, if it has one."""
        return _folder(Path(self.name))

    @property
    def keys(self) -> list[str]:
        """The classes, as summary.json calls them."""
        return list(next(iter(self.cases.values())))

    def called(self, key: str) -> str:
        """A class by its name, or as summary.json calls it."""
        return self.classes.get(key, key)

    @property
    def folds(self) -> list[str]:
        """Those that are known."""
        return sorted(set(self.fold_of.values()))

    @property
    def checkpoint(self) -> str | None:
        """final or best."""
        return self.identity.get("checkpoint")


def read(path: Path) -> list[Result]:
    """An experiment with its configurations, where there are several; or one summary.json, of nnU-Net as well.

    path : folder of an experiment, its results/, a folder with a summary.json, or such a file
    Raises SegpipeError where there is no summary, or a file is none.
    """
    results = path / "results" if (path / "results").is_dir() else path
    params = _params(path)
    together = _together(results)
    of = patients.known(together.values(), _folder(path), params)
    if together:
        whole = _result(path, together, params, of)
        alone = _alone(results, whole.checkpoint or "final") if len(_members(together)) > 1 else {}
        return [whole, *(_result(path, files, params, of) for files in alone.values())]
    checkpoint = str(((params or {}).get("validate") or {}).get("checkpoint", "final"))
    if alone := _alone(results, checkpoint):
        return [_result(path, files, params, of) for files in alone.values()]
    single = path if path.is_file() else path / "summary.json"
    if not single.is_file():
        raise _nothing(path)
    content = _json(single)
    return [_result(path, {single: content}, None, patients.known([content], path, None))]


def _params(path: Path) -> Json | None:
    file = _folder(path) / PARAMS_FILE
    content = params_yaml.parse(file.read_text(), file) if file.is_file() else None
    return content if isinstance(content, dict) else None


def _folder(path: Path) -> Path:
    return path.parent if path.name == "results" else path


def _together(results: Path) -> dict[Path, Json]:
    """Of all configurations: the cross-validation and the folds that are in it, else the folds that there are."""
    crossval = results / "crossval/summary.json"
    folds = [path for path in sorted(results.glob("fold_*/summary.json")) if path.parent.name != "fold_all"]
    if not crossval.is_file():
        return {path: _json(path) for path in folds}
    content = _json(crossval)
    return {crossval: content, **{path: _json(path) for path in folds if _fold(path.parent.name) in content["folds"]}}


def _alone(results: Path, checkpoint: str) -> dict[str, dict[Path, Json]]:
    """Of each configuration: the validations of its folds."""
    found = {
        name: sorted(results.glob(f"{name}/fold_[0-9]*/validation_{checkpoint}/summary.json"))
        for name in CONFIGURATIONS
    }
    return {name: {path: _json(path) for path in paths} for name, paths in found.items() if paths}


def _members(contents: Mapping[Path, Json]) -> Json:
    """What was averaged in the folds, by configuration."""
    return next((content["members"] for content in contents.values() if content.get("members")), {})


def _result(path: Path, contents: Mapping[Path, Json], params: Json | None, of: Patients | None) -> Result:
    """One line, of a cross-validation with its folds, of folds, or of one summary."""
    first = next(iter(contents.values()))
    parts = [first] if "folds" in first else list(contents.values())
    rows = [row for content in parts for row in content["metric_per_case"]]
    members = _members(contents)
    made = next(iter(members.values()), first)
    identities = [content.get("identity", {}) for content in contents.values()]
    names = [_case(row) for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        found, cure = ", ".join(twice), "name the folds' summary.json, one by one"
        raise SegpipeError(
            problem("cases that come twice", where=path, found=found, expected="each case in one fold", cure=cure)
        )
    fold_of = {_case(row): fold for row in rows if (fold := _fold(row["prediction_file"]))}
    return Result(
        name=str(path),
        of=" + ".join(members) or str(first.get("configuration", "-")),
        cases={
            name: {key: _numbers(values) for key, values in row["metrics"].items()}
            for name, row in zip(names, rows, strict=True)
        },
        fold_of=fold_of,
        classes=_names(first.get("labels")),
        identity=identities[0],
        mixed=any(identity != identities[0] for identity in identities),
        recorded=dict(made.get("settings", {})),
        params=params,
        patients=of,
    )


def _names(labels: Any) -> dict[str, str]:
    if not labels:
        return {}
    parsed = Labels.from_json(labels)
    return {parsed.key(name): name for name in parsed.foreground}


def _numbers(values: Mapping[str, Any]) -> Numbers:
    """nnU-Net's summary.json has NaN where ours has null."""
    return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}


def _case(row: Json) -> str:
    name = re.split(r"[/\\]", row["prediction_file"])[-1]
    ending = next((end for end in image.FILE_ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def _fold(path: str) -> str | None:
    """`0` of results/fold_0/segmentations/case.nii.gz; None where no folder is called after a fold."""
    found = re.findall(r"(?:^|[/\\])fold_(\w+)(?=[/\\]|$)", path)
    return found[-1] if found else None


def _json(path: Path) -> Json:
    try:
        content: Json = digest.read_json(path)
        rows = content["metric_per_case"]
        if rows and all(row["metrics"] and row["prediction_file"] for row in rows):
            return content
        found = "no case in metric_per_case"
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    expected, cure = "a summary.json of segpipe or nnU-Net", "leave the file out, or make it again"
    raise SegpipeError(problem("not a summary", where=path, found=found, expected=expected, cure=cure))


def _nothing(path: Path) -> SegpipeError:
    expected = "results/crossval/summary.json, results/fold_0/summary.json, a validation's, or summary.json itself"
    if not path.exists():
        found, cure = "no such file or folder", "correct the path"
    elif (path / PARAMS_FILE).is_file():
        found = "an experiment that has not come to a summary"
        cure = f"run: snakemake --cores all --directory {shlex.quote(str(path))}; or leave it out with --only-finished"
    else:
        found, cure = "neither an experiment nor a summary", "leave it out"
    return SegpipeError(problem("no results", where=path, found=found, expected=expected, cure=cure))
