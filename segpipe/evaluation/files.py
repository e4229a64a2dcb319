"""Segmentations in files scored against references in files, of any format that is read: `segpipe evaluate`."""

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from segpipe import digest, machine
from segpipe.data import columns, image
from segpipe.data import labels as labels_module
from segpipe.data.image import Volume
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.evaluation import intervals, metrics, summary
from segpipe.params import Evaluate

BYTES_PER_VOXEL = 32  # of both files of a case, while they are read and scored
SHOWN = 10  # cases that a message names


@dataclass(frozen=True)
class Files:
    """Of a case."""

    prediction: Path
    reference: Path

    def read(self) -> tuple[Volume, Volume]:
        """Both label maps, in the values of the files. Raises SegpipeError where one cannot be read."""
        return image.read_label(self.prediction), image.read_label(self.reference)


@dataclass(frozen=True)
class Way:
    """How files are scored.

    labels : None: each value that is found is a class
    geometry_tolerance_mm : largest distance between where both files of a case place a corner of the volume
    cases : a table like cases.tsv, whose column `group` says which cases belong together; None: each is by itself
    threads : None for all that the process has; it is fewer where half of the free memory holds no more cases
    """

    labels: Labels | None
    settings: Evaluate
    geometry_tolerance_mm: float
    cases: Path | None = None
    group: str | None = None
    threads: int | None = None

    def groups(self, ids: Sequence[str]) -> columns.Column | None:
        """Of some cases. Raises SegpipeError where the table does not say it of each."""
        return columns.of_table(self.cases, self.group, ids) if self.cases else None


@dataclass(frozen=True)
class _Facts:
    """What is known of a case before it is scored. values : in the files, but for the background"""

    values: frozenset[int]
    n_voxels: int
    problems: tuple[str, ...]


def evaluate(prediction: Path, reference: Path, way: Way, only_predicted: bool = False) -> dict[str, Any]:
    """The content of a summary.json: of every case of the folder `reference`, or of two files.

    Cases go by the names of their files, whatever the formats; files of no format that is read do not count.

    only_predicted : leave out references without a prediction

    Raises SegpipeError with everything that is missing, unreadable, of another shape or geometry, or of unknown values;
    or for a table that does not group the cases.
    """
    pairs, problems = pair_up(prediction, reference, only_predicted)
    ids = [_id(pair.reference) for pair in pairs]
    groups = way.groups(ids)
    facts = _look(pairs, way)
    problems += chain.from_iterable(one.problems for one in facts)
    found = sorted(frozenset().union(*(one.values for one in facts)))
    if not problems and not found and way.labels is None:
        problems.append(_nothing_to_score(reference))
    raise_all(f"{prediction} cannot be scored", problems)
    labels = way.labels or labels_module.parse({"background": 0, **{str(value): value for value in found}}, None, "")
    way.settings.tolerances_mm(labels.foreground)
    with ThreadPoolExecutor(_at_once(facts, way)) as pool:
        rows = list(pool.map(lambda pair: _score(pair, labels, way.settings), pairs))
    return {
        **summary.tables(rows),
        "confidence": intervals.confidence(rows, intervals.units(ids, groups, way.group), way.settings),
        "groups": None if groups is None else {"column": way.group, "of_case": groups},
        "labels": labels.to_json(),
        "settings": {"evaluate": way.settings.model_dump(mode="json")},
        "versions": summary.versions(),
    }


def write_csv(path: Path, content: dict[str, Any]) -> None:
    """One line per case and class of a summary's content; what is null is empty."""
    with digest.new_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["reference_file", "prediction_file", "class", *metrics.METRICS])
        writer.writeheader()
        for row in content["metric_per_case"]:
            files = {key: row[key] for key in ("reference_file", "prediction_file")}
            writer.writerows({**files, "class": key, **numbers} for key, numbers in row["metrics"].items())


def pair_up(prediction: Path, reference: Path, only_predicted: bool) -> tuple[list[Files], list[str]]:
    """The cases, sorted by name, and what is wrong with the names. Both are folders, or both files."""
    for path in (prediction, reference):
        if not path.exists():
            return [], [_missing("nothing there", path, "no such file or folder", "label maps")]
    if not prediction.is_dir() and not reference.is_dir():
        return [Files(prediction, reference)], []
    if not (prediction.is_dir() and reference.is_dir()):
        found = f"{prediction} and {reference}"
        return [], [_missing("a file against a folder", found, "one of each", "two files or two folders")]
    problems: list[str] = []
    predicted, references = (_cases(folder, problems) for folder in (prediction, reference))
    unknown = sorted(predicted.keys() - references.keys())
    if unknown:
        problems.append(
            _missing("predictions without reference", prediction, _listed(unknown), f"those in {reference}")
        )
    absent = sorted(references.keys() - predicted.keys())
    if absent and not only_predicted:
        expected = f"predictions of these cases in {prediction}, or --only-predicted"
        problems.append(_missing("references without prediction", reference, _listed(absent), expected))
    both = sorted(predicted.keys() & references.keys())
    if not both and not problems:
        problems.append(_missing("nothing to score", prediction, "no label maps", "label maps"))
    return [Files(predicted[case], references[case]) for case in both], problems


def _cases(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The label maps of a folder by the name of their case."""
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        case = _id(path)
        if case == path.name or path.name.startswith(".") or path.is_dir():
            continue
        if case.endswith(image.BESIDE_SEGMENTATIONS):
            continue
        if case in cases:
            problems.append(_missing("two files of one case", folder, f"{cases[case].name}, {path.name}", "one"))
        cases[case] = path
    return cases


def _id(path: Path) -> str:
    """The name of a file without its ending; with it, where it is of no format that is read."""
    ending = next((end for end in image.FILE_ENDINGS if path.name.lower().endswith(end)), "")
    return path.name[: len(path.name) - len(ending)]


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
    return ", ".join(cases[:SHOWN]) + more


def _missing(what: str, where: object, found: object, expected: object) -> str:
    return problem(what, where=where, found=found, expected=expected, cure="correct the paths, or move the files")


def _look(pairs: Sequence[Files], way: Way) -> list[_Facts]:
    """At every case, before any is scored; at the one with the largest files alone, which says how many go at once."""
    if not pairs:
        return []
    largest = max(pairs, key=lambda pair: pair.prediction.stat().st_size + pair.reference.stat().st_size)
    first = _facts(largest, way)
    with ThreadPoolExecutor(_at_once([first], way)) as pool:
        return list(pool.map(lambda pair: first if pair is largest else _facts(pair, way), pairs))


def _at_once(facts: Sequence[_Facts], way: Way) -> int:
    """Cases that are worked on together."""
    return machine.at_once(way.threads, max(1, *(each.n_voxels for each in facts)) * BYTES_PER_VOXEL)


def _facts(pair: Files, way: Way) -> _Facts:
    try:
        predicted, reference = pair.read()
    except SegpipeError as error:
        return _Facts(frozenset(), 0, (str(error),))
    values = [{int(value) for value in np.unique(volume.array)} for volume in (predicted, reference)]
    problems = [*_misfits(pair, predicted, reference, way.geometry_tolerance_mm)]
    for path, volume, found in zip((pair.prediction, pair.reference), (predicted, reference), values, strict=True):
        problems += _unknown(path, volume, found, way.labels)
    return _Facts(frozenset(values[0] | values[1]) - {0}, reference.array.size, tuple(problems))


def _misfits(pair: Files, predicted: Volume, reference: Volume, tolerance_mm: float) -> Iterator[str]:
    """Where both label maps do not lie on one grid."""
    if predicted.array.shape != reference.array.shape:
        yield problem(
            "shapes differ",
            where=pair.prediction,
            found=f"{predicted.array.shape} voxels (C, Z, Y, X)",
            expected=f"{reference.array.shape} as {pair.reference}",
            cure="resample it onto the reference's grid",
        )
        return
    if len(reference.array) != 1:
        found, expected = f"{len(reference.array)} channels", "one: a label map"
        yield problem("not a label map", where=pair.reference, found=found, expected=expected, cure="correct the paths")
    distance = float(np.abs(predicted.corners_mm() - reference.corners_mm()).max())
    if distance > tolerance_mm:
        yield problem(
            "geometry differs",
            where=pair.prediction,
            found=f"a corner of the volume {distance:.3g} mm away from that of {pair.reference}",
            expected=f"at most {tolerance_mm} mm",
            cure="correct the header, or raise check.geometry_tolerance_mm if the voxels do match",
        )


def _unknown(path: Path, volume: Volume, values: set[int], labels: Labels | None) -> Iterator[str]:
    """Values that mean nothing."""
    if labels is None:
        odd, expected = {value for value in values if value < 0}, "0 for the background, whole numbers above it"
    else:
        mapped = labels.of_binary(np.array(sorted(values)))
        odd, expected = set(mapped.tolist()) - set(labels.file_values), labels.described()
    if odd:
        found, cure = ", ".join(map(str, sorted(odd))), "correct the label map, or the labels"
        yield problem("unknown label values", where=path, found=found, expected=expected, cure=cure)


def _nothing_to_score(reference: Path) -> str:
    found, expected = "background alone, in all predictions and references", "a class"
    cure = "name the classes with --labels dataset.json"
    return problem("nothing to score", where=reference, found=found, expected=expected, cure=cure)


def _score(pair: Files, labels: Labels, settings: Evaluate) -> summary.CaseRow:
    volumes = pair.read()
    predicted, reference = (labels.from_files(labels.of_binary(volume.array[0])) for volume in volumes)
    numbers = metrics.case_metrics(predicted, reference, labels, None, volumes[1].spacing_mm, settings)
    return summary.case_row(numbers, os.fspath(pair.prediction), os.fspath(pair.reference))
