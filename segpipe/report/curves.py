"""Training curves as SVG: per configuration one row of charts, the folds over each other."""

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

import numpy as np

from segpipe.data.labels import Labels
from segpipe.data.planes import colour
from segpipe.report.charts import Line, chart

Rows = list[dict[str, float | None]]
# told apart by most colour-blind readers, on white and on black (after Okabe and Ito)
FOLD_COLOURS = ("#0a84c6", "#e08214", "#1b9e77", "#cc5fa0", "#a07850", "#7f8fd9", "#c0392b", "#7a9a01")
MOST_POINTS = 300  # of a line; more epochs are averaged in groups


def read(path: Path) -> Rows:
    """The lines of a metrics.csv; None for an empty field."""
    with path.open() as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


def charts(folds: Mapping[str, Rows], labels: Labels) -> Iterator[str]:
    """Loss, Dice, Dice per class and learning rate of one configuration. `folds`: rows of each."""
    colours = colours_of(folds)

    def lines(column: str, look: str, what: str) -> Iterator[Line]:
        for fold, rows in folds.items():
            if points := _points(rows, column):
                yield Line(f"fold {fold}, {what}", colours[fold], look, points)

    yield chart(
        "loss over the epochs", [*lines("train_loss", "thin", "training"), *lines("val_loss", "", "validation")]
    )
    dice = [*lines("dice_mean", "thin", "each epoch"), *lines("dice_ema", "", "running mean")]
    dice += lines("averaged_dice_mean", "dashed", "averaged weights")
    dice += lines("case_dice_mean", "dots", "whole cases")
    yield chart("Dice, mean of the classes", dice, 0, 1)
    yield chart("Dice per class, mean of the folds", list(_classes(folds, labels)), 0, 1)
    yield chart("learning rate", list(lines("learning_rate", "", "learning rate")), 0)


def colours_of(folds: Iterable[str]) -> dict[str, str]:
    """One for each fold, over again where there are many."""
    return dict(zip(folds, itertools.cycle(FOLD_COLOURS), strict=False))


def legend(folds: Iterable[str]) -> str:
    """Which colour is which fold."""
    keys = (
        f'<span><i style="background:{one}"></i>fold {escape(fold)}</span>' for fold, one in colours_of(folds).items()
    )
    return f'<p class="keys">{"".join(keys)}</p>'


def _classes(folds: Mapping[str, Rows], labels: Labels) -> Iterator[Line]:
    for number, name in enumerate(labels.foreground, 1):
        by_epoch: dict[float, list[float]] = {}
        for rows in folds.values():
            for epoch, value in _of(rows, f"dice_{name}"):
                by_epoch.setdefault(epoch, []).append(value)
        points = [(epoch, float(np.mean(values))) for epoch, values in sorted(by_epoch.items())]
        if points:
            value = labels.regions_order[number - 1] if labels.regions_order else labels.names[name][0]
            yield Line(name, colour(value), "", _thinned(points))


def _points(rows: Rows, column: str) -> list[tuple[float, float]]:
    return _thinned(_of(rows, column))


def _of(rows: Rows, column: str) -> list[tuple[float, float]]:
    return [
        (epoch, value)
        for row in rows
        if (epoch := row["epoch"]) is not None and (value := row.get(column)) is not None and math.isfinite(value)
    ]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of groups of neighbours, where there are many points."""
    step = math.ceil(len(points) / MOST_POINTS)
    if step <= 1:
        return points
    groups = (np.mean(points[start : start + step], axis=0) for start in range(0, len(points), step))
    return [(float(epoch), float(value)) for epoch, value in groups]
