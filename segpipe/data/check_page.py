"""check.html: the cases of a dataset at a glance, as one file that needs no other."""

from collections import defaultdict
from collections.abc import Iterator
from html import escape

from segpipe.data.check_facts import Facts
from segpipe.data.check_report import Checked, Report, class_rows, headline, summary, times
from segpipe.data.labels import Labels
from segpipe.data.page_parts import class_name, data_uri, document, pairs, table

STYLE = "td:nth-child(3), td:nth-child(4) { white-space: nowrap; }"


def html(report: Report) -> str:
    """The whole page; names of files and classes are escaped."""
    parts = [
        f"<h1>{escape(headline(report))}</h1>",
        _verdict(report),
        pairs(summary(report)),
        *_problems(report),
        *_warnings(report),
        "<h2>Classes</h2>",
        _classes(report),
        "<h2>Cases</h2>",
        '<p class="quiet">The slice with the most labelled voxels, or the middle one; outlines are the labels.</p>',
        _cases(report),
    ]
    return document(headline(report), STYLE, parts)


def _verdict(report: Report) -> str:
    problems, warnings = len(report.problems), len(report.notices)
    if problems:
        return f'<p class="problem"><b>{problems} problem(s): it cannot be used</b>, and {warnings} warning(s).</p>'
    kind = "warning" if warnings else "ok"
    return f'<p class="{kind}"><b>It can be used</b>; {warnings or "no"} warning(s).</p>'


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
    return table([head, *(_class_row(row, report.description.labels) for row in class_rows(report))])


def _class_row(row: tuple[str, ...], labels: Labels) -> str:
    name, *numbers = row
    return f"<td>{class_name(name, labels)}</td>" + "".join(
        f'<td class="n">{escape(number)}</td>' for number in numbers
    )


def _cases(report: Report) -> str:
    warnings = defaultdict(list)
    for notice in report.notices:
        if notice.case:
            warnings[notice.case].append(f"{notice.what}: {notice.detail}")
    head = "".join(f"<th>{name}</th>" for name in ("", "case", "grid", "voxels", ""))
    rows = (_case(one, warnings[one.case], report.description.labels) for one in report.cases)
    return table([head, *rows])


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
    return f'<img loading="lazy" alt="" src="{data_uri(picture)}">'


def _grid(facts: Facts | None) -> str:
    if facts is None:
        return ""
    return f"{times(facts.shape)}<br>{times(facts.spacing_mm)} mm<br>{facts.orientation}"


def _voxels(facts: Facts | None, labels: Labels) -> str:
    if facts is None or facts.voxels is None:
        return ""
    return "<br>".join(
        f"{class_name(name, labels)} {count:,}{_ml(count, facts)}" for name, count in facts.voxels.items() if count
    )


def _ml(count: int, facts: Facts) -> str:
    return "" if facts.ml_per_voxel is None else f" ({count * facts.ml_per_voxel:.4g} ml)"
