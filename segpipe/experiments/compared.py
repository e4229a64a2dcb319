"""Several results against one of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe import params as params_yaml
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.evaluation import intervals, summary
from segpipe.experiments import fair, found, pairs, patients, settings
from segpipe.experiments.found import Json, Result
from segpipe.experiments.pairs import Difference
from segpipe.experiments.patients import Patients
from segpipe.params import Evaluate

NOT_OF_RESULTS = ("runtime", "download", "search")  # sections of params.yaml from which no number follows
PATHS = ("dataset", "plan.file", "splits.file", "train.pretrained_weights")


@dataclass(frozen=True)
class Line:
    """A result, its means and their intervals as summary.json has them, and how it differs from the reference.

    differences : by metric and class; empty for the reference; remarks : what makes the comparison unfair
    """

    result: Result
    tables: Json
    confidence: Json
    differences: dict[str, dict[str, Difference]]
    remarks: list[str]


@dataclass(frozen=True)
class Comparison:
    """All lines, which of them is the reference, and the settings that are not the same in all experiments."""

    lines: list[Line]
    reference: int
    settings: dict[str, dict[int, Any]]

    def classes(self) -> list[str]:
        """Every class that a result has, by its name."""
        return list(dict.fromkeys(name for line in self.lines for name in self.names(line).values()))

    def names(self, line: Line) -> dict[str, str]:
        """The classes of a result, by what summary.json calls them. nnU-Net's has no names: they are those of the
        first result, the reference before all others, that has as many classes.
        """
        results = [self.lines[self.reference].result, *(line.result for line in self.lines)]
        alike = (result.classes for result in results if result.classes and result.keys == line.result.keys)
        names = line.result.classes or next(alike, {})
        return {key: names.get(key, key) for key in line.result.keys}


def read(paths: Sequence[Path], only_finished: bool) -> tuple[list[Result], list[str]]:
    """The results of all paths, and a line on each without; raised where `only_finished` does not allow it.

    Raises SegpipeError with everything that is missing or no summary.
    """
    results: list[Result] = []
    wrong: dict[Path, str] = {}
    for path in paths:
        try:
            results += found.read(path)
        except SegpipeError as error:
            wrong[path] = str(error)
    if not only_finished or not results:
        raise_all("nothing is compared", wrong.values())
    return results, [_in_short(path, said) for path, said in wrong.items()]


def _in_short(path: Path, said: str) -> str:
    """What is wrong and what was found, of a problem in several lines."""
    what, *parts = said.splitlines()
    return ": ".join([str(path), what, *(part.partition("found:")[2].strip() for part in parts if "found:" in part)])


def compare(results: Sequence[Result], reference: Path | None, evaluate: Evaluate) -> Comparison:
    """Every result against the one of a path, the first where None. Raises SegpipeError where it is none of them."""
    index = 0 if reference is None else _index(results, reference)
    lines = [_line(result, results[index], evaluate) for result in results]
    return Comparison(lines, index, _settings(results))


def _index(results: Sequence[Result], reference: Path) -> int:
    for index, result in enumerate(results):
        if Path(result.name) == reference:
            return index
    names = ", ".join(dict.fromkeys(result.name for result in results))
    cure = "name one of those"
    raise SegpipeError(
        problem("the reference is not compared", where="--reference", found=reference, expected=names, cure=cure)
    )


def _line(result: Result, reference: Result, evaluate: Evaluate) -> Line:
    rows = [summary.case_row(dict(numbers), "", "") for numbers in result.cases.values()]
    of = patients.units(list(result.cases), result.patients, _of_common(reference, result))
    remarks, differences = [*fair.own_remarks(result), *filter(None, [patients.remark(of)])], {}
    if result is not reference:
        remarks += fair.remarks(reference, result)
        differences = {metric: pairs.differences(reference, result, metric, evaluate) for metric in pairs.COMPARED}
    return Line(result, summary.tables(rows), intervals.confidence(rows, of, evaluate), differences, remarks)


def _of_common(reference: Result, result: Result) -> Patients | None:
    """What the reference knows of the cases that both have: nnU-Net's results know no patients."""
    if reference.patients is None:
        return None
    of_case, common = reference.patients.of_case, fair.common_cases(reference, result)
    return Patients(reference.patients.column, {case: of_case[case] for case in common if case in of_case})


def _settings(results: Sequence[Result]) -> dict[str, dict[int, Any]]:
    """What is not the same in all results that have settings, by key and number of the result.

    What a summary was made with counts, and params.yaml for all that it does not say. The dataset's path counts where
    its digest does not say that it is the same one.
    """
    known = [_known(result) for result in results]
    differing = settings.differing([one for one in known if one])
    digests = {result.identity.get("dataset") for result in results}
    if len(digests) == 1 and None not in digests:
        differing.pop("dataset", None)
    with_settings = [index for index, one in enumerate(known) if one]
    return {key: dict(zip(with_settings, values, strict=True)) for key, values in differing.items()}


def _known(result: Result) -> Json:
    """The settings that a result follows from, with paths as they are from here."""
    sections = {**(result.params or {}), **result.recorded}
    known = {name: block for name, block in sections.items() if name not in NOT_OF_RESULTS}
    for key, path in settings.flat(known):
        if key in PATHS and isinstance(path, str):
            known = params_yaml.put(known, key, os.path.normpath(result.folder / path))
    return known
