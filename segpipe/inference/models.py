"""A MODEL: a folder with <configuration>/fold_<k>/checkpoint_{final,best}.pth, each with its plan and labels.

`results/` of a pipeline is one; what `segpipe import-nnunet` writes is another, with a model.json that says where it
is from.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.inference import predict
from segpipe.inference.predict import Model
from segpipe.training import checkpoint

MODEL_FILE = "model.json"

Checkpoints = dict[str, dict[str, Path]]  # configuration to fold to file


@dataclass(frozen=True)
class Ensemble:
    """The models of several configurations.

    models : by configuration, each behind the stage before it
    counted : those whose probabilities are averaged; the others are only the stage before of one of them
    weights : of each counted one in the mean; their sum is 1
    """

    models: dict[str, Model]
    counted: tuple[str, ...]
    weights: dict[str, float]

    @property
    def content(self) -> dict[str, Any]:
        """The plain data of the first counted checkpoint; dataset, channels and labels are those of all."""
        return self.models[self.counted[0]].content

    @property
    def labels(self) -> Labels:
        """The classes that all of them predict."""
        return self.models[self.counted[0]].labels


def find(
    model: Path, kind: str, configurations: Sequence[str] | None = None, folds: Sequence[str] | None = None
) -> Checkpoints:
    """The checkpoints of a MODEL folder, with those of the stages before.

    kind : final or best
    configurations : those asked for; None: all that are not the stage before of another one
    folds : None: all numbered ones, or `all` where there is no other
    Raises SegpipeError where something that is asked for is not there.
    """
    present = _present(model, kind)
    if not present:
        raise _missing("no model", model, _listed(model), f"<configuration>/fold_<k>/checkpoint_{kind}.pth", "--model")
    before = {name: _stage_before(next(iter(paths.values()))) for name, paths in present.items()}
    wanted = list(configurations or [name for name in present if name not in before.values()])
    wanted += [stage for name in wanted if (stage := before.get(name))]
    found: Checkpoints = {}
    for name in dict.fromkeys(wanted):
        if name not in present:
            raise _missing("no such configuration", model, f"only {', '.join(present)}", name, "--configurations")
        numbered = [fold for fold in present[name] if fold != "all"]
        asked = folds or numbered or ["all"]
        absent = [fold for fold in asked if fold not in present[name]]
        if absent:
            found_folds, asked_for = f"only folds {', '.join(present[name])}", f"folds {', '.join(absent)} as well"
            raise _missing("no such fold", model / name, found_folds, asked_for, "--folds")
        found[name] = {fold: present[name][fold] for fold in asked}
    return found


def counted(found: Checkpoints) -> list[str]:
    """The configurations that are not only the stage before of another one."""
    stages = {_stage_before(next(iter(paths.values()))) for paths in found.values()}
    return [name for name in found if name not in stages]


def _present(model: Path, kind: str) -> Checkpoints:
    found: Checkpoints = {}
    for path in sorted(model.glob(f"*/fold_*/checkpoint_{kind}.pth")):
        found.setdefault(path.parents[1].name, {})[path.parent.name.removeprefix("fold_")] = path
    return found


def _stage_before(path: Path) -> str | None:
    content = checkpoint.peek(path)
    stage: str | None = content["plan"]["configurations"][content["configuration"]]["previous_stage"]
    return stage


def _listed(model: Path) -> str:
    if not model.is_dir():
        return "no folder"
    return ", ".join(str(path.relative_to(model)) for path in sorted(model.glob("*/fold_*/*.pth"))) or "no checkpoint"


def _missing(what: str, where: Path, found: str, expected: str, option: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=f"correct {option}"))


def needed(paths: Sequence[Path], wanted: Collection[str]) -> list[Path]:
    """Of some checkpoints those of the wanted configurations and of the stages before them."""
    contents = {path: checkpoint.peek(path) for path in paths}
    names = {*wanted, *(_stage_before(path) for path, one in contents.items() if one["configuration"] in wanted)}
    return [path for path, one in contents.items() if one["configuration"] in names]


def load(
    paths: Sequence[Path],
    wanted: Collection[str],
    on: torch.device,
    weights: str,
    precision: str = predict.TRAINED,
    shares: Mapping[str, float] | None = None,
) -> Ensemble:
    """Load checkpoints of one or several configurations onto a device.

    wanted : the configurations whose probabilities are averaged
    weights : raw, or averaged for the running mean that train.ema keeps
    precision : as validate.precision has it
    shares : of the configurations in the mean, in any unit; None: equal
    Raises SegpipeError where members do not belong together or the stage before of one is missing.
    """
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(checkpoint.peek(path)["configuration"], []).append(path)
    models = {name: predict.load(group, on, weights, precision) for name, group in groups.items()}
    _require_stages(models)
    _require_one_dataset(models)
    ordered = sorted(models, key=lambda name: _depth(models, name))
    counted = tuple(name for name in groups if name in wanted)
    parts = {name: shares[name] if shares else 1.0 for name in counted}
    total = sum(parts.values())
    return Ensemble(
        {name: models[name] for name in ordered}, counted, {name: part / total for name, part in parts.items()}
    )


def _depth(models: dict[str, Model], name: str) -> int:
    stage = models[name].planned.previous_stage
    return 0 if stage is None else 1 + _depth(models, stage)


def _require_stages(models: dict[str, Model]) -> None:
    for name, model in models.items():
        stage = model.planned.previous_stage
        if stage is not None and stage not in models:
            raise SegpipeError(
                problem(
                    "the stage before a cascade is missing",
                    where=name,
                    found=f"models of {', '.join(models)}",
                    expected=f"models of {stage} as well",
                    cure=f"add the checkpoints of {stage}",
                )
            )


def _require_one_dataset(models: dict[str, Model]) -> None:
    """Labels, channels and orientation are those of all, whatever the plans are."""
    said = {
        name: (model.labels.to_json(), model.content["channel_names"], model.content["dataset"]["orientation"])
        for name, model in models.items()
    }
    first = next(iter(said))
    for name, value in said.items():
        if value != said[first]:
            raise SegpipeError(
                problem(
                    "models of different datasets",
                    where=f"{name} and {first}",
                    found=value,
                    expected=said[first],
                    cure="predict with one of them, or train both on the same dataset",
                )
            )
