"""volumes.csv: how large each class is, in each label and each prediction."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.data.labels import belongs
from segpipe.params import Runtime

LABEL, VALIDATION, TEST = "training label", "validation prediction", "test prediction"
COLUMNS = ("case", "split", "class", "voxels", "volume_ml", "spacing_z_mm", "spacing_y_mm", "spacing_x_mm")
Row = dict[str, str]


def write(cases: Cases, validated: list[Path], predicted: Path | None, out: Path, runtime: Runtime) -> None:
    """Measure every label file, every prediction of a validation case and every prediction of imagesTs.

    validated : the folders of the folds' segmentations; predicted : that of imagesTs, if there are test images
    A class that a partly labelled case has no annotations of has no line; a 2D image has no volume.
    """
    jobs = [
        *((LABEL, case, partial(cases.read_label, case)) for case in cases.training),
        *_files(cases, VALIDATION, {case: path for folder in validated for case, path in _found(cases, folder)}),
        *_files(cases, TEST, dict(_found(cases, predicted)) if predicted else {}),
    ]
    with ThreadPoolExecutor(cases.at_once(runtime.threads)) as pool:
        rows = pool.map(lambda job: _measure(cases, *job), jobs)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for of_case in rows:
            writer.writerows(of_case)
    digest.write_text(out, text.getvalue())


def read(path: Path) -> list[Row]:
    """The lines of a volumes.csv, as text."""
    with path.open() as file:
        return list(csv.DictReader(file))


def _found(cases: Cases, folder: Path) -> Iterator[tuple[str, Path]]:
    """(case, file) of the segmentations in a folder."""
    known = {*cases.training, *cases.test}
    for path in sorted(folder.glob(f"*{cases.label_ending}")):
        if (case := path.name.removesuffix(cases.label_ending)) in known:
            yield case, path


Read = Callable[[], NDArray[np.integer]]


def _files(cases: Cases, split: str, paths: Mapping[str, Path]) -> Iterator[tuple[str, str, Read]]:
    for case, path in sorted(paths.items()):
        yield split, case, partial(cases.read_segmentation, path)


def _measure(cases: Cases, split: str, case: str, read_map: Read) -> list[Row]:
    """The lines of one label map."""
    spacing_mm = cases.entry(case)["spacing_mm"]
    is_2d = np.isclose(spacing_mm[0], SLICE_THICKNESS_2D * max(spacing_mm[1:]))
    annotated = cases.annotated(case) if split == LABEL else None
    array = read_map()
    rows = []
    for name, values in cases.labels.foreground.items():
        if annotated is None or name in annotated:
            voxels = int(np.count_nonzero(belongs(array, values)))
            ml = "" if is_2d else f"{voxels * float(np.prod(spacing_mm)) / 1000:.6g}"
            edges = {f"spacing_{axis}_mm": f"{edge:.6g}" for axis, edge in zip("zyx", spacing_mm, strict=True)}
            rows.append({"case": case, "split": split, "class": name, "voxels": str(voxels), "volume_ml": ml, **edges})
    return rows
