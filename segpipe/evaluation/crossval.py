"""The cross-validation: every fold's cases in one table."""

from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.errors import SegpipeError, problem
from segpipe.evaluation import summary

log = getLogger(__name__)


def gather(paths: list[Path], out: Path) -> None:
    """Write the summary over the cases of all folds.

    Raises SegpipeError where folds were made of different data or settings, or share a case.
    """
    folds = {path: digest.read_json(path) for path in paths}
    _same(folds)
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
    content = {
        **summary.tables(rows),
        "folds": {
            fold["fold"]: {"foreground_mean": fold["foreground_mean"], "mean": fold["mean"]} for fold in folds.values()
        },
        "identity": first["identity"],
        "labels": first["labels"],
        "versions": summary.versions(),
    }
    digest.write_json(out, content)
    dice = summary.readable(content["foreground_mean"]["Dice"])
    log.info("cross-validation: mean foreground Dice over %d cases: %s", len(rows), dice)


def _same(folds: dict[Path, dict[str, Any]]) -> None:
    """All folds must be made of the same data, settings and checkpoint choice."""
    found = {str(path): fold["identity"] for path, fold in folds.items()}
    if len({digest.of(identity) for identity in found.values()}) > 1:
        raise SegpipeError(
            problem(
                "folds of different data or settings",
                where=", ".join(found),
                found="\n            ".join(f"{path}: {identity}" for path, identity in found.items()),
                expected="the same everywhere",
                cure="make all folds with the present params.yaml (snakemake or dvc repro does)",
            )
        )
