"""The tables of numbers: the cross-validation per class, configurations beside each other, all cases."""

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from segpipe.data.labels import Labels
from segpipe.data.page_parts import class_name
from segpipe.report import names
from segpipe.report.results import Case, Json, Results

MEAN = "mean of the classes"


def wide(head: Iterable[str], rows: Iterable[str], look: str = "numbers") -> str:
    """A table with a head, in a box that scrolls where the page is narrow. Cells of head and rows are HTML."""
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{look}"><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def known(table: Json, metrics: Iterable[str]) -> list[str]:
    """The metrics that some class has a number of: volumes of 2D images do not exist."""
    return [metric for metric in metrics if any(numbers[metric] is not None for numbers in table["mean"].values())]


def folded(title: str, content: str) -> str:
    """What is shown on a click."""
    return f"<details><summary>{title}</summary>{content}</details>"


def classes(results: Results) -> Iterator[str]:
    """Every metric of each class over all folds, counts of voxels folded away."""
    shown, counts = names.split(known(results.crossval, results.crossval["foreground_mean"]))
    yield per_class(results.crossval, shown, results.cases.labels)
    yield f'<p class="quiet">{_interval_note(results.crossval)}{names.LEGEND}</p>'
    yield folded("Volumes and counts behind these means", per_class(results.crossval, counts, results.cases.labels))


def _interval_note(crossval: Json) -> str:
    if "confidence" not in crossval:
        return ""
    confidence = crossval["confidence"]
    drawn = f"{confidence['n_resampled']} {escape(confidence['resampled'])}"
    return f"Below a mean: its {100 * confidence['level']:g} % confidence interval (bootstrap over {drawn}). "


def per_class(table: Json, metrics: list[str], labels: Labels) -> str:
    """One line per class and the mean of all."""
    intervals = table.get("confidence", {})
    rows = [
        _class_row(class_name(name, labels), table["mean"][key], intervals.get("mean", {}).get(key, {}), metrics)
        for name in labels.foreground
        for key in [labels.key(name)]
    ]
    of_mean = intervals.get("foreground_mean", {})
    rows.append(_class_row(f"<b>{MEAN}</b>", table["foreground_mean"], of_mean, metrics))
    return wide(["class", *map(names.of, metrics)], rows)


def _class_row(name: str, numbers: Json, intervals: Json, metrics: list[str]) -> str:
    return f"<td>{name}</td>" + "".join(
        _with_interval(numbers.get(metric), intervals.get(metric), metric) for metric in metrics
    )


def _with_interval(value: float | None, interval: Any, metric: str) -> str:
    if not interval:
        return names.cell(value, metric)
    low, high = (names.number(interval[end], metric) for end in ("low", "high"))
    return f'<td class="n">{names.number(value, metric)}<br><small>{low} to {high}</small></td>'


def candidates(results: Results) -> str:
    """Configurations, their ensemble and what postprocessing makes of it, beside each other."""
    shown, _ = names.split(known(results.crossval, results.crossval["foreground_mean"]))
    labels = results.cases.labels
    tables = {name: results.of_configuration(name) for name in results.validations}
    if len(results.params.configurations) > 1:
        tables[" + ".join(results.params.configurations)] = results.crossval
    if postprocessed := results.crossval.get("postprocessed"):
        tables[f"{' + '.join(postprocessed['members'])}, postprocessed"] = postprocessed
    rows = (_candidate(name, table, labels, shown) for name, table in tables.items())
    head = ["", *(f"Dice {class_name(name, labels)}" for name in labels.foreground), *map(names.of, shown)]
    return wide(head, rows)


def _candidate(name: str, table: Json, labels: Labels, metrics: list[str]) -> str:
    dice = (names.cell(table["mean"][labels.key(one)]["Dice"]) for one in labels.foreground)
    means = (names.cell(table["foreground_mean"].get(metric), metric) for metric in metrics)
    return f"<td>{escape(name)}</td>{''.join(dice)}{''.join(means)}"


def folds(results: Results) -> str:
    """Mean foreground Dice by fold of each configuration and of what counts in the end."""
    numbers = list(next(iter(results.validations.values())))
    lines = {
        configuration: {fold: one["foreground_mean"]["Dice"] for fold, one in of_folds.items()}
        for configuration, of_folds in results.validations.items()
    }
    of_ensemble = {fold: one["foreground_mean"]["Dice"] for fold, one in results.crossval["folds"].items()}
    if len(results.params.configurations) > 1:
        lines["ensemble"] = of_ensemble
    rows = (
        f"<td>{escape(name)}</td>" + "".join(names.cell(values.get(fold)) for fold in numbers)
        for name, values in lines.items()
    )
    return wide(["mean foreground Dice", *(f"fold {escape(fold)}" for fold in numbers)], rows)


def cases(results: Results) -> str:
    """One line per validation case, the worst first; a click on a head sorts.

    Dice of each class; all other metrics as means of the classes, or the table would be as wide as both together.
    """
    shown, _ = names.split(known(results.crossval, results.crossval["foreground_mean"]))
    others = [metric for metric in shown if metric != "Dice"]
    labels = results.cases.labels
    head = ["case", "fold", "Dice, mean", *(f"Dice {class_name(name, labels)}" for name in labels.foreground)]
    rows = (_case_row(case, labels, others) for case in results.validated)
    return wide([*head, *map(names.of, others)], rows, "numbers sortable")


def _case_row(case: Case, labels: Labels, others: list[str]) -> str:
    dice = (names.cell(case.metrics[labels.key(name)]["Dice"]) for name in labels.foreground)
    means = (names.cell(case.mean(metric), metric) for metric in others)
    start = f"<td>{escape(case.name)}</td><td>{escape(case.fold)}</td>{names.cell(case.mean('Dice'))}"
    return f"{start}{''.join(dice)}{''.join(means)}"
