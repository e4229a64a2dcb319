"""A folder of images to predict, as cases: nnU-Net's names (CASE_0000.nii.gz, one file per channel) or CASE.nii.gz."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all

NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Images(Cases):
    """Cases without annotation that no check has seen: each is checked when it is read."""

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


def in_folder(folder: Path, content: dict[str, Any]) -> Images:
    """The cases of a folder, for a model.

    content : of a checkpoint; its dataset says which file ending counts where there are several
    Raises SegpipeError where there are no images, or images of several formats and none of the model's.
    """
    # a series of DICOM files is a folder
    names = sorted(path.name for path in folder.glob("[!.]*"))
    ending = _ending(folder, names, content["dataset"]["file_ending"])
    files: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(ending.lower()):
            stem = name[: -len(ending)]
            numbered = NUMBERED.fullmatch(stem)
            files.setdefault(numbered[1] if numbered else stem, []).append(name)
    entries = {
        case: {"images": dict.fromkeys(group), "label": None, "annotated": None} for case, group in files.items()
    }
    labels = Labels.from_json(content["labels"]).to_json()
    known = {"channel_names": content["channel_names"], "labels": labels, "file_ending": ending}
    return Images(folder, {**content["dataset"], **known, "training": {}, "test": entries})


def _ending(folder: Path, names: list[str], trained_on: str) -> str:
    """The model's file ending where a file has it, else the one that all images have."""
    longest_first = sorted(image.FILE_ENDINGS, key=len, reverse=True)
    found = {ending for name in names if (ending := next((e for e in longest_first if name.lower().endswith(e)), None))}
    if trained_on.lower() in found:
        return trained_on
    if len(found) != 1:
        raise SegpipeError(
            problem(
                "images of several formats" if found else "no images",
                where=folder,
                found=", ".join(sorted(found)) or (", ".join(names[:3]) or "nothing"),
                expected=f"CASE_0000{trained_on}, or all files of another one of {', '.join(image.FILE_ENDINGS)}",
                cure="name another folder, or convert the images",
            )
        )
    return found.pop()
