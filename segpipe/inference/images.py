"""A folder of images to predict, as cases: nnU-Net's names (CASE_0000.nii.gz, one file per channel) or CASE.nii.gz."""

import os
import re
from collections.abc import Iterator, Sequence
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
GEOMETRY_TOLERANCE_MM = 0.1  # as check.geometry_tolerance_mm of params.yaml; a model has no params.yaml


@dataclass(frozen=True)
class Images(Cases):
    """Cases without annotation that no check has seen: each is checked when it is read."""

    def files(self, case: str) -> list[Path]:
        """The files of a case, in the order of their channels."""
        return [self.root / name for name in self.entry(case)["images"]]

    def identity(self, case: str) -> str:
        """Digest of the contents of a case's files and of how they are read.

        Raises OSError where one is absent, SegpipeError where the files are not one per channel.
        """
        self._require_numbered(case)
        return digest.of([[image.identity(path) for path in self.files(case)], self.orientation])

    def read_image(self, case: str) -> image.Volume:
        """All channels of a case, (C, Z, Y, X) float32.

        Raises SegpipeError where the files are not one per channel, where one cannot be read, or where the channels
        do not fit the model or do not lie on one grid.
        """
        self._require_numbered(case)
        volumes = {path: image.read_image(path, self.orientation) for path in self.files(case)}
        n_channels = sum(len(volume.array) for volume in volumes.values())
        problems = [*_grid_problems(case, volumes)]
        if n_channels != len(self.channel_names):
            problems.append(
                problem(
                    "another number of channels than the model was trained with",
                    where=f"{case}: {', '.join(path.name for path in volumes)}",
                    found=n_channels,
                    expected=f"{len(self.channel_names)}: {', '.join(self.channel_names)}",
                    cure=f"give one file per channel: {case}_0000{self.content['file_ending']} ...",
                )
            )
        raise_all(f"case {case}", problems)
        arrays = [volume.array for volume in volumes.values()]
        return replace(next(iter(volumes.values())), array=np.concatenate(arrays))

    def _require_numbered(self, case: str) -> None:
        """One file without a number, or numbers from 0000 on; no more files than channels."""
        ending, files, numbers = self.content["file_ending"], self.files(case), self.entry(case)["numbers"]
        if numbers not in ([None], [*range(len(numbers))]) or len(files) > len(self.channel_names):
            several = len({path.parent for path in files}) > 1
            raise SegpipeError(
                problem(
                    "not one file per channel",
                    where=f"case {case}",
                    found=", ".join(str(path) if several else path.name for path in files),
                    expected=f"{case}{ending}, or a file per channel ({', '.join(self.channel_names)}), from "
                    f"{case}_0000{ending} on without a gap",
                    cure="rename or leave out what is too many, or add what is missing",
                )
            )


def _grid_problems(case: str, volumes: dict[Path, image.Volume]) -> Iterator[str]:
    """Where the channels of a case do not lie on one grid, as the check of a dataset says it."""
    (reference, first), *others = volumes.items()
    if len({volume.shape for volume in volumes.values()}) > 1:
        found = ", ".join(f"{path.name} {volume.shape}" for path, volume in volumes.items())
        cure = "resample them onto one grid"
        yield problem("channels of different shapes", where=case, found=found, expected="one", cure=cure)
        return
    off = {path.name: float(np.abs(volume.corners_mm() - first.corners_mm()).max()) for path, volume in others}
    spacings = {path.name: volume.spacing_mm for path, volume in volumes.items()}
    if not all(np.allclose(spacing, first.spacing_mm, rtol=1e-3) for spacing in spacings.values()):
        found = ", ".join(f"{name} {' x '.join(f'{edge:.4g}' for edge in mm)}" for name, mm in spacings.items())
        expected, cure = "one, in mm (Z, Y, X)", "correct the headers, or resample them onto one grid"
        yield problem("channels of different spacings", where=case, found=found, expected=expected, cure=cure)
    elif max(off.values(), default=0.0) > GEOMETRY_TOLERANCE_MM:
        yield problem(
            "channels of different geometries",
            where=case,
            found=f"a corner lies off that of {reference.name}: "
            + ", ".join(f"{name} by {distance:.3g} mm" for name, distance in off.items()),
            expected=f"at most {GEOMETRY_TOLERANCE_MM} mm",
            cure="correct the headers, or resample them onto one grid",
        )


def at(paths: Sequence[Path], content: dict[str, Any]) -> Images:
    """The cases of a folder, of one file, of a DICOM series, or of several files, for a model.

    content : of a checkpoint; its dataset says which file ending counts where there are several in a folder
    A file is a channel by its number where there is a CASE_0000; where there is none, it is a case by its whole name.
    Raises SegpipeError where there are no images, or images of several formats and none of the model's.
    """
    if not paths:
        raise SegpipeError(_no_such("images"))
    raise_all("images", [_no_such(path) for path in paths if not path.exists()])
    if len(paths) == 1 and paths[0].is_dir() and not _is_series(paths[0]):
        return _in_folder(paths[0], content)
    # links stay: in a cache that they lead to, files have other names
    named = [path.resolve() if path.name == ".." else path.absolute() for path in paths]
    _require_files(named)
    endings = sorted({_ending_of(path) or path.name for path in named})
    if len(endings) > 1 or endings[0] not in image.FILE_ENDINGS:
        expected = f"all of one of {', '.join(image.FILE_ENDINGS)}"
        raise _several_formats(named[0].parent, ", ".join(endings), expected, "name images of one format")
    return _images(named[0].parent, [str(path) for path in named], endings[0], content)


def _require_files(paths: Sequence[Path]) -> None:
    """Several folders would be several DICOM series."""
    folders = [path for path in paths if path.is_dir() and _ending_of(path) != ".dcm"]
    if folders:
        raise SegpipeError(
            problem(
                "folders among several images",
                where="images",
                found=", ".join(map(str, folders)),
                expected="one folder, or files, or folders that are each one DICOM series",
                cure="predict one folder after the other, or name the files",
            )
        )


def _no_such(path: object) -> str:
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
    return ".dcm" if of_name is None and path.is_dir() and _is_series(path) else of_name


def _in_folder(folder: Path, content: dict[str, Any]) -> Images:
    # a series of DICOM files is a folder
    endings = {path.name: _ending_of(path) for path in sorted(folder.glob("[!.]*"))}
    ending = _ending(folder, endings, content["dataset"]["file_ending"])
    return _images(folder, [name for name, own in endings.items() if own == ending.lower()], ending, content)


def _images(root: Path, names: Sequence[str], ending: str, content: dict[str, Any]) -> Images:
    """Files of one format as cases."""
    entries = {
        case: {
            "images": dict.fromkeys(name for _, name in group),
            "numbers": [number for number, _ in group],
            "label": None,
            "annotated": None,
        }
        for case, group in _by_case(names, ending).items()
    }
    labels = Labels.from_json(content["labels"]).to_json()
    known = {"channel_names": content["channel_names"], "labels": labels, "file_ending": ending}
    return Images(root, {**content["dataset"], **known, "training": {}, "test": entries})


def _by_case(names: Sequence[str], ending: str) -> dict[str, list[tuple[int | None, str]]]:
    """Files of each case with their channel numbers, in the order of these; None for a file without one.

    patient_0041 and patient_0042 are no channels where there is no patient_0000.
    """
    lasts = {name: Path(name).name for name in names}
    stems = {
        name: last[: -len(ending)] if last.lower().endswith(ending.lower()) else last for name, last in lasts.items()
    }
    numbered = {stem: match for stem in stems.values() if (match := NUMBERED.fullmatch(stem))}
    several = {match[1] for match in numbered.values() if int(match[2]) == 0}
    cases: dict[str, list[tuple[int | None, str]]] = {}
    for name, stem in stems.items():
        match = numbered.get(stem)
        case, number = (match[1], int(match[2])) if match and match[1] in several else (stem, None)
        cases.setdefault(case, []).append((number, name))
    return {
        case: sorted(group, key=lambda file: (-1 if file[0] is None else file[0], file[1]))
        for case, group in cases.items()
    }


def _ending(folder: Path, endings: dict[str, str | None], trained_on: str) -> str:
    """The model's file ending where a file has it, else the one that all images have."""
    found = {ending for ending in endings.values() if ending}
    if trained_on.lower() in found:
        return trained_on
    if not found:
        raise SegpipeError(
            problem(
                "no images",
                where=folder,
                found=", ".join([*endings][:3]) or "nothing",
                expected=f"CASE_0000{trained_on}, or all files of another one of {', '.join(image.FILE_ENDINGS)}",
                cure="name another folder, or convert the images",
            )
        )
    if len(found) > 1:
        expected = f"CASE_0000{trained_on}, or all files of one format"
        raise _several_formats(folder, ", ".join(sorted(found)), expected, "name another folder, or convert the images")
    return found.pop()
