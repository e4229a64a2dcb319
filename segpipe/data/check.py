"""Integrity of the raw dataset: every file is read once, every problem is reported at once, before any computation.

The only rule that reads all raw files. What it writes, cases.json, names them with their digests; later rules depend on
it. Whether they are still the same, raw_files.py says.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np

from segpipe import digest, machine
from segpipe.data import (
    case_table,
    check_facts,
    check_page,
    check_picture,
    check_report,
    check_warnings,
    dataset,
    image,
    raw_files,
)
from segpipe.data.case_table import Row
from segpipe.data.check_report import Checked, Report
from segpipe.data.dataset import CaseFiles, Description
from segpipe.data.image import Volume, read_image, read_label
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params import Check

log = getLogger(__name__)

PAGE = "check.html"
THREADS = 8  # what the rule asks for; each holds one case in memory


def check(root: Path, out: Path, settings: Check, n_folds: int) -> None:
    """Read every file of the dataset and write cases.json and, beside it, check.html.

    Raises SegpipeError with all problems, before anything is written: missing or extra files, unreadable files, NaN,
    shape or geometry mismatch between images and label, unknown label values, wrong channel count, fewer cases than
    folds. What is only suspicious is a warning.
    """
    before, tables = raw_files.dates(root), raw_files.of_tables(root)
    report = inspect(root, settings, n_folds)
    raise_problems(report)
    description = report.description
    write_page(report, out.with_name(PAGE))
    digest.write_json(
        out,
        {
            "dataset": root.resolve().name,
            "channel_names": list(description.channel_names),
            "labels": description.labels.to_json(),
            "orientation": settings.orientation,
            "file_ending": description.file_ending,
            "about": description.about,
            "training": {one.case: one.entry for one in report.cases if one.training},
            "test": {one.case: one.entry for one in report.cases if not one.training},
        },
    )
    raw_files.record(out, before, tables)
    log.info("%s", check_report.table(report))


def raise_problems(report: Report) -> None:
    """Raises SegpipeError where the dataset cannot be used, with all problems."""
    raise_all(f"{report.root} cannot be used", report.problems)


def write_page(report: Report, path: Path) -> None:
    """Write check.html, of a dataset that cannot be used as well."""
    digest.write_text(path, check_page.html(report))


def inspect(root: Path, settings: Check, n_folds: int) -> Report:
    """Read every file of the dataset, a few cases at a time, and say everything that is wrong or suspicious.

    Raises SegpipeError where dataset.json does not say what the cases are.
    """
    description = dataset.describe(root)
    cases = [
        (case, files, training)
        for training, group in ((True, description.training), (False, description.test))
        for case, files in group.items()
    ]
    in_table: list[str] = []
    table = case_table.read(root, description.labels, [case for case, *_ in cases], in_table)
    with ThreadPoolExecutor(min(THREADS, machine.n_threads(None))) as pool:
        jobs = [
            pool.submit(
                _check_case, root, Checked(case, training), files, description, settings, table.get(case, Row())
            )
            for case, files, training in cases
        ]
        checked = [job.result() for job in jobs]
    facts = {one.case: one.facts for one in checked if one.facts}
    problems = [*_dataset_problems(root, description, n_folds), *in_table]
    return Report(root, description, checked, problems, check_warnings.notices(root, facts, description, settings))


def _dataset_problems(root: Path, description: Description, n_folds: int) -> Iterator[str]:
    n_cases = len(description.training)
    if description.n_training not in (None, n_cases):
        yield problem(
            "wrong number of cases",
            where=f"{root / 'dataset.json'}: numTraining",
            found=f"{n_cases} training cases",
            expected=description.n_training,
            cure="correct numTraining, or add the missing cases",
        )
    if n_cases < n_folds:
        yield problem(
            "fewer cases than folds",
            where=root,
            found=f"{n_cases} training cases",
            expected=f"at least {n_folds}",
            cure="add cases, or lower splits.n_folds in params.yaml",
        )
    twice = sorted(set(description.training) & set(description.test))
    if twice:
        yield problem(
            "the same id in imagesTr and imagesTs",
            where=root,
            found=", ".join(twice),
            expected="unique ids",
            cure="rename the test cases",
        )


def _check_case(
    root: Path, one: Checked, files: CaseFiles, description: Description, settings: Check, row: Row
) -> Checked:
    """Read the files of one case, and fill in what is to be said of it."""
    problems = one.problems
    problems += _name_problems(root, one.case, files, description)
    names_fit = not problems
    images = {path: _read(read_image, root / path, problems) for path in files.images}
    label = {files.label: _read_label(root / files.label, description, problems)} if files.label else {}
    stored = {path: volume for path, volume in {**images, **label}.items() if volume}
    axes = next((image.axis_codes(volume) for volume in stored.values() if not volume.is_2d), "")
    volumes = {path: image.turned(volume, settings.orientation) for path, volume in stored.items()}
    if names_fit and volumes.keys() >= images.keys():
        problems += _channel_problems(root, [volumes[path] for path in images], files, description)
    problems += _grid_problems(root, volumes, settings)
    if files.label in volumes:
        problems += _label_problems(root / files.label, volumes[files.label], description, row)
    read = [volumes[path] for path in images if path in volumes]
    _describe(one, read, volumes.get(files.label) if files.label else None, axes, description.labels)
    if not problems:
        one.entry.update(_entry(root, files, volumes[files.images[0]], row))
    return one


def _describe(one: Checked, images: list[Volume], label: Volume | None, axes: str, labels: Labels) -> None:
    """Facts and a picture, also of a case that cannot be used, as far as its files are on one grid."""
    images = [image for image in images if image.shape == images[0].shape]
    label = label if label and images and label.shape == images[0].shape else None
    if images:
        one.picture = check_picture.png(images[0], label, labels)
        one.facts = check_facts.measure(images, label, axes, labels)


def _entry(root: Path, files: CaseFiles, first: Volume, row: Row) -> dict[str, Any]:
    """What cases.json says of a case."""
    return {
        "images": {path: image.identity(root / path) for path in files.images},
        "label": {files.label: image.identity(root / files.label)} if files.label else None,
        "shape": list(first.shape),
        "spacing_mm": list(first.spacing_mm),
        "annotated": row.annotated if files.label else None,
        "attributes": row.attributes,
    }


def _read(reader: Any, path: Path, problems: list[str]) -> Volume | None:
    try:
        volume: Volume = reader(path)
        return volume
    except SegpipeError as error:
        problems.append(str(error))
        return None


def _read_label(path: Path, description: Description, problems: list[str]) -> Volume | None:
    label = _read(read_label, path, problems)
    if label is None:
        return None
    return dataclasses.replace(label, array=description.labels.of_binary(label.array.astype(np.int16, copy=False)))


def _name_problems(root: Path, case: str, files: CaseFiles, description: Description) -> Iterator[str]:
    """Missing and extra files of a layout with one file per channel. Files that are listed are missed when read.

    Formats for colours may have fewer files, at least one: the channels are counted when they are read.
    """
    if not description.one_file_per_channel:
        return
    folder = "imagesTr" if files.label else "imagesTs"
    n_files = len(description.channel_names)
    if image.may_hold_several_channels(description.file_ending):
        n_files = min(n_files, max(1, len(files.images)))
    expected = [f"{folder}/{case}_{number:04d}{description.file_ending}" for number in range(n_files)]
    missing = [f"missing {path}" for path in expected if path not in files.images]
    extra = [f"extra {path}" for path in files.images if path not in expected]
    if missing or extra:
        yield problem(
            "wrong image files",
            where=f"{root}, case {case}",
            found="; ".join(missing + extra),
            expected=f"{len(expected)} file(s): {', '.join(expected)}",
            cure="add or remove files, or correct channel_names in dataset.json",
        )


def _channel_problems(root: Path, images: list[Volume], files: CaseFiles, description: Description) -> Iterator[str]:
    found = sum(len(image.array) for image in images)
    if found != len(description.channel_names):
        yield problem(
            "wrong number of channels",
            where=root / files.images[0],
            found=found,
            expected=f"{len(description.channel_names)}: {', '.join(description.channel_names)}",
            cure="correct the images, or channel_names in dataset.json",
        )


def _grid_problems(root: Path, volumes: dict[str, Volume], settings: Check) -> Iterator[str]:
    """Where the files of a case differ from the first of them."""
    for path, volume in list(volumes.items())[1:]:
        reference, first = next(iter(volumes.items()))
        if volume.shape != first.shape:
            yield problem(
                "shapes differ",
                where=root / path,
                found=f"{volume.shape} voxels (Z, Y, X)",
                expected=f"{first.shape} as {reference}",
                cure=_cure(volume, first, "resample it onto the image's grid"),
            )
        elif not np.allclose(volume.spacing_mm, first.spacing_mm, rtol=1e-3):
            yield problem(
                "spacings differ",
                where=root / path,
                found=f"{_mm(volume)} mm (Z, Y, X)",
                expected=f"{_mm(first)} as {reference}",
                cure=_cure(volume, first, "correct the header"),
            )
        else:
            distance = float(np.abs(volume.corners_mm() - first.corners_mm()).max())
            if distance > settings.geometry_tolerance_mm:
                yield problem(
                    "geometries differ",
                    where=root / path,
                    found=f"a corner lies {distance:.3g} mm off {reference}",
                    expected=f"at most {settings.geometry_tolerance_mm} mm",
                    cure=_cure(
                        volume,
                        first,
                        "correct the header, or raise check.geometry_tolerance_mm if the voxels do match",
                    ),
                )


def _cure(volume: Volume, first: Volume, otherwise: str) -> str:
    """Files that fit but for the order and the direction of their axes need no correction."""
    axes = [image.axis_codes(one) for one in (volume, first)]
    return (
        otherwise if axes[0] == axes[1] else f"set check.orientation: RAS; its axes lead to {' and not to '.join(axes)}"
    )


def _mm(volume: Volume) -> str:
    return " x ".join(f"{edge:.4g}" for edge in volume.spacing_mm)


def _label_problems(path: Path, label: Volume, description: Description, row: Row) -> Iterator[str]:
    values = np.unique(label.array[label.array != 0]).tolist()  # 0, most of a volume, is always the background
    unknown = sorted(set(values) - set(description.labels.file_values))
    yield from case_table.voxel_problems(path, values, row.annotated, description.labels)
    if len(label.array) != 1:
        yield problem(
            "label with several channels",
            where=path,
            found=len(label.array),
            expected=1,
            cure="store one label map",
        )
    elif unknown:
        yield problem(
            "unknown label values",
            where=path,
            found=", ".join(map(str, unknown)),
            expected=description.labels.described(),
            cure="correct the label map, or add the class to dataset.json",
        )
