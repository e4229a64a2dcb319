"""Plots of a search: how it went, what each setting did to the value, which settings mattered."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.search.ranges import Range, written
from segpipe.search.study import Search

BEST = "#d95f02"
COLOURS = {TrialState.COMPLETE: "#1b6ca8", TrialState.PRUNED: "#a8a8a8", TrialState.FAIL: "#8c1515"}
NAMES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
FEWEST = 4  # finished trials that importances follow from
PER_ROW = 3


def draw(search: Search, out: Path) -> None:
    """Write the plots into a folder."""
    for plot in (history, curves, slices, importances):
        figure = plot(search)
        with digest.new_file(out / f"{plot.__name__}.png") as temporary:
            FigureCanvasAgg(figure).print_png(temporary)


def history(search: Search) -> Figure:
    """The values in the order of the trials, and the best so far."""
    figure, axes = _one()
    finished = _of(search, TrialState.COMPLETE)
    better: Callable[..., float] = max if search.rises else min
    so_far = [better(one.value for one in finished[: i + 1]) for i in range(len(finished))]
    axes.step([one.number for one in finished], so_far, where="post", color=BEST, label="best so far")
    _scatter(axes, search, lambda one: one.number)
    for one in _of(search, TrialState.FAIL):
        axes.axvline(one.number, color=COLOURS[one.state], linestyle=":", linewidth=1, label="failed")
    axes.set(title="Trials in their order", xlabel="trial", ylabel=search.settings.measure)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def curves(search: Search) -> Figure:
    """The value of each trial after each epoch; of those that were pruned, until then. Numbers are those of trials."""
    figure, axes = _one()
    best, ends = search.best(), []
    for one in search.trials:
        if one.intermediate_values and one.state in NAMES:
            epochs, values = zip(*sorted(one.intermediate_values.items()), strict=True)
            style: dict[str, Any] = {"color": COLOURS[one.state], "linewidth": 1, "label": NAMES[one.state]}
            if best is not None and one.number == best.number:
                style = {"color": BEST, "linewidth": 2.5, "label": "best", "zorder": 3}
            axes.plot(epochs, values, marker="." if len(epochs) < 10 else "", **style)
            ends.append((epochs[-1], values[-1], str(one.number), style["color"]))
    _number(axes, ends)
    axes.set(title="Learning curves", xlabel="epoch", ylabel=search.settings.measure)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def _number(axes: Axes, ends: list[tuple[int, float, str, str]]) -> None:
    """Numbers behind the ends of curves, (epoch, value, number, colour). Where curves end close to each other, one more
    to the right for each.
    """
    bottom, top = axes.get_ylim()
    places: list[tuple[int, int, float]] = []  # epoch, column, value
    for epoch, value, number, colour in sorted(ends):
        taken = {column for at, column, other in places if at == epoch and abs(other - value) < (top - bottom) / 25}
        column = next(column for column in itertools.count() if column not in taken)
        places.append((epoch, column, value))
        shift = (4 + 14 * column, -2)
        axes.annotate(number, (epoch, value), shift, textcoords="offset points", fontsize="x-small", color=colour)


def slices(search: Search) -> Figure:
    """The value over each varied setting."""
    n = len(search.ranges)
    n_rows, n_columns = math.ceil(n / PER_ROW), min(n, PER_ROW)
    figure = Figure(figsize=(4 * n_columns, 3.5 * n_rows), layout="constrained")
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for axes, (key, one) in zip(all_axes, search.ranges.items(), strict=False):
        _slice(axes, search, key, one)
    for axes in all_axes[n:]:
        axes.set_visible(False)
    _legend(all_axes[0])
    return figure


def _slice(axes: Axes, search: Search, key: str, one: Range) -> None:
    def place(trial: FrozenTrial) -> float:
        value = search.values(trial)[key]
        return value if one.choices is None else one.choices.index(value)

    _scatter(axes, search, place)
    axes.set_title(key, fontsize="medium")
    axes.set_ylabel(search.settings.measure)
    if one.choices is not None:
        axes.set_xticks(range(len(one.choices)), [written(choice) for choice in one.choices])
        axes.set_xlim(-0.5, len(one.choices) - 0.5)
        return
    if one.log:
        axes.set_xscale("log")
    elif one.whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for end in (one.low, one.high):  # beyond them nothing was tried
        axes.axvline(end, color="black", linewidth=0.5, alpha=0.5)


def importances(search: Search) -> Figure:
    """How much of the differences between the finished trials each setting explains (fANOVA: Hutter et al. 2014)."""
    figure, axes = _one()
    shares = _importances(search)
    if not shares:
        text = f"needs {FEWEST} finished trials of different values"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    keys = list(reversed(shares))
    bars = axes.barh(keys, [shares[key] for key in keys], color=COLOURS[TrialState.COMPLETE])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    n = len(_of(search, TrialState.COMPLETE))
    axes.set(title=f"Importance of the settings, from {n} finished trials", xlabel="share", xlim=(0, 1.1))
    return figure


def _importances(search: Search) -> dict[str, float]:
    """Of each setting, the largest first; nothing where the trials do not tell."""
    finished = _of(search, TrialState.COMPLETE)
    if len(finished) < FEWEST or len({one.value for one in finished}) == 1:
        return {}
    found = FanovaImportanceEvaluator(seed=0).evaluate(search.study)
    total = sum(found.values())
    return {key: value / total for key, value in found.items()} if total else {}


def _one() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    return figure, figure.subplots()


def _of(search: Search, state: TrialState) -> list[FrozenTrial]:
    return [one for one in search.trials if one.state == state]


def _scatter(axes: Axes, search: Search, place: Callable[[FrozenTrial], float]) -> None:
    """The values of the trials that have one, the best marked."""
    best = search.best()
    for state, marker in ((TrialState.PRUNED, "x"), (TrialState.COMPLETE, "o")):
        shown = [(place(one), one.value) for one in _of(search, state) if one.value is not None]
        if shown:
            x, y = zip(*shown, strict=True)
            axes.scatter(x, y, marker=marker, color=COLOURS[state], label=NAMES[state])
    if best is not None and best.value is not None:
        axes.scatter(place(best), best.value, s=110, facecolors="none", edgecolors=BEST, linewidths=2, label="best")
    axes.grid(alpha=0.3)


def _legend(axes: Axes) -> None:
    """Each name once."""
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    if named:
        axes.legend(named.values(), named.keys(), fontsize="small")
