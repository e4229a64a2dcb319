"""cases.tsv beside dataset.json: what is known of each case (patient, site, ...), and which classes it has annotated.

Tab separated, with a header. The first column is `case`. A column `annotated` names the classes or regions of a partly
labelled case, separated by semicolons; empty: all of them. Every other column is an attribute that folds may follow.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem

NAME = "cases.tsv"
ANNOTATED = "annotated"


@dataclass(frozen=True)
class Row:
    """What the table says of one case.

    attributes : value by column, "" where the field is empty; no columns where the table lacks the case
    annotated : classes or regions in the order of dataset.json; None: all of them
    """

    attributes: dict[str, str] = field(default_factory=dict)
    annotated: list[str] | None = None


def read(root: Path, labels: Labels, cases: Collection[str], problems: list[str]) -> dict[str, Row]:
    """The rows of cases.tsv by case; none where there is no such file. What is wrong with it is added to `problems`.

    cases : every id of the dataset
    """
    path = root / NAME
    if not path.is_file():
        return {}
    try:
        table = lines(path)
    except SegpipeError as error:
        problems.append(str(error))
        return {}
    ids = [line["case"] for _, line in table]
    problems += [*_unknown(path, ids, cases), *twice(path, ids)]
    return {line["case"]: _row(f"{path}, line {number}", line, labels, problems) for number, line in table}


def lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, fields by column) of every line that is not empty.

    Raises SegpipeError where the file is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _malformed(path, error.strerror, "a table", "correct the path") from None
    except UnicodeDecodeError as error:
        raise _malformed(path, error, "text in UTF-8", "save it as UTF-8") from None
    rows = [[value.strip() for value in line.split("\t")] for line in text.splitlines()]
    header = rows[0] if rows else []
    expected = "columns with different names, separated by tabs; the first one is `case`"
    if header[:1] != ["case"] or "" in header or len(set(header)) < len(header):
        raise _malformed(f"{path}, line 1", repr("\t".join(header)), expected, "correct the header")
    filled = [(number, row) for number, row in enumerate(rows[1:], 2) if any(row)]
    for number, row in filled:
        if len(row) > len(header) or not row[0]:
            found = f"{len(row)} fields, case {row[0]!r}"
            raise _malformed(f"{path}, line {number}", found, f"a case and up to {len(header)} fields", "correct it")
    # programs leave empty fields at the end of a line out
    return [(number, dict(zip(header, row + [""] * len(header), strict=False))) for number, row in filled]


def voxel_problems(path: Path, values: Collection[int], annotated: list[str] | None, labels: Labels) -> Iterator[str]:
    """Voxels of classes that a partly labelled case is said not to be annotated with.

    values : those of the label map, as in the file
    """
    if annotated is None:
        return
    used = [name for name, of_class in labels.foreground.items() if set(values) & _own(of_class, annotated, labels)]
    if used:
        yield problem(
            "voxels of classes that are not annotated",
            where=path,
            found=", ".join(used),
            expected=f"only {', '.join(annotated)}, as {NAME} says",
            cure=f"name them in the column {ANNOTATED} of {NAME}, or remove them from the label map",
        )


def _own(of_class: tuple[int, ...], annotated: list[str], labels: Labels) -> set[int]:
    """The file values of a class that no annotated class has."""
    shared = {value for name in annotated for value in labels.names[name]}
    return {labels.file_values[value] for value in of_class if value not in shared}


def _malformed(where: object, found: object, expected: str, cure: str) -> SegpipeError:
    return SegpipeError(problem(f"{NAME} is no table", where=where, found=found, expected=expected, cure=cure))


def _unknown(path: Path, ids: list[str], cases: Collection[str]) -> Iterator[str]:
    unknown = sorted(set(ids) - set(cases))
    if unknown:
        yield problem(
            "unknown cases",
            where=path,
            found=", ".join(unknown),
            expected=f"ids of the dataset, such as {min(cases, default='none: it has no cases')}",
            cure="correct the ids, or remove the lines",
        )


def twice(path: Path, ids: list[str]) -> Iterator[str]:
    """What is wrong with a table where cases stand in it several times."""
    several = sorted(case for case, n in Counter(ids).items() if n > 1)
    if several:
        yield problem(
            "cases with several lines",
            where=path,
            found=", ".join(several),
            expected="one line per case",
            cure="remove all but one",
        )


def _row(where: str, line: Mapping[str, str], labels: Labels, problems: list[str]) -> Row:
    named = [name.strip() for name in line.get(ANNOTATED, "").split(";") if name.strip()]
    unknown = [name for name in named if name not in labels.foreground]
    if unknown:
        problems.append(
            problem(
                "unknown classes",
                where=f"{where}: {ANNOTATED}",
                found="; ".join(unknown),
                expected=f"some of {'; '.join(labels.foreground)}, or nothing: all of them",
                cure="use the names of dataset.json",
            )
        )
    annotated = [name for name in labels.foreground if name in named]
    attributes = {name: value for name, value in line.items() if name not in ("case", ANNOTATED)}
    return Row(attributes, annotated if 0 < len(annotated) < len(labels.foreground) else None)
