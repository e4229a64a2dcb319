"""The configurations of one fold together: the equal-weight mean of their saved softmax, scored."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.evaluation import metrics, summary
from segpipe.inference import export, softmax_file
from segpipe.params import Evaluate, Params

log = getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One validation folder and its summary."""

    folder: Path
    summary: dict[str, Any]

    @property
    def cases(self) -> list[str]:
        """The case files of its summary, by name."""
        return [Path(row["prediction_file"]).name for row in self.summary["metric_per_case"]]


def ensemble(cases: Cases, folders: list[Path], out: Path, params: Params) -> None:
    """Write the fold's summary.json and segmentations/.

    One member is taken over as it is; of several the softmax is averaged, case by case.

    Raises SegpipeError where the members do not belong together.
    """
    members = [Member(folder, digest.read_json(folder / "summary.json")) for folder in folders]
    _belong_together(members)
    with digest.exclusive(out.parent / "state" / ".lock", f"ensemble of {len(members)}"):
        out.unlink(missing_ok=True)  # never an old summary beside new segmentations
        with digest.new_folder(out.parent / "segmentations") as folder:
            if len(members) == 1:
                rows = _take_over(members[0], folder, out)
            else:
                with ThreadPoolExecutor(params.runtime.threads or os.cpu_count()) as pool:
                    rows = list(
                        pool.map(
                            lambda name: _average(cases, members, name, folder, out, params.evaluate), members[0].cases
                        )
                    )
        digest.write_json(out, _summary(members, rows, params.evaluate))
    dice = summary.readable(summary.tables(rows)["foreground_mean"]["Dice"])
    log.info("fold %s: mean foreground Dice %s", members[0].summary["fold"], dice)


def mean_softmax(paths: Sequence[Path]) -> NDArray[np.float32]:
    """The equal-weight mean of saved softmax files, one in memory at a time. Raises SegpipeError where grids differ."""
    total = softmax_file.load(paths[0]).astype(np.float32)
    for path in paths[1:]:
        one = softmax_file.load(path)
        if one.shape != total.shape:
            raise SegpipeError(
                problem(
                    "softmax of different grids",
                    where=path,
                    found=one.shape,
                    expected=f"{total.shape} as {paths[0]}",
                    cure="validate the members again",
                )
            )
        total += one
    return total / np.float32(len(paths))


def _belong_together(members: list[Member]) -> None:
    """Members need the same data, fold, cases and way of validation; their training differs by nature."""

    def shared(member: Member) -> dict[str, Any]:
        identity = {key: value for key, value in member.summary["identity"].items() if key != "training"}
        return {**identity, "fold": member.summary["fold"], "cases": digest.of(member.cases)}

    summary.require_same("members", {os.fspath(member.folder): shared(member) for member in members})


def _take_over(member: Member, folder: Path, out: Path) -> list[summary.CaseRow]:
    rows = []
    for name, row in zip(member.cases, member.summary["metric_per_case"], strict=True):
        image.copy(member.folder / "segmentations" / name, folder)
        rows.append({**row, "prediction_file": os.fspath(out.parent / "segmentations" / name)})
    return rows


def _average(
    cases: Cases, members: list[Member], name: str, folder: Path, out: Path, settings: Evaluate
) -> summary.CaseRow:
    case = name.removesuffix(cases.label_ending)
    softmax = mean_softmax([member.folder / "softmax" / f"{case}.npz" for member in members])
    segmentation = export.segmentation(softmax, cases.labels)
    cases.write_segmentation(folder / name, segmentation, case)
    of_case = cases.labels, cases.annotated(case), cases.entry(case)["spacing_mm"], settings
    numbers = metrics.case_metrics(segmentation, cases.read_label(case), *of_case)
    return summary.case_row(
        numbers, os.fspath(out.parent / "segmentations" / name), next(iter(cases.entry(case)["label"]))
    )


def _summary(members: list[Member], rows: list[summary.CaseRow], settings: Evaluate) -> dict[str, Any]:
    first = members[0].summary
    trainings = {member.summary["configuration"]: member.summary["identity"]["training"] for member in members}
    kept = ("digest", "epoch", "settings", "training", "precision", "foreground_mean", "mean")
    return {
        **summary.tables(rows),
        "fold": first["fold"],
        "checkpoint": first["checkpoint"],
        "labels": first["labels"],
        "identity": {**first["identity"], "training": digest.of(trainings), "evaluate": digest.of(settings.scoring())},
        "members": {member.summary["configuration"]: {key: member.summary[key] for key in kept} for member in members},
        "versions": summary.versions(),
    }
