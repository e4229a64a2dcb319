"""Tasks of the Medical Segmentation Decathlon: their archives, and the same task in nnU-Net's raw layout.

The layout is that of nnunetv2/dataset_conversion/convert_MSD_dataset.py: one file per channel, labels by name.
"""

import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from logging import getLogger
from pathlib import Path

from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import HeaderDataError

from segpipe import digest, machine
from segpipe.data import case_table, dataset
from segpipe.data.dataset import CaseFiles
from segpipe.errors import SegpipeError, problem, raise_all

log = getLogger(__name__)

TASK = re.compile(r"Task(\d{2,})_(\w+)")
ENDING = ".nii.gz"
THREADS = 4  # each holds one case in memory
MACOS = ("._", ".DS_Store")  # what macOS leaves beside the files


def convert(task: Path, out: Path) -> Path:
    """Write a Decathlon task, a folder or its .tar, as DatasetNNN_Name into the folder `out`; return where it is.

    3D images and labels are copied as they are, 4D images split into one file per channel with the same header.
    Raises SegpipeError where the task is none, files are missing or damaged, or the dataset is there already.
    """
    if task.is_dir():
        return _convert(task, out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".import-msd-") as temporary:
        return _convert(unpack(task, Path(temporary)), out)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the .tar of a task into `folder`; return the task's folder in it.

    Raises SegpipeError for what is no such archive, is damaged, or would write outside the folder.
    """
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, folder.resolve())
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _no_task(archive, f"{type(error).__name__}: {error}") from None
    tasks = [path.parent for path in folder.glob("*/dataset.json")]
    if len(tasks) != 1:
        raise _no_task(archive, f"{len(tasks)} folders with a dataset.json")
    return tasks[0]


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Write files and folders, and nothing else: Python has a filter for that from 3.11.4 on, Debian 12 has 3.11.2."""
    for member in tar:
        target = folder / member.name
        if target.name.startswith(MACOS):
            continue
        if ".." in target.parts or not target.is_relative_to(folder):
            raise tarfile.TarError(f"{member.name} leads outside of the folder")
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        source = tar.extractfile(member) if member.isfile() else None
        if source is None:
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)


def _no_task(where: Path, found: object) -> SegpipeError:
    return SegpipeError(
        problem(
            "no Decathlon task",
            where=where,
            found=found,
            expected="a folder TaskNN_Name with dataset.json, imagesTr and labelsTr, or the .tar of one",
            cure="correct the path, or download it again",
        )
    )


def _convert(task: Path, out: Path) -> Path:
    name = TASK.fullmatch(task.resolve().name)
    if not name or not (task / "dataset.json").is_file():
        raise _no_task(task, "another name" if not name else "no dataset.json")
    target = out / f"Dataset{int(name[1]):03d}_{name[2]}"
    if target.exists():
        raise SegpipeError(
            problem(
                "the dataset is there already",
                where=target,
                found="a folder of that name",
                expected="nothing",
                cure="remove it, or give another folder with --out",
            )
        )
    description = dataset.describe(task)
    if description.one_file_per_channel:
        raise _no_task(task, "nnU-Net's layout")
    cases = [*description.training.values(), *description.test.values()]
    files = [file for case in cases for file in (*case.images, *([case.label] if case.label else []))]
    raise_all(f"{task} is incomplete", _missing(task, files))
    with digest.new_folder(target) as new, ThreadPoolExecutor(min(THREADS, machine.n_threads(None))) as pool:
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (new / folder).mkdir()
        jobs = [pool.submit(_convert_case, task, case, new, len(description.channel_names)) for case in cases]
        for job in jobs:
            job.result()
        _describe(task, new)
    log.info("%s: %d training and %d test cases", target, len(description.training), len(description.test))
    return target


def _missing(task: Path, files: Iterable[str]) -> list[str]:
    missing = [file for file in files if not (task / file).is_file()]
    if not missing:
        return []
    return [
        problem(
            "files that dataset.json lists are missing",
            where=task,
            found=f"no {', no '.join(missing)}",
            expected="every file that it lists",
            cure="unpack the archive again",
        )
    ]


def _convert_case(task: Path, case: CaseFiles, new: Path, n_channels: int) -> None:
    _split(task / case.images[0], new / ("imagesTr" if case.label else "imagesTs"), n_channels)
    if case.label:
        shutil.copyfile(task / case.label, new / "labelsTr" / Path(case.label).name)


def _split(source: Path, folder: Path, n_channels: int) -> None:
    """One file per channel with the header of all; an image without a fourth axis is copied as it is."""
    try:
        image = Nifti1Image.from_bytes(gzip.decompress(source.read_bytes()))
    except (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise _bad_image(source, f"{type(error).__name__}: {error}", "a whole NIfTI file") from None
    if image.ndim not in (3, 4) or (*image.shape, 1)[3] != n_channels:
        raise _bad_image(source, f"shape {image.shape}", f"a volume of {n_channels} channels, as dataset.json says")
    stem = source.name.removesuffix(ENDING)
    if image.ndim == 3:
        shutil.copyfile(source, folder / f"{stem}_0000{ENDING}")
        return
    data = image.dataobj
    assert isinstance(data, ArrayProxy)
    stored = data.get_unscaled()
    for channel in range(n_channels):
        one = Nifti1Image(stored[..., channel], None, image.header)
        one.header.set_slope_inter(data.slope, data.inter)  # nibabel forgets them, and writes what is set as it is
        (folder / f"{stem}_{channel:04d}{ENDING}").write_bytes(gzip.compress(one.to_bytes(), 6, mtime=0))


def _bad_image(source: Path, found: str, expected: str) -> SegpipeError:
    return SegpipeError(
        problem("an unusable image", where=source, found=found, expected=expected, cure="unpack the archive again")
    )


def _describe(task: Path, new: Path) -> None:
    """dataset.json in nnU-Net's form, and cases.tsv where there is one."""
    content = digest.read_json(task / "dataset.json")
    if all(value.isdecimal() for value in content["labels"]):  # else by name already
        content["labels"] = {name: int(value) for value, name in content["labels"].items()}
    content["channel_names"] = content.pop("modality", content.get("channel_names"))
    content["file_ending"] = ENDING
    digest.write_json(new / "dataset.json", {key: content[key] for key in content if key not in ("training", "test")})
    if (task / case_table.NAME).is_file():
        shutil.copyfile(task / case_table.NAME, new / case_table.NAME)
