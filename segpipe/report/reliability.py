"""calibration.json on the page: how far probabilities may be taken at their word, before and after a temperature."""

from collections.abc import Iterable, Iterator
from html import escape

from segpipe.report import charts, names, tables
from segpipe.report.charts import Line
from segpipe.report.results import Json

BEFORE, AFTER = "#e08214", "#0a84c6"
DOMAINS = {"near": "near the foreground", "all": "all voxels"}
NUMBERS = {"ece": "ECE", "nll": "NLL", "brier": "Brier score"}
STAGES = {"before": "as predicted", "after": "with the temperature"}
SHORT = {"before": "", "after": ", tempered", "held_out": ", held out"}


def section(content: Json, configurations: Iterable[str]) -> Iterator[str]:
    """The numbers of each ensemble, and the reliability of what counts in the end. `content`: of calibration.json."""
    shown = {"before": BEFORE, "after": AFTER}
    keys = (f'<span><i style="background:{colour}"></i>{STAGES[stage]}</span>' for stage, colour in shown.items())
    yield f'<p class="keys">{"".join(keys)}</p>'
    counted = [one for one in content["calibrations"] if set(one["configurations"]) == set(configurations)]
    drawn = (_diagram(one, domain) for one in counted for domain in DOMAINS)
    yield f'<div class="charts">{"".join(drawn)}</div>'
    yield (
        '<p class="quiet">Confidence of the predicted class (across) against how often it is right (up): on the dotted '
        "line probabilities are what they say. ECE: the mean distance from it, weighted by voxels.</p>"
    )
    head = ["", "temperature", *(f"{name}{said}" for name in NUMBERS.values() for said in SHORT.values())]
    rows = (_row(one) for one in content["calibrations"])
    yield f"<h3>{DOMAINS['near'].capitalize()}</h3>{tables.wide(head, rows)}"
    yield '<p class="quiet">Held out: each fold with the temperature that the others ask for.</p>'


def _row(one: Json) -> str:
    cells = (names.cell(one[stage]["near"][name] if one[stage] else None, name) for name in NUMBERS for stage in SHORT)
    return f"<td>{escape(' + '.join(one['configurations']))}</td>{names.cell(one['temperature'])}{''.join(cells)}"


def _diagram(one: Json, domain: str) -> str:
    lines = [Line("confidence as often right", "currentColor", "diagonal", [(0.0, 0.0), (1.0, 1.0)])]
    for stage, colour in (("before", BEFORE), ("after", AFTER)):
        bins = one[stage][domain]["reliability"] or []
        points = [(entry["confidence"], entry["accuracy"]) for entry in bins]
        if points:
            lines += [Line(STAGES[stage], colour, look, points) for look in ("", "dots")]
    return charts.chart(f"{' + '.join(one['configurations'])}, {DOMAINS[domain]}", lines, 0, 1)
