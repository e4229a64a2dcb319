"""A comparison as CSV: one line per result, every number, units in the names of the columns."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.experiments import tables
from segpipe.experiments.compared import Comparison, Line
from segpipe.experiments.pairs import FOREGROUND


def write(path: Path, comparison: Comparison) -> None:
    """Columns that a result has nothing for are empty there.

    Dice, Dice_low, Dice_high, Dice_<class>, Dice_<class>_low ... of every metric of summary.json; the same with
    `difference_` in front, and `_p` and `_cases`, of those that are compared; `params.<key>` of settings that differ.
    """
    lines = list(enumerate(comparison.lines))
    groups = [
        [_facts(line) for _, line in lines],
        [dict(_means(line, comparison.names(line))) for _, line in lines],
        [dict(_differences(line, comparison.names(line))) for _, line in lines],
        [{f"params.{key}": _plain(of[i]) for key, of in comparison.settings.items() if i in of} for i, _ in lines],
        [{"remarks": "; ".join(tables.remarks(comparison, line))} for _, line in lines],
    ]
    columns = dict.fromkeys(column for group in groups for row in group for column in row)
    with digest.new_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(
            {**facts, **means, **steps, **of, **said} for facts, means, steps, of, said in zip(*groups, strict=True)
        )


def _facts(line: Line) -> dict[str, Any]:
    result = line.result
    return {
        "result": result.name,
        "of": result.of,
        "cases": len(result.cases),
        **{key: line.confidence[key] for key in ("resampled", "n_resampled")},
        "folds": " ".join(result.folds),
        "checkpoint": result.checkpoint,
        "dataset_digest": result.identity.get("dataset"),
        "training_digest": result.identity.get("training"),
    }


def _means(line: Line, names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    confidence = line.confidence
    blocks = {"": (line.tables["foreground_mean"], confidence["foreground_mean"])}
    blocks |= {f"_{names[key]}": (line.tables["mean"][key], confidence["mean"][key]) for key in line.result.keys}
    for metric in line.tables["foreground_mean"]:
        for of, (means, between) in blocks.items():
            yield f"{metric}{of}", means[metric]
            if interval := between.get(metric):
                yield f"{metric}{of}_low", interval["low"]
                yield f"{metric}{of}_high", interval["high"]


def _differences(line: Line, names: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for metric, of_classes in line.differences.items():
        for key, one in sorted(of_classes.items(), key=lambda item: item[0] != FOREGROUND):
            column = f"difference_{metric}" + ("" if key == FOREGROUND else f"_{names[key]}")
            yield column, one.value
            yield from ((f"{column}_{name}", value) for name, value in (("low", one.low), ("high", one.high)))
            yield from ((f"{column}_{name}", value) for name, value in (("p", one.p), ("cases", one.n)))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
