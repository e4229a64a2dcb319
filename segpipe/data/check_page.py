"""check.html: the cases of a dataset at a glance, as one file that needs no other."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape

from segpipe.data.check_facts import Facts
from segpipe.data.check_picture import colour
from segpipe.data.check_report import Checked, Report, class_rows, headline, summary, times
from segpipe.data.labels import IGNORE, Labels

STYLE = """
:root { color-scheme: light dark; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } tr + tr > * { border-top: 1px solid #8884; }
td:nth-child(3), td:nth-child(4) { white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { display: block; max-width: 160px; } pre { white-space: pre-wrap; margin: .3rem 0; font-size: .85em; }
.swatch { display: inline-block; width: .7em; height: .7em; margin-right: .4em; border-radius: 2px; }
.problem { color: #d33; } .warning { color: #b07000; } .ok { color: #2a8a3a; } .quiet { opacity: .65; }
"""


def html(report: Report) -> str:
    """The whole page; names of files and classes are escaped."""
    title = escape(headline(report))
    parts = [
        f"<h1>{title}</h1>",
        _verdict(report),
        _pairs(summary(report)),
        *_problems(report),
        *_warnings(report),
        "<h2>Classes</h2>",
        _classes(report),
        "<h2>Cases</h2>",
        '<p class="quiet">The slice with the most labelled voxels, or the middle one; outlines are the labels.</p>',
        _cases(report),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _verdict(report: Report) -> str:
    problems, warnings = len(report.problems), len(report.notices)
    if problems:
        return f'<p class="problem"><b>{problems} problem(s): it cannot be used</b>, and {warnings} warning(s).</p>'
    kind = "warning" if warnings else "ok"
    return f'<p class="{kind}"><b>It can be used</b>; {warnings or "no"} warning(s).</p>'


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    return _table(f"<th>{escape(name)}</th><td>{escape(value)}</td>" for name, value in rows)


def _table(rows: Iterable[str]) -> str:
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"


def _problems(report: Report) -> Iterator[str]:
    """Those of the dataset in full; those of the cases by name, with links to the cases."""
    if report.problems:
        yield "<h2>Problems</h2>"
        yield from (f'<pre class="problem">{escape(text)}</pre>' for text in report.dataset_problems)
        yield "<ul>"
        named = ((one.case, text.splitlines()[0]) for one in report.cases for text in one.problems)
        yield from (f"<li>{_link(case)}{escape(what)}</li>" for case, what in named)
        yield "</ul>"


def _warnings(report: Report) -> Iterator[str]:
    """By kind, with links to the cases."""
    if report.notices:
        yield "<h2>Warnings</h2>"
    for what, found in report.by_kind().items():
        yield f'<p><b class="warning">{escape(what)}</b></p><ul>'
        yield from (f"<li>{_link(notice.case)}{escape(notice.detail)}</li>" for notice in found)
        yield "</ul>"


def _link(case: str | None) -> str:
    return f'<a href="#{escape(_anchor(case))}">{escape(case)}</a>: ' if case else ""


def _anchor(case: str) -> str:
    return f"case-{case.replace(' ', '_')}"


def _classes(report: Report) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("class", "cases", "mean voxels", "mean ml", "share of all voxels"))
    return _table([head, *(_class_row(row, report.description.labels) for row in class_rows(report))])


def _class_row(row: tuple[str, ...], labels: Labels) -> str:
    name, *numbers = row
    return f"<td>{_class(name, labels)}</td>" + "".join(f'<td class="n">{escape(number)}</td>' for number in numbers)


def _class(name: str, labels: Labels) -> str:
    """A class with the colour of its outline: of a region, that of the value which it paints."""
    if name == IGNORE:
        return escape(name)
    painted = labels.regions_order[[*labels.foreground].index(name)] if labels.regions_order else labels.names[name][0]
    return f'<span class="swatch" style="background:{colour(painted)}"></span>{escape(name)}'


def _cases(report: Report) -> str:
    warnings = defaultdict(list)
    for notice in report.notices:
        if notice.case:
            warnings[notice.case].append(f"{notice.what}: {notice.detail}")
    head = "".join(f"<th>{name}</th>" for name in ("", "case", "grid", "voxels", ""))
    rows = (_case(one, warnings[one.case], report.description.labels) for one in report.cases)
    return _table([head, *rows])


def _case(one: Checked, warnings: list[str], labels: Labels) -> str:
    kind = "training" if one.training else "test"
    said = [f'<pre class="problem">{escape(text)}</pre>' for text in one.problems]
    said += [f'<div class="warning">{escape(text)}</div>' for text in warnings]
    cells = [
        _picture(one.picture),
        f'<b id="{escape(_anchor(one.case))}">{escape(one.case)}</b><br><span class="quiet">{kind}</span>',
        _grid(one.facts),
        _voxels(one.facts, labels),
        "".join(said),
    ]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _picture(picture: bytes | None) -> str:
    if picture is None:
        return ""
    return f'<img loading="lazy" alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def _grid(facts: Facts | None) -> str:
    if facts is None:
        return ""
    return f"{times(facts.shape)}<br>{times(facts.spacing_mm)} mm<br>{facts.orientation}"


def _voxels(facts: Facts | None, labels: Labels) -> str:
    if facts is None or facts.voxels is None:
        return ""
    return "<br>".join(
        f"{_class(name, labels)} {count:,}{_ml(count, facts)}" for name, count in facts.voxels.items() if count
    )


def _ml(count: int, facts: Facts) -> str:
    return "" if facts.ml_per_voxel is None else f" ({count * facts.ml_per_voxel:.4g} ml)"
