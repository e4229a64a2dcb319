"""A comparison in words: for the terminal, and as Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segpipe.experiments import fair
from segpipe.experiments.compared import Comparison, Line
from segpipe.experiments.pairs import COMPARED, FOREGROUND, Difference
from segpipe.params.editing import on_one_line

WIDTH = 100  # columns of a terminal
LONGEST = 28  # characters of a name in a table
NONE = "-"
DECIMALS = {"Dice": 4, "hd95_mm": 2, "nsd": 4}
HEADS = {"Dice": "Dice", "hd95_mm": "HD95 mm", "nsd": "NSD"}
NOTES = "Before numbers are compared"


@dataclass(frozen=True)
class Table:
    """Cells as text. left : columns of words, which stand in every part of a table that is too wide"""

    title: str
    head: list[str]
    rows: list[list[str]]
    left: int


def of(comparison: Comparison) -> list[Table]:
    """Means; differences; by class; settings. Results go by their number in the first."""
    tables = (_means, _differences, _by_class, _settings)
    return [table for table in (make(comparison) for make in tables) if table.rows]


def notes(comparison: Comparison) -> list[str]:
    """What makes comparisons unfair, and what was left out of them, with the numbers of the results it is true of."""
    whose: dict[str, list[str]] = {}
    for number, line in _numbered(comparison):
        for remark in remarks(comparison, line):
            whose.setdefault(remark, []).append(number)
    return [f"{', '.join(numbers)}: {remark}" for remark, numbers in whose.items()]


def remarks(comparison: Comparison, line: Line) -> list[str]:
    """What has to be known of one result."""
    return [*line.remarks, *_left_out(comparison, line)]


def _numbered(comparison: Comparison) -> Iterator[tuple[str, Line]]:
    yield from ((str(index), line) for index, line in enumerate(comparison.lines, 1))


def _left_out(comparison: Comparison, line: Line) -> Iterator[str]:
    names = comparison.names(line)
    for metric, of_classes in line.differences.items():
        gone = [(one.left_out, names[key]) for key, one in of_classes.items() if key != FOREGROUND and one.left_out]
        if gone:
            cases = ", ".join(f"{count} of {name}" for count, name in gone)
            yield f"the difference in {HEADS[metric]} leaves out cases where only one of the two has a number: {cases}"


def _level(comparison: Comparison) -> str:
    return f"{100 * comparison.lines[0].confidence['level']:g} % interval"


def _means(comparison: Comparison) -> Table:
    head = ["", "result", "of", "cases", "folds", "checkpoint", "Dice", _level(comparison), "HD95 mm", "NSD"]
    rows = []
    for number, line in _numbered(comparison):
        result, means = line.result, line.tables["foreground_mean"]
        between = line.confidence["foreground_mean"].get("Dice")
        said = [_short(result.name), _short(result.of), str(len(result.cases)), _folds(line), result.checkpoint or NONE]
        interval = f"{between['low']:.3f} to {between['high']:.3f}" if between else NONE
        dice, *others = (_number(means.get(metric), metric) for metric in COMPARED)
        rows.append([number, *said, dice, interval, *others])
    return _without_empty(Table("", head, rows, 2))


def _folds(line: Line) -> str:
    """`0, 1 of 5`; `all 5` where params.yaml says how many there are."""
    folds = line.result.folds
    n_folds = ((line.result.params or {}).get("splits") or {}).get("n_folds")
    if n_folds == len(folds):
        return f"all {n_folds}"
    return (", ".join(folds) or NONE) + (f" of {n_folds}" if n_folds else "")


def _differences(comparison: Comparison) -> Table:
    head = ["", "cases", *(cell for metric in COMPARED for cell in (HEADS[metric], _level(comparison))), "p"]
    rows = []
    for number, line in _numbered(comparison):
        found = {metric: line.differences.get(metric, {}).get(FOREGROUND) for metric in COMPARED}
        n_cases = len(fair.common_cases(comparison.lines[comparison.reference].result, line.result))
        if any(one and one.n for one in found.values()):
            of_dice = found["Dice"] and found["Dice"].p
            cells = [cell for metric, one in found.items() for cell in _difference(one, metric, n_cases)]
            rows.append([number, str(n_cases), *cells, NONE if of_dice is None else f"{of_dice:.2g}"])
    return _without_empty(
        Table(
            f"Difference to {comparison.reference + 1}, over the cases that both have; p of Dice (Wilcoxon)",
            head,
            rows,
            1,
        )
    )


def _difference(one: Difference | None, metric: str, n_cases: int) -> list[str]:
    """The difference, marked where it is not over all classes of all common cases, and its interval."""
    if one is None or one.value is None:
        return [NONE] * 2
    fewer = f" ({one.n} cases)" if one.n < n_cases else f" ({one.left_out} in part)" if one.left_out else ""
    between = NONE if one.low is None else f"{_signed(one.low, metric, 1)} to {_signed(one.high, metric, 1)}"
    return [_signed(one.value, metric) + fewer, between]


def _by_class(comparison: Comparison) -> Table:
    """Dice, the difference in it and its p. Means are over all cases of a result: where a difference is over fewer
    than either of them, how many stands beside it.
    """
    classes = comparison.classes()
    columns = [["", *classes]]
    reference = comparison.lines[comparison.reference]
    for number, line in _numbered(comparison):
        keys = {name: key for key, name in comparison.names(line).items()}
        means, steps = line.tables["mean"], line.differences.get("Dice")
        shown = (_number(means[keys[name]].get("Dice"), "Dice") if name in keys else NONE for name in classes)
        columns.append([number, *shown])
        if steps:
            of_class = ((keys.get(name, ""), steps.get(keys.get(name, ""))) for name in classes)
            marked = [_marked(one, _n_of_means(key, line, reference) if one else 0) for key, one in of_class]
            width = max(len(beside) for _, beside in marked)
            cells = [f"{value}{beside.ljust(width)}" for value, beside in marked]
            columns.append([f"{number} - {comparison.reference + 1} {' ' * width}", *cells])
    head, *rows = map(list, zip(*columns, strict=True))
    return Table("Dice by class (*: the interval of the difference does not hold 0)", head, rows, 1)


def _n_of_means(key: str, *lines: Line) -> int:
    """The most cases that a mean of Dice is over."""
    return max(sum(case[key].get("Dice") is not None for case in line.result.cases.values()) for line in lines)


def _marked(one: Difference | None, n_of_means: int) -> tuple[str, str]:
    """The difference, and what stands beside it."""
    if one is None or one.value is None:
        return f"{NONE} ", ""
    apart = one.low is not None and one.high is not None and (one.low > 0 or one.high < 0)
    p = "" if one.p is None else f"p {one.p:.2g}".ljust(len("p 0.0001"))
    fewer = "" if one.n == n_of_means else f"({one.n} cases)"
    beside = " ".join(filter(None, (p, fewer)))
    return _signed(one.value, "Dice") + ("*" if apart else " "), beside and f" {beside}"


def _settings(comparison: Comparison) -> Table:
    """A column per result."""
    numbers = range(len(comparison.lines))
    rows = [
        [key, *(on_one_line(values[i]) if i in values else NONE for i in numbers)]
        for key, values in comparison.settings.items()
    ]
    return Table("Settings that differ", ["", *(str(i + 1) for i in numbers)], rows, 1)


def _number(value: float | None, metric: str) -> str:
    return NONE if value is None else f"{value:.{DECIMALS[metric]}f}"


def _signed(value: float | None, metric: str, rounded: int = 0) -> str:
    return NONE if value is None else f"{value:+.{DECIMALS[metric] - rounded}f}"


def _short(text: str) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= LONGEST else f"...{text[3 - LONGEST :]}"


def _without_empty(table: Table) -> Table:
    """Columns in which no row has anything are gone."""
    kept = [i for i in range(len(table.head)) if any(row[i] != NONE for row in table.rows)]
    return Table(table.title, [table.head[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.left)


def text(table: Table) -> str:
    """Lines of WIDTH characters where words and one number fit; a table that is wider comes in several parts."""
    columns = [list(column) for column in zip(table.head, *table.rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    words, rest = list(range(table.left)), list(range(table.left, len(columns)))
    parts = [] if rest else [words]
    while rest:
        part = [*words, rest.pop(0)]
        while rest and sum(widths[i] + 2 for i in [*part, rest[0]]) - 2 <= WIDTH:
            part.append(rest.pop(0))
        parts.append(part)
    lines = [row for row in (table.head, *table.rows) if any(row)]
    blocks = ["\n".join(_aligned(row, part, widths, table.left) for row in lines) for part in parts]
    return "\n\n".join([table.title, *blocks] if table.title else blocks)


def _aligned(row: Sequence[str], part: Sequence[int], widths: Sequence[int], left: int) -> str:
    """Words on the left, numbers on the right."""
    return "  ".join(row[i].ljust(widths[i]) if i < left else row[i].rjust(widths[i]) for i in part).rstrip()


def markdown(comparison: Comparison) -> str:
    """All tables and notes."""
    parts = []
    for table in of(comparison):
        parts += [f"**{table.title}**"] if table.title else []
        align = ["---"] * table.left + ["---:"] * (len(table.head) - table.left)
        rows = [[cell.strip().replace("|", "\\|") for cell in row] for row in (table.head, *table.rows)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in (rows[0], align, *rows[1:])))
    listed = [f"- {note}" for note in notes(comparison)]
    return "\n\n".join([*parts, *([f"**{NOTES}**", "\n".join(listed)] if listed else [])]) + "\n"
