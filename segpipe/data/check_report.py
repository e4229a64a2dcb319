"""What a check found, and its table for the screen."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.data.check_facts import Facts
from segpipe.data.check_warnings import Notice
from segpipe.data.dataset import Description
from segpipe.data.labels import IGNORE

ALL_CASES = 40  # more are summed up on the screen; the page has them all
EXAMPLES = 5


@dataclass
class Checked:
    """One case: its entry in cases.json, or what is wrong with it; facts and a picture where its files can be read."""

    case: str
    training: bool
    entry: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    facts: Facts | None = None
    picture: bytes | None = None


@dataclass(frozen=True)
class Report:
    """A dataset: its cases in the order of the ids, training before test, and what concerns all of them."""

    root: Path
    description: Description
    cases: list[Checked]
    dataset_problems: list[str]
    notices: list[Notice]

    @property
    def problems(self) -> list[str]:
        """Everything for which the dataset cannot be used."""
        return [*self.dataset_problems, *(text for case in self.cases for text in case.problems)]

    @property
    def facts(self) -> dict[str, Facts]:
        """Of the cases that could be measured."""
        return {checked.case: checked.facts for checked in self.cases if checked.facts}

    def by_kind(self) -> dict[str, list[Notice]]:
        """The warnings, those of one kind together."""
        kinds = defaultdict(list)
        for notice in self.notices:
            kinds[notice.what].append(notice)
        return dict(kinds)


def table(report: Report) -> str:
    """The table for the screen: the dataset, its classes, its cases where they are few, the warnings."""
    facts = report.facts
    return "\n".join(
        [
            headline(report),
            *(f"  {name:<12} {value}" for name, value in summary(report)),
            "",
            *columns([("class", "cases", "voxels", "ml", "share"), *class_rows(report)]),
            *(["", *columns([_head(report), *_case_rows(report)])] if len(facts) <= ALL_CASES else []),
            *warning_lines(report),
            "",
            f"problems: {len(report.problems)}, warnings: {len(report.notices)}",
        ]
    )


def headline(report: Report) -> str:
    """Name and size."""
    description = report.description
    return f"{report.root.resolve().name}: {len(description.training)} training and {len(description.test)} test cases"


def summary(report: Report) -> Iterator[tuple[str, str]]:
    """(name, value) of what the cases have in common."""
    facts = [*report.facts.values()]
    yield "channels", ", ".join(report.description.channel_names)
    if facts:
        shapes = np.array([one.shape for one in facts])
        spacings = np.array([one.spacing_mm for one in facts])
        yield "shape", f"{_ranges(shapes, '{:.0f}')} voxels (Z, Y, X)"
        yield "spacing", f"{_ranges(spacings, '{:.4g}')} mm"
        if not all(one.is_2d for one in facts):
            yield "orientation", ", ".join(sorted({one.orientation for one in facts if not one.is_2d}))
    in_files = report.description.labels.file_values
    if in_files != tuple(range(len(in_files))):
        yield "mapping", ", ".join(f"{value} in the files is {new}" for new, value in enumerate(in_files))


def _ranges(values: np.ndarray, form: str) -> str:
    """Lowest and highest value per axis."""
    ends = [(form.format(low), form.format(high)) for low, high in zip(values.min(0), values.max(0), strict=True)]
    return " x ".join(low if low == high else f"{low}..{high}" for low, high in ends)


def class_rows(report: Report) -> list[tuple[str, ...]]:
    """Per class: cases that have it, mean voxels and volume over those, share of all voxels of the labelled cases."""
    labelled = [one for one in report.facts.values() if one.voxels is not None]
    total = sum(int(np.prod(one.shape)) for one in labelled)
    return [_class_row(name, labelled, total) for name in class_names(report)]


def class_names(report: Report) -> list[str]:
    """The classes or regions that are counted, and the ignore label."""
    labels = report.description.labels
    return [*labels.foreground, *([] if labels.ignore is None else [IGNORE])]


def _class_row(name: str, labelled: list[Facts], total: int) -> tuple[str, ...]:
    counted = [(one.voxels[name], one.ml_per_voxel) for one in labelled if one.voxels and one.voxels[name]]
    ml = [voxels * per_voxel for voxels, per_voxel in counted if per_voxel is not None]
    return (
        name,
        f"{len(counted)} of {len(labelled)}",
        f"{np.mean([voxels for voxels, _ in counted]):.0f}" if counted else "-",
        f"{np.mean(ml):.4g}" if ml else "-",
        f"{100 * sum(voxels for voxels, _ in counted) / total:.2g} %" if total else "-",
    )


def _head(report: Report) -> tuple[str, ...]:
    return ("case", "", "shape", "spacing_mm", "axes", *class_names(report))


def _case_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for case, one in report.facts.items():
        voxels = one.voxels or {}
        kind = "training" if case in report.description.training else "test"
        counts = (str(voxels.get(name, "-")) for name in class_names(report))
        yield case, kind, times(one.shape), times(one.spacing_mm), one.orientation, *counts


def times(values: Sequence[float]) -> str:
    """`24 x 32 x 32`."""
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines in which the cells of a column begin at the same place."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def warning_lines(report: Report) -> Iterator[str]:
    """The warnings by kind, a few cases of each."""
    for what, found in report.by_kind().items():
        yield ""
        concerned = {notice.case for notice in found if notice.case}
        yield f"warning: {what}" + (f" ({len(concerned)} case{'s' * (len(concerned) > 1)})" if concerned else "")
        for notice in found[:EXAMPLES]:
            yield f"  {notice.case}: {notice.detail}" if notice.case else f"  {notice.detail}"
        if len(found) > EXAMPLES:
            yield f"  ... and {len(found) - EXAMPLES} more: check.html"
