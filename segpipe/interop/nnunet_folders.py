"""Where nnU-Net keeps trained models: which folders of a path are some, from a zip file as well."""

import contextlib
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segpipe.errors import SegpipeError, problem, raise_all

LAYOUT = "plans.json, dataset.json and fold_<k>/checkpoint_final.pth, as nnU-Net 2 writes them"
CHECKPOINT = re.compile(r"fold_(\d+|all)/checkpoint_(final|best)\.pth")
JSONS = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class TrainedFolder:
    """One folder `Trainer__Plans__configuration` of nnU-Net.

    checkpoints : (fold, final or best) to file
    """

    path: Path
    plans: dict[str, Any]
    dataset: dict[str, Any]
    checkpoints: dict[tuple[str, str], Path]


@contextlib.contextmanager
def opened(source: Path, beside: Path) -> Iterator[Path]:
    """A folder to look for models in: `source`, or for a zip file what of it belongs to models.

    beside : where the zip file's files lie while the block runs
    Raises SegpipeError where there is neither, and for a zip file that is broken or names files outside of it.
    """
    if source.is_dir():
        yield source
        return
    if not source.is_file() or not zipfile.is_zipfile(source):
        found = "another kind of file" if source.is_file() else "nothing"
        raise _error("no model of nnU-Net", source, found, f"a folder or zip file with {LAYOUT}", "correct the path")
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside.parent, prefix=".import-") as folder:
        _extract(source, Path(folder))
        yield Path(folder)


def _extract(source: Path, folder: Path) -> None:
    """Write the model files of a zip file; nothing lands outside of `folder`, whatever their names say."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if _belongs(name)]
            raise_all(str(source), [_outside(source, name) for name in archive.namelist() if _leaves(name)])
            for name in names:
                target = folder.joinpath(*PurePosixPath(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        found = f"{type(error).__name__}: {error}"
        raise _error("the zip file cannot be read", source, found, "a whole one", "copy it again") from None


def _belongs(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and (parts[-1] in JSONS or bool(CHECKPOINT.fullmatch("/".join(parts[-2:]))))


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in name


def _outside(source: Path, name: str) -> str:
    cure = "do not trust this file; get the model from its source"
    return problem("the zip file names a file outside of it", where=source, found=name, expected="names", cure=cure)


def trained_folders(root: Path) -> list[TrainedFolder]:
    """All models in a folder, itself included. Raises SegpipeError where there is none, or a part of one is missing."""
    found: dict[Path, dict[tuple[str, str], Path]] = {}
    for path in sorted(root.rglob("checkpoint_*.pth")):
        match = CHECKPOINT.fullmatch("/".join(path.parts[-2:]))
        if match:
            found.setdefault(path.parents[1], {})[match[1], match[2]] = path
    if not found:
        files = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "an empty folder"
        raise _error("no model of nnU-Net", root, files, LAYOUT, "name the folder above fold_0, or the one above that")
    missing = [path / name for path in found for name in JSONS if not (path / name).is_file()]
    raise_all(
        "a part of the model is missing",
        [problem("missing file", where=path, found="no file", expected=LAYOUT, cure="copy it too") for path in missing],
    )
    return [
        TrainedFolder(path, _json(path / "plans.json"), _json(path / "dataset.json"), files)
        for path, files in found.items()
    ]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _error("not JSON", path, error, "valid JSON", "copy the file again") from None
    if not isinstance(content, dict):
        raise _error("not nnU-Net's", path, type(content).__name__, "an object with keys", "copy the file again")
    return content


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
