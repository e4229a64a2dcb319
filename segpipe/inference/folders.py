"""Folders of predictions, of segpipe or nnU-Net: what lies in them, what its classes mean, and how one is filled.

CASE.nii.gz (or another format) with CASE.npz beside it, or, in a validation, segmentations/ and softmax/. Of nnU-Net's
files, CASE.pkl is never read.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data import dataset_json, image
from segpipe.data import labels as labels_module
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all

log = getLogger(__name__)

MEANING = "labels.json"
RECORDS = ".segpipe"  # folder of the digests of finished cases


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of predictions.

    softmax, segmentations : the file of each case
    labels : None where nothing says what the classes are
    orientation : of the arrays in the softmax files, as in `image.turned`
    """

    path: Path
    softmax: dict[str, Path]
    segmentations: dict[str, Path]
    labels: Labels | None
    orientation: str

    @classmethod
    def read(cls, path: Path) -> "Folder":
        """List a folder. Raises SegpipeError where there is none."""
        if not path.is_dir():
            expected, cure = "a folder of predictions", "correct the path"
            raise SegpipeError(problem("no such folder", where=path, found="none", expected=expected, cure=cure))
        softmax = {file.stem: file for file in sorted(_inner(path, "softmax").glob("[!.]*.npz"))}
        labels, orientation = _meaning(path)
        return cls(path, softmax, _segmentations(_inner(path, "segmentations")), labels, orientation)


def describe(folder: Path, labels: Labels, orientation: str) -> None:
    """Write what the classes of a folder of predictions are."""
    digest.write_json(folder / MEANING, {"labels": labels.to_json(), "orientation": orientation})


def _inner(path: Path, name: str) -> Path:
    return path / name if (path / name).is_dir() else path


def _segmentations(folder: Path) -> dict[str, Path]:
    found = {}
    for file in sorted(folder.glob("[!.]*")):
        ending = max((end for end in image.FILE_ENDINGS if file.name.lower().endswith(end)), key=len, default=None)
        case = file.name[: -len(ending)] if ending else ""
        if case and not case.endswith(image.BESIDE_SEGMENTATIONS):
            found[case] = file
    return found


def _meaning(path: Path) -> tuple[Labels | None, str]:
    """Of segpipe's own files; else of nnU-Net's dataset.json, which lies in a prediction, or above a validation."""
    for file in (path / MEANING, path / "summary.json"):
        content = digest.read_json(file) if file.is_file() else {}
        if isinstance(content.get("labels"), dict) and "file_values" in content["labels"]:
            return Labels.from_json(content["labels"]), content.get("orientation", "as-stored")
    for folder in (path, path.resolve().parents[1]):
        if (folder / "dataset.json").is_file():
            content = dataset_json.read(folder / "dataset.json")
            order = content.get("regions_class_order")
            return labels_module.parse(content["labels"], order, folder / "dataset.json"), "as-stored"
    return None, "as-stored"


@dataclass(frozen=True)
class Work:
    """What is done of a case in the folder that is filled.

    made_of : digest of all that determines it; files : what is written; do : writes them
    """

    made_of: Callable[[], str]
    files: Sequence[Path]
    do: Callable[[], None]


def fill(out: Path, cases: Mapping[str, Work], at_once: int) -> None:
    """Do what is not yet done of the same; a case that fails keeps none of the others from it.

    Raises SegpipeError at the end, with all cases that failed.
    """
    with digest.exclusive(out / RECORDS / ".lock", f"{len(cases)} cases"), ThreadPoolExecutor(at_once) as pool:
        said = list(pool.map(lambda case: _do(out / RECORDS / f"{case}.json", cases[case]), cases))
    problems = [text for text in said if text]
    log.info("%s: %d cases, %d of them done before", out, len(cases), said.count(None))
    raise_all("cases that were left out", problems)


def _do(record: Path, work: Work) -> str | None:
    """Do a case: None where it was done before, else what is wrong with it, or nothing."""
    try:
        made_of = work.made_of()
        done: Any = digest.read_json(record) if record.exists() else None
        if done == made_of and all(path.exists() for path in work.files):
            return None
        record.unlink(missing_ok=True)
        work.do()
        digest.write_json(record, made_of)
    except SegpipeError as error:
        return str(error)
    return ""
