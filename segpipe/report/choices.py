"""What the cross-validation decided: model_choice.json and postprocessing.json on the page."""

from collections.abc import Iterator
from html import escape

from segpipe.data.labels import Labels
from segpipe.data.page_parts import class_name
from segpipe.inference.postprocess import Rule
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
        f'<p class="quiet">In brackets: where the difference lies when {escape(content["resampled"])} are drawn again '
        f"(bootstrap; {content['n_resampled']} of them). "
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


def postprocessing(content: Json, labels: Labels) -> Iterator[str]:
    """The rules that are kept, and all that were tried, folded away. `content`: of postprocessing.json."""
    kept = "".join(f"<li>{escape(str(Rule(**one)))}</li>" for one in content["rules"])
    members = escape(" + ".join(content["members"]))
    yield f"<p>Of what {members} predicts, these stay:</p><ul>{kept}</ul>" if kept else "<p>Nothing is removed.</p>"
    yield '<p class="quiet">A rule is kept where the mean Dice rises and that of no class falls.</p>'
    of_classes = (f"change, {class_name(name, labels)}" for name in labels.foreground)
    head = ["rule", "mean Dice before", "after", *of_classes, ""]
    yield tables.folded(
        "All rules that were tried", tables.wide(head, (_tried(one, labels) for one in content["tried"]))
    )


def _tried(one: Json, labels: Labels) -> str:
    before, after = one["before"], one["after"]
    means = names.cell(before["foreground_mean"]) + names.cell(after["foreground_mean"])
    pairs = ((before["mean"][key], after["mean"][key]) for key in map(labels.key, labels.foreground))
    changes = "".join(names.cell(None if None in pair else pair[1] - pair[0]) for pair in pairs)
    return f"<td>{escape(str(Rule(**one['rule'])))}</td>{means}{changes}<td>{'<b>kept</b>' if one['kept'] else ''}</td>"
