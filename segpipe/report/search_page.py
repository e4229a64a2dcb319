"""results/search/report.html: what a hyper-parameter search tried and found, as one file that needs no other."""

import math
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.data.page_parts import document, pairs
from segpipe.params import Params
from segpipe.report import charts, names, tables
from segpipe.report.charts import Line
from segpipe.report.style import SORT, STYLE
from segpipe.search import importances, ranges
from segpipe.search.ranges import Range, written
from segpipe.search.study import PRESENT, REASON, Search

BEST = "#e08214"
COLOURS = {TrialState.COMPLETE: "#0a84c6", TrialState.PRUNED: "#909090", TrialState.FAIL: "#d03030"}
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
ROOM = 40  # characters below a chart, for the names of all choices
NEAR = 0.15  # of the width: closer to an end of a range, nothing else is written


def write(search: Search, params: Params, out: Path) -> None:
    """Write report.html of a search that has a finished trial into a folder. The same trials give the same bytes."""
    digest.write_text(out / "report.html", html(search, params))


def html(search: Search, params: Params) -> str:
    """The whole page."""
    title = f"{params.dataset_name}: search"
    sections = {
        "Best settings": _settings(search, params),
        "How it went": _course(search),
        "What each setting did": _effects(search),
        "Trials": [_trials(search)],
        "What was searched": [_searched(search, params)],
    }
    body = (f"<section><h2>{name}</h2>\n{''.join(parts)}</section>" for name, parts in sections.items())
    return document(title, STYLE, [f"<h1>{escape(title)}</h1>", _headline(search), *body, SORT])


def _headline(search: Search) -> str:
    best, states = _best(search), [one.state for one in search.trials]
    counts = ", ".join(f"{states.count(state)} {name}" for state, name in STATES.items() if state in states)
    return (
        f'<p class="big">{escape(search.settings.measure)} <b>{names.number(best.value)}</b>, trial {best.number}</p>'
        f'<p class="quiet">{counts}; study {escape(search.folder.name)}</p>'
    )


def _best(search: Search) -> FrozenTrial:
    best = search.best()
    assert best is not None, "the caller has seen to it"
    return best


# best settings


def _settings(search: Search, params: Params) -> Iterator[str]:
    """The best values beside those that params.yaml had when the search began, where a trial tried them."""
    best = _best(search)
    shown = {f"best, trial {best.number}": best}
    present = (one for one in search.trials if one.user_attrs.get(PRESENT) and one.number != best.number)
    shown |= {f"at the start, trial {one.number}": one for one in present}
    values = {name: search.values(one) for name, one in shown.items()}
    rows = [
        f"<td>{escape(key)}</td>" + "".join(f"<td>{escape(written(of.get(key)))}</td>" for of in values.values())
        for key in search.ranges
    ]
    of_measure = "".join(names.cell(one.value) for one in shown.values())
    rows.append(f"<td><b>{escape(search.settings.measure)}</b></td>{of_measure}")
    yield tables.wide(["setting", *map(escape, values)], rows, "texts")
    folds = ", ".join(map(str, params.search.folds))
    yield (
        "<p>To take them: <code>cp results/search/best_params.yaml params.yaml</code>.</p>"
        f'<p class="quiet">The best of many trials on fold {folds} is a little too good: it was chosen by these very '
        "cases. The cross-validation says what it is worth.</p>"
    )


# how it went


def _course(search: Search) -> Iterator[str]:
    """Values in the order of the trials, and the learning curves."""
    yield _legend(search)
    yield f'<div class="charts">{_history(search)}{_curves(search)}</div>'


def _legend(search: Search) -> str:
    states = {one.state for one in search.trials}
    shown = {name: COLOURS[state] for state, name in STATES.items() if state in states} | {"best": BEST}
    keys = (f'<span><i style="background:{colour}"></i>{name}</span>' for name, colour in shown.items())
    return f'<p class="keys">{"".join(keys)}</p>'


def _history(search: Search) -> str:
    lines = list(_dots(search, lambda one: one.number))
    if steps := _best_so_far(search):
        lines.insert(0, Line("best so far", BEST, "thin", steps))
    return charts.chart(f"{search.settings.measure} of each trial", lines)


def _best_so_far(search: Search) -> list[tuple[float, float]]:
    """Corners of a line that rises (or falls) in steps."""
    steps: list[tuple[float, float]] = []
    better: Callable[..., float] = max if search.rises else min
    for one in search.trials:
        if one.state == TrialState.COMPLETE and one.value is not None:
            before = steps[-1][1] if steps else one.value
            steps += [(one.number, before), (one.number, better(before, one.value))]
    return steps


def _dots(search: Search, place: Callable[[FrozenTrial], float]) -> Iterator[Line]:
    """Each trial that has a value, the best one last, which lies above the others."""
    best = _best(search)
    for one in sorted(search.trials, key=lambda one: one.number == best.number):
        if one.state in STATES and one.value is not None and math.isfinite(one.value):
            yield Line(_called(one), _colour(one, best), "dots", [(place(one), one.value)])


def _colour(one: FrozenTrial, best: FrozenTrial) -> str:
    return BEST if one.number == best.number else COLOURS[one.state]


def _called(one: FrozenTrial) -> str:
    value = "" if one.value is None else f": {names.number(one.value)}"
    return f"trial {one.number}, {STATES[one.state]}{value}"


def _curves(search: Search) -> str:
    """The value of each trial after each epoch; of those that were pruned, until then."""
    best, lines = _best(search), []
    for one in sorted(search.trials, key=lambda one: one.number == best.number):
        values = sorted(one.intermediate_values.items())
        points = [(float(epoch), value) for epoch, value in values if math.isfinite(value)]
        if one.state in STATES and points:
            look = "" if one.number == best.number else "thin"
            lines.append(Line(_called(one), _colour(one, best), look, points))
    return charts.chart(f"{search.settings.measure} over the epochs", lines)


# what each setting did


def _effects(search: Search) -> Iterator[str]:
    """The value over each setting, and how much each one explains."""
    slices = (_slice(search, key, one) for key, one in search.ranges.items())
    yield f'<p class="quiet">{escape(search.settings.measure)} (up) of the trials over each setting (across).</p>'
    yield f'<div class="charts">{"".join(slices)}</div>'
    shares = importances.of(search)
    if not shares:
        wanted = f"{importances.FEWEST} finished trials of different values"
        yield f'<p class="quiet">How much each setting explains follows from {wanted}.</p>'
        return
    yield tables.wide(["setting", "share"], (f"<td>{escape(key)}</td>{names.cell(of)}" for key, of in shares.items()))
    yield '<p class="quiet">Share of the differences between finished trials that each setting explains (fANOVA).</p>'


def _slice(search: Search, key: str, one: Range) -> str:
    def place(trial: FrozenTrial) -> float:
        return _place(one, search.values(trial)[key])

    return charts.chart(key, list(_dots(search, place)), below=_below(one))


def _place(one: Range, value: Any) -> float:
    if one.choices is not None:
        return one.choices.index(value)
    return math.log10(value) if one.log else float(value)


def _below(one: Range) -> list[tuple[float, str]]:
    """Places across and what is written there: every choice, or both ends and some in between."""
    if one.choices is not None:
        n = len(one.choices)
        room = max(ROOM // n, 3)
        said = [text if len(text) <= room else f"{text[: room - 1]}…" for text in map(written, one.choices)]
        return [(-0.5, ""), *enumerate(said), (n - 0.5, "")]
    low, high = _place(one, one.low), _place(one, one.high)
    margin = NEAR * (high - low)
    within = [place for place in charts.nice(low, high, 4) if low + margin < place < high - margin]
    if one.log or one.whole:  # powers of ten, whole numbers
        within = [place for place in within if place == int(place)]
    return [(place, f"{10**place if one.log else place:.4g}") for place in (low, *within, high)]


# trials, and the search itself


def _trials(search: Search) -> str:
    """One line each, sorted by a click."""
    best = _best(search)
    head = ["trial", "state", search.settings.measure, "epochs", *search.ranges, ""]
    begun = [one for one in search.trials if one.state != TrialState.WAITING]
    return tables.wide(map(escape, head), (_trial(search, one, best) for one in begun), "numbers sortable")


def _trial(search: Search, one: FrozenTrial, best: FrozenTrial) -> str:
    values = search.values(one)
    cells = "".join(_cell(values.get(key), key in values) for key in search.ranges)
    said = "<b>best</b>" if one.number == best.number else escape(one.user_attrs.get(REASON, "").partition("\n")[0])
    state = STATES.get(one.state, one.state.name.lower())
    facts = names.cell(one.number) + f"<td>{state}</td>" + names.cell(one.value)
    return f"{facts}{names.cell(len(one.intermediate_values))}{cells}<td>{said}</td>"


def _cell(value: Any, is_drawn: bool) -> str:
    """A setting: numbers sort as such."""
    if not is_drawn:
        return "<td></td>"
    sort = f' class="n" data-v="{value:.9g}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
    return f"<td{sort}>{escape(written(value))}</td>"


def _searched(search: Search, params: Params) -> str:
    settings = params.search
    facts: Iterable[tuple[str, Any]] = [
        ("configuration", ranges.configuration(params)),
        ("folds", ", ".join(map(str, settings.folds))),
        ("sampler", f"{settings.sampler}, seed {settings.seed}"),
        ("pruner", settings.pruner.name),
        *((key, written(given)) for key, given in settings.ranges.items()),
    ]
    return pairs(facts)
