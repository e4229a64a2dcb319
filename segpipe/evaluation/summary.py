"""summary.json: nnU-Net's schema (`foreground_mean`, `mean`, `metric_per_case`), and what it was made of."""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import numpy as np

from segpipe import digest
from segpipe.errors import SegpipeError, problem

CaseRow = dict[str, Any]


def case_row(metrics: dict[str, Any], prediction_file: str, reference_file: str) -> CaseRow:
    """One entry of `metric_per_case`."""
    return {"metrics": metrics, "prediction_file": prediction_file, "reference_file": reference_file}


def tables(rows: list[CaseRow]) -> dict[str, Any]:
    """The three tables of nnU-Net's schema. A mean leaves out what is null; it never leaves out a case."""
    classes = list(rows[0]["metrics"])
    names = list(rows[0]["metrics"][classes[0]])
    mean = {label: {name: _mean(row["metrics"][label][name] for row in rows) for name in names} for label in classes}
    return {
        "foreground_mean": {name: _mean(mean[label][name] for label in classes) for name in names},
        "mean": mean,
        "metric_per_case": rows,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def readable(dice: float | None) -> str:
    """A Dice value for a message."""
    return "does not exist" if dice is None else f"{dice:.4f}"


def require_same(what: str, identities: dict[str, Any]) -> None:
    """Raise SegpipeError where results that are about to be put together have different identities."""
    if len({digest.of(identity) for identity in identities.values()}) > 1:
        raise SegpipeError(
            problem(
                f"{what} of different data or settings",
                where=", ".join(identities),
                found="\n            ".join(f"{path}: {identity}" for path, identity in identities.items()),
                expected="the same everywhere",
                cure=f"make all {what} with the present params.yaml (snakemake or dvc repro does)",
            )
        )


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    packages = {name: version(name) for name in ("segpipe", "torch", "numpy", "scipy")}
    return {"python": platform.python_version(), **packages}
