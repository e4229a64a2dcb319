"""model_choice.json on the page: what was tried, and what was chosen."""

from collections.abc import Iterator
from html import escape

from segpipe.data.labels import Labels
from segpipe.data.page_parts import class_name
from segpipe.report import names, tables
from segpipe.report.results import Json


def choice(content: Json, labels: Labels) -> Iterator[str]:
    """Configurations and ensembles of them, the best first. `content`: of model_choice.json."""
    measure = escape(content["measure"])
    tried = sorted(content["candidates"], key=lambda one: -1.0 if one["mean"] is None else one["mean"], reverse=True)
    head = [
        "configurations",
        f"{measure}, mean",
        *(f"{measure} {class_name(name, labels)}" for name in labels.foreground),
        "difference to the best",
        "",
    ]
    yield tables.wide(head, (_candidate(one, labels, content["chosen"]) for one in tried))
    yield (
        '<p class="quiet">In brackets: where the difference lies when the cases are drawn again (bootstrap). '
        f"Chosen is the best, or what has fewer members and is at most {content['margin']:g} worse.</p>"
    )


def _candidate(one: Json, labels: Labels, chosen: list[str]) -> str:
    cells = "".join(names.cell(one["per_class"][labels.key(name)]) for name in labels.foreground)
    to_best = one["to_best"]
    between = "" if to_best["low"] is None else f" [{names.number(to_best['low'])}, {names.number(to_best['high'])}]"
    mark = "<b>chosen</b>" if one["members"] == chosen else ""
    return (
        f"<td>{escape(' + '.join(one['members']))}</td>{names.cell(one['mean'])}{cells}"
        f'<td class="n">{names.number(to_best["difference"])}{between}</td><td>{mark}</td>'
    )
