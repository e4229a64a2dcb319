"""The configurations of one fold together: the mean of their saved softmax, scored."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.evaluation import metrics, summary
from segpipe.inference import mean_softmax
from segpipe.inference.kept import Kept
from segpipe.params import Evaluate, Params

log = getLogger(__name__)

SEGMENTATIONS = "segmentations"
SHARED = ("dataset", "checkpoint", "validate")  # of the identities, what every member has in common


@dataclass(frozen=True)
class Member:
    """One validation folder and its summary."""

    folder: Path
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Member":
        """What the rule `validate` wrote."""
        return cls(folder, digest.read_json(folder / "summary.json"))

    @property
    def configuration(self) -> str:
        """By name."""
        return str(self.summary["configuration"])

    @property
    def cases(self) -> list[str]:
        """The case files of its summary, by name."""
        return [Path(row["prediction_file"]).name for row in self.summary["metric_per_case"]]

    def softmax(self, case: str) -> Path:
        """The saved softmax of a case."""
        return self.folder / "softmax" / f"{case}.npz"


def ensemble(cases: Cases, folders: list[Path], out: Path, params: Params) -> None:
    """Write the fold's summary.json and segmentations/.

    One member is taken over as it is; of several the softmax is averaged, case by case, several at once.

    Raises SegpipeError where the members do not belong together.
    """
    members = [Member.read(folder) for folder in folders]
    belong_together(members)
    state = out.parent / "state"
    with digest.exclusive(state / ".lock", f"ensemble of {len(members)}"):
        kept = Kept.of(state / "ensemble", [made_of(members), how(params), digest.of_code("ensemble")])
        work = _Ensemble(cases, members, kept, out, params)
        rows = _average_all(work) if len(members) > 1 else _take_over(members[0], out)
        source = kept.path(SEGMENTATIONS) if len(members) > 1 else members[0].folder / SEGMENTATIONS
        out.unlink(missing_ok=True)  # never an old summary beside new segmentations
        with digest.new_folder(out.parent / SEGMENTATIONS) as folder:
            for name in members[0].cases:
                image.copy(source / name, folder)
        digest.write_json(out, _summary(members, rows, params))
        kept.remove()
    dice = summary.readable(summary.tables(rows)["foreground_mean"]["Dice"])
    log.info("fold %s: mean foreground Dice %s", members[0].summary["fold"], dice)


def belong_together(members: Sequence[Member]) -> None:
    """Members need the same data, fold, cases and way of validation; their training differs by nature.

    Raises SegpipeError where they do not.
    """

    def shared(member: Member) -> dict[str, Any]:
        identity = {key: value for key, value in member.summary["identity"].items() if key != "training"}
        return {**identity, "fold": member.summary["fold"], "cases": digest.of(member.cases)}

    summary.require_same("members", {os.fspath(member.folder): shared(member) for member in members})


def made_of(members: Sequence[Member]) -> list[str]:
    """Identities of validations, down to what they say of each case."""
    return [digest.of_file(member.folder / "summary.json") for member in members]


def how(params: Params) -> str:
    """Identity of the settings that averaging and scoring follow."""
    return digest.of([params.configurations, params.ensemble.of(params.configurations), params.evaluate.scoring()])


def by_fold(members: Sequence[Member], params: Params) -> dict[str, dict[str, Member]]:
    """The members by fold and configuration.

    Raises SegpipeError where they do not belong together.
    """
    folds: dict[str, dict[str, Member]] = {}
    for member in members:
        folds.setdefault(str(member.summary["fold"]), {})[member.configuration] = member
    for of_fold in folds.values():
        belong_together(list(of_fold.values()))
    for name in params.configurations:
        identities = {str(of_fold[name].folder): of_fold[name].summary["identity"] for of_fold in folds.values()}
        summary.require_same(f"folds of {name}", identities)
    return folds


def identity_of_all(folds: dict[str, dict[str, Member]], params: Params) -> dict[str, Any]:
    """What members of several folds and configurations are made of, down to each network."""
    first = next(iter(folds.values()))
    shared = first[params.configurations[0]].summary["identity"]
    return {
        **{key: shared[key] for key in SHARED},
        "training": {name: first[name].summary["identity"]["training"] for name in params.configurations},
        "networks": {
            fold: {name: one.summary["digest"] for name, one in found.items()} for fold, found in folds.items()
        },
    }


def _take_over(member: Member, out: Path) -> list[summary.CaseRow]:
    return [
        {**row, "prediction_file": os.fspath(out.parent / SEGMENTATIONS / name)}
        for name, row in zip(member.cases, member.summary["metric_per_case"], strict=True)
    ]


@dataclass(frozen=True)
class _Ensemble:
    """What is averaged; segmentations wait in what is kept until all are done, and then go beside `out`."""

    cases: Cases
    members: list[Member]
    kept: Kept
    out: Path
    params: Params

    def file(self, case: str) -> Path:
        """A finished segmentation."""
        return self.kept.path(SEGMENTATIONS) / f"{case}{self.cases.label_ending}"


def _average_all(work: _Ensemble) -> list[summary.CaseRow]:
    ids = [name.removesuffix(work.cases.label_ending) for name in work.members[0].cases]
    at_once = mean_softmax.at_once([work.cases.entry(case)["shape"] for case in ids], work.params.runtime.threads)
    return work.kept.each("ensemble", ids, lambda case: _average(work, case), at_once, work.file)


def _average(work: _Ensemble, case: str) -> summary.CaseRow:
    cases, path = work.cases, work.file(case)
    weights = work.params.ensemble.of([member.configuration for member in work.members])
    segmentation = mean_softmax.label_map([member.softmax(case) for member in work.members], weights, cases.labels)
    cases.write_segmentation(path, segmentation, case)
    return scored(cases, case, segmentation, work.out.parent / SEGMENTATIONS / path.name, work.params.evaluate)


def scored(cases: Cases, case: str, segmentation: NDArray[np.int16], path: Path, settings: Evaluate) -> summary.CaseRow:
    """The row of a segmentation, (Z, Y, X), that is or will be in the file `path`."""
    of_case = cases.labels, cases.annotated(case), cases.entry(case)["spacing_mm"], settings
    numbers = metrics.case_metrics(segmentation, cases.read_label(case), *of_case)
    return summary.case_row(numbers, os.fspath(path), next(iter(cases.entry(case)["label"])))


def _summary(members: list[Member], rows: list[summary.CaseRow], params: Params) -> dict[str, Any]:
    first = members[0].summary
    weights = params.ensemble.of([member.configuration for member in members])
    trainings = {
        member.configuration: [member.summary["identity"]["training"], weight]
        for member, weight in zip(members, weights, strict=True)
    }
    differs = {"training": digest.of(trainings), "evaluate": digest.of(params.evaluate.scoring())}
    kept = ("digest", "epoch", "settings", "training", "precision", "foreground_mean", "mean")
    return {
        **summary.tables(rows),
        "fold": first["fold"],
        "checkpoint": first["checkpoint"],
        "labels": first["labels"],
        "identity": {**first["identity"], **differs},
        "members": {
            member.configuration: {"weight": weight, **{key: member.summary[key] for key in kept}}
            for member, weight in zip(members, weights, strict=True)
        },
        "versions": summary.versions(),
    }
