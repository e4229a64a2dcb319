"""report.html: what a run gave, as one file that needs no other."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from segpipe import digest
from segpipe.data.page_parts import document
from segpipe.report import choices, curves, facts, names, pictures, reliability, tables
from segpipe.report.results import Results
from segpipe.report.style import SORT, STYLE


def write(results: Results, out: Path) -> None:
    """Write the page."""
    digest.write_text(out, html(results))


def html(results: Results) -> str:
    """The whole page; names of files and classes are escaped. The same results give the same text."""
    sections = {title: "\n".join(parts) for title, parts in _sections(results)}
    anchors = {title: title.lower().replace(" ", "-").replace(",", "") for title in sections}
    links = "".join(f'<a href="#{anchors[title]}">{title}</a>' for title in sections)
    body = (f'<section id="{anchors[one]}"><h2>{one}</h2>\n{content}</section>' for one, content in sections.items())
    title = f"{results.cases.name}: report"
    style = f"{STYLE}body {{ --fill: {results.params.report.fill_opacity:g}; }}\n"
    return document(title, style, [f"<h1>{escape(title)}</h1>", _headline(results), f"<nav>{links}</nav>", *body, SORT])


def _headline(results: Results) -> str:
    crossval = results.crossval
    dice = names.number(crossval["foreground_mean"]["Dice"])
    interval = crossval.get("confidence", {}).get("foreground_mean", {}).get("Dice")
    between = f" ({' to '.join(names.number(interval[end]) for end in ('low', 'high'))})" if interval else ""
    configurations = ", ".join(results.params.configurations)
    return (
        f'<p class="big">Mean foreground Dice <b>{dice}</b>{between}</p>'
        f'<p class="quiet">{len(results.validated)} validation cases, folds {escape(", ".join(crossval["folds"]))}; '
        f"{escape(configurations)}; checkpoint {escape(results.params.validate_.checkpoint)}</p>"
    )


def _sections(results: Results) -> Iterator[tuple[str, Iterable[str]]]:
    """(title, parts) of what there is."""
    yield "Cross-validation", _crossval(results)
    yield "Training", _training(results)
    yield "Cases in pictures", pictures.validated(results)
    if chosen := results.files.get("model_choice"):
        yield "Choice", choices.choice(chosen, results.cases.labels)
    if removed := results.files.get("postprocessing"):
        yield "Postprocessing", choices.postprocessing(removed, results.cases.labels)
    if calibrated := results.files.get("calibration"):
        yield "Calibration", reliability.section(calibrated, results.params.configurations)
    yield "All validation cases", [tables.cases(results), f'<p class="quiet">{names.LEGEND}</p>']
    if results.predictions is not None:
        yield "Predictions", pictures.predicted(results)
    yield "Data", facts.dataset(results)
    yield "Plan", [facts.plan(results)]
    yield "Settings", facts.settings(results)
    yield "Versions and digests", facts.made_of(results)
    yield "How to make it again", [facts.again()]


def _crossval(results: Results) -> Iterator[str]:
    yield from tables.classes(results)
    yield "<h3>Configurations</h3>"
    yield tables.candidates(results)
    yield tables.folds(results)


def _training(results: Results) -> Iterator[str]:
    yield curves.legend(list(next(iter(results.metrics.values()))))
    yield '<p class="quiet">Thin: training loss, and Dice of each epoch. Thick: validation loss, and running mean.</p>'
    for configuration, folds in results.metrics.items():
        charts = "".join(curves.charts(folds, results.cases.labels))
        yield f'<h3>{escape(configuration)}</h3><div class="charts">{charts}</div>'
