"""Training curves as SVG: per configuration one row of charts, the folds over each other."""

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from segpipe.data.labels import Labels
from segpipe.data.planes import colour

Rows = list[dict[str, float | None]]
# told apart by most colour-blind readers, on white and on black (after Okabe and Ito)
FOLD_COLOURS = ("#0a84c6", "#e08214", "#1b9e77", "#cc5fa0", "#a07850", "#7f8fd9", "#c0392b", "#7a9a01")
MOST_POINTS = 300  # of a line; more epochs are averaged in groups
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 190, 46, 24, 20


@dataclass(frozen=True)
class Line:
    """Points (epoch, value); `look` is a class of the page's style."""

    label: str
    colour: str
    look: str
    points: list[tuple[float, float]]


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

    yield _chart("loss", [*lines("train_loss", "thin", "training"), *lines("val_loss", "", "validation")], None)
    dice = [*lines("dice_mean", "thin", "each epoch"), *lines("dice_ema", "", "running mean")]
    dice += lines("averaged_dice_mean", "dashed", "averaged weights")
    dice += lines("case_dice_mean", "dots", "whole cases")
    yield _chart("Dice, mean of the classes", dice, (0, 1))
    yield _chart("Dice per class, mean of the folds", list(_classes(folds, labels)), (0, 1))
    yield _chart("learning rate", list(lines("learning_rate", "", "learning rate")), (0, None))


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


def _chart(title: str, lines: list[Line], limits: tuple[float, float | None] | None) -> str:
    """One chart. limits : of the values, where they do not follow from the lines."""
    if not lines:
        return ""
    epochs = [epoch for line in lines for epoch, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    low, high = limits or (min(values), max(values))
    ticks = nice(low, max(values) if high is None else high, 4)
    first, last = min(epochs), max(epochs)

    def x(epoch: float) -> float:
        return LEFT + (epoch - first) / ((last - first) or 1) * (WIDTH - LEFT - 8)

    def y(value: float) -> float:
        return TOP + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    shown = "".join(_line(line, x, y) for line in lines)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f'<text class="name" x="{LEFT}" y="12">{escape(title)}</text>{_axes(ticks, first, last, x, y)}{shown}</svg>'
    )


Place = Callable[[float], float]


def _axes(ticks: list[float], first: float, last: float, x: Place, y: Place) -> str:
    """Lines across at the ticks, their values, and the epochs below."""
    step = ticks[1] - ticks[0]
    across = "".join(
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - 8}"></path>'
        f'<text x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_readable(tick, step)}</text>'
        for tick in ticks
    )
    epochs = [tick for tick in nice(first, last, 4) if first <= tick <= last and tick == int(tick)] or [first]
    below = "".join(
        f'<text x="{x(epoch):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{epoch:g}</text>' for epoch in epochs
    )
    return across + below


def nice(low: float, high: float, about: int) -> list[float]:
    """Round values that enclose a range: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, max(end, start + 1) + 1)]


def _readable(tick: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{tick + 0.0:.{decimals}f}" if decimals <= 3 else f"{tick:g}" if tick else "0"


def _line(line: Line, x: Place, y: Place) -> str:
    title = f"<title>{escape(line.label)}</title>"
    if line.look == "dots" or len(line.points) == 1:
        dots = (f'<circle cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="2.5"></circle>' for epoch, value in line.points)
        return f'<g fill="{line.colour}">{title}{"".join(dots)}</g>'
    points = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in line.points)
    return f'<polyline class="{line.look}" stroke="{line.colour}" points="{points}">{title}</polyline>'
