"""A folder of images to predict, as cases: nnU-Net's names (CASE_0000.nii.gz, one file per channel) or CASE.nii.gz."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segpipe import digest
from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all

NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Images(Cases):
    """Cases without annotation that no check has seen: each is checked when it is read."""

    def identity(self, case: str) -> str:
        """Digest of the contents of a case's files and of how they are read. Raises OSError where one is absent."""
        return digest.of([[image.identity(self.root / name) for name in self.entry(case)["images"]], self.orientation])

    def read_image(self, case: str) -> image.Volume:
        """All channels of a case, (C, Z, Y, X) float32.

        Raises SegpipeError where a file cannot be read or the channels do not fit the model or one another.
        """
        paths = [self.root / name for name in self.entry(case)["images"]]
        volumes = [image.read_image(path, self.orientation) for path in paths]
        shapes = {volume.shape for volume in volumes}
        n_channels = sum(len(volume.array) for volume in volumes)
        problems = []
        if len(shapes) > 1:
            found = ", ".join(f"{path.name} {volume.shape}" for path, volume in zip(paths, volumes, strict=True))
            cure = "resample them onto one grid"
            problems.append(problem("channels of different shapes", where=case, found=found, expected="one", cure=cure))
        if n_channels != len(self.channel_names):
            problems.append(
                problem(
                    "another number of channels than the model was trained with",
                    where=f"{case}: {', '.join(path.name for path in paths)}",
                    found=n_channels,
                    expected=f"{len(self.channel_names)}: {', '.join(self.channel_names)}",
                    cure=f"give one file per channel: {case}_0000{self.content['file_ending']} ...",
                )
            )
        raise_all(f"case {case}", problems)
        return replace(volumes[0], array=np.concatenate([volume.array for volume in volumes]))


def at(paths: Sequence[Path], content: dict[str, Any]) -> Images:
    """The cases of a folder, of one file, of a DICOM series, or of several files, for a model.

    content : of a checkpoint; its dataset says which file ending counts where there are several in a folder
    Raises SegpipeError where there are no images, or images of several formats and none of the model's.
    """
    missing = [path for path in paths if not path.exists()]
    raise_all("images", [_no_such(path) for path in missing])
    if len(paths) == 1 and paths[0].is_dir() and not _is_series(paths[0]):
        return _in_folder(paths[0], content)
    together = paths[0].resolve().parent
    names = [os.path.relpath(path.resolve(), together) for path in paths]
    endings = sorted({_ending_of(path) or path.name for path in paths})
    if len(endings) > 1 or endings[0] not in image.FILE_ENDINGS:
        expected = f"all of one of {', '.join(image.FILE_ENDINGS)}"
        raise _several_formats(together, ", ".join(endings), expected, "name images of one format")
    return _images(together, names, endings[0], content)


def _no_such(path: Path) -> str:
    return problem("no such file or folder", where=path, found="nothing", expected="images", cure="correct the path")


def _several_formats(where: Path, found: str, expected: str, cure: str) -> SegpipeError:
    return SegpipeError(problem("images of several formats", where=where, found=found, expected=expected, cure=cure))


def _is_series(path: Path) -> bool:
    """Whether a folder is one image: the slices of a DICOM series."""
    if any(
        name.lower().endswith(ending) for name in os.listdir(path) for ending in image.FILE_ENDINGS if ending != ".dcm"
    ):
        return False
    try:
        return image.is_series(path)
    except SegpipeError:  # without the package that reads DICOM there are no series
        return False


def _ending_of(path: Path) -> str | None:
    longest_first = sorted(image.FILE_ENDINGS, key=len, reverse=True)
    of_name = next((ending for ending in longest_first if path.name.lower().endswith(ending)), None)
    return ".dcm" if of_name is None and path.is_dir() else of_name


def _in_folder(folder: Path, content: dict[str, Any]) -> Images:
    # a series of DICOM files is a folder
    names = sorted(path.name for path in folder.glob("[!.]*"))
    ending = _ending(folder, names, content["dataset"]["file_ending"])
    return _images(folder, [name for name in names if name.lower().endswith(ending.lower())], ending, content)


def _images(root: Path, names: Sequence[str], ending: str, content: dict[str, Any]) -> Images:
    """Files of one format as cases."""
    files: dict[str, list[str]] = {}
    for name in names:
        last = Path(name).name
        stem = last[: -len(ending)] if last.lower().endswith(ending.lower()) else last
        numbered = NUMBERED.fullmatch(stem)
        files.setdefault(numbered[1] if numbered else stem, []).append(name)
    entries = {
        case: {"images": dict.fromkeys(group), "label": None, "annotated": None} for case, group in files.items()
    }
    labels = Labels.from_json(content["labels"]).to_json()
    known = {"channel_names": content["channel_names"], "labels": labels, "file_ending": ending}
    return Images(root, {**content["dataset"], **known, "training": {}, "test": entries})


def _ending(folder: Path, names: list[str], trained_on: str) -> str:
    """The model's file ending where a file has it, else the one that all images have."""
    found = {ending for name in names if (ending := _ending_of(Path(name)))}
    if trained_on.lower() in found:
        return trained_on
    if not found:
        raise SegpipeError(
            problem(
                "no images",
                where=folder,
                found=", ".join(names[:3]) or "nothing",
                expected=f"CASE_0000{trained_on}, or all files of another one of {', '.join(image.FILE_ENDINGS)}",
                cure="name another folder, or convert the images",
            )
        )
    if len(found) > 1:
        expected = f"CASE_0000{trained_on}, or all files of one format"
        raise _several_formats(folder, ", ".join(sorted(found)), expected, "name another folder, or convert the images")
    return found.pop()
