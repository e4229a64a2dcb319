"""The cross-validation: every fold's cases in one table."""

from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.columns import Column, column
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.evaluation import intervals, summary
from segpipe.params import Params

log = getLogger(__name__)

HEADLINE = ("Dice", "nsd", "hd95_mm")


def gather(cases: Cases, paths: list[Path], postprocessing: Path, out: Path, metrics: Path, params: Params) -> None:
    """Write the summary over the cases of all folds, with confidence intervals of its means.

    cases : whose cases.tsv may say what patient each case is of
    metrics : file for the few of these numbers that experiments are compared by
    postprocessing : postprocessing.json, which has the scores of what the prediction will take, after its rules
    Raises SegpipeError where folds were made of different data or settings or share a case, or where the column of
    cases.tsv that groups cases has nothing for some.
    """
    folds = {path: digest.read_json(path) for path in paths}
    summary.require_same("folds", _identities(folds))
    rows = [row for fold in folds.values() for row in fold["metric_per_case"]]
    files = [row["reference_file"] for row in rows]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise SegpipeError(
            problem(
                "a case was validated twice",
                where=out,
                found=", ".join(twice),
                expected="disjoint folds",
                cure="ask for each fold once, without fold all",
            )
        )
    first = next(iter(folds.values()))
    groups = column(cases, params.splits.group, required=False)
    content = {
        **summary.tables(rows),
        "confidence": _confidence(rows, cases, groups, params),
        "groups": None if groups is None else _groups(groups, _ids(rows, cases), params),
        "folds": {
            fold["fold"]: {"foreground_mean": fold["foreground_mean"], "mean": fold["mean"]} for fold in folds.values()
        },
        "postprocessed": _postprocessed(digest.read_json(postprocessing), cases, groups, params),
        "identity": first["identity"],
        "labels": first["labels"],
        "versions": summary.versions(),
    }
    digest.write_json(metrics, headline(content))
    digest.write_json(out, content)
    dice = summary.readable(content["foreground_mean"]["Dice"])
    log.info("cross-validation: mean foreground Dice over %d cases: %s", len(rows), dice)


def headline(summary: dict[str, Any]) -> dict[str, Any]:
    """What `dvc metrics` and `dvc exp show` have as columns: each number is one of the table over all cases.

    Dice_of names the classes as dataset.json does; the list has the same once more, as `dvc plots` reads it (DVC takes
    no list for a metric).
    """
    labels = Labels.from_json(summary["labels"])
    names = {name: summary["mean"][labels.key(name)] for name in labels.foreground}
    interval = summary["confidence"]["foreground_mean"]["Dice"] or {"low": None, "high": None}
    return {
        **{metric: summary["foreground_mean"][metric] for metric in HEADLINE},
        "Dice_low": interval["low"],
        "Dice_high": interval["high"],
        "Dice_postprocessed": summary["postprocessed"]["foreground_mean"]["Dice"],
        "Dice_of": {name: mean["Dice"] for name, mean in names.items()},
        "classes": [{"class": name, **{metric: mean[metric] for metric in HEADLINE}} for name, mean in names.items()],
    }


def _postprocessed(content: dict[str, Any], cases: Cases, groups: Column | None, params: Params) -> dict[str, Any]:
    """What postprocessing.json has for the summary: the rules, what they were applied to, and its scores after them."""
    told = {key: content[key] for key in ("models", "members", "rules")}
    rows = content["postprocessed"]["metric_per_case"]
    return {**told, **content["postprocessed"], "confidence": _confidence(rows, cases, groups, params)}


def _confidence(rows: list[summary.CaseRow], cases: Cases, groups: Column | None, params: Params) -> dict[str, Any]:
    of = intervals.units(_ids(rows, cases), groups, params.splits.group)
    return intervals.confidence(rows, of, params.evaluate)


def _groups(groups: Column, ids: list[str], params: Params) -> dict[str, Any]:
    """What `segpipe compare` draws the cases by."""
    return {"column": params.splits.group, "of_case": {case: groups[case] for case in ids}}


def _ids(rows: list[summary.CaseRow], cases: Cases) -> list[str]:
    return [Path(row["prediction_file"]).name.removesuffix(cases.label_ending) for row in rows]


def _identities(folds: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """What all folds must have in common: data, settings and checkpoint choice."""
    return {str(path): fold["identity"] for path, fold in folds.items()}
