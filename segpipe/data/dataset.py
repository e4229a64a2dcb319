"""Which cases a dataset folder has: nnU-Net's raw layout, its lists of files, and Decathlon task folders."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.data import dataset_json, image
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, relative to the dataset's folder or absolute. A file may hold several channels."""

    images: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Description:
    """What dataset.json says, in one form for both layouts.

    channel_names : one per channel, in order
    reader : the class of nnU-Net's that dataset.json asks for, if any
    about : where the data are from: description, reference, licence, release, as far as dataset.json has them
    """

    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    one_file_per_channel: bool
    training: dict[str, CaseFiles]
    test: dict[str, CaseFiles]
    n_training: int | None
    reader: str | None
    about: dict[str, str]


def describe(root: Path) -> Description:
    """Read dataset.json and list the cases of a dataset folder, sorted by id.

    Raises SegpipeError for a missing or malformed dataset.json.
    """
    content = dataset_json.read(root / "dataset.json")
    if isinstance(content.get("dataset"), dict):
        return _listed(root, content)
    # nnU-Net's own has a file ending, and may still list the files of the task that it was made of
    return (
        _decathlon(root, content) if "training" in content and "file_ending" not in content else _nnunet(root, content)
    )


def companions(path: Path) -> list[Path]:
    """Further files of one that may be unreadable, which the check reports."""
    try:
        return image.companions(path)
    except (SegpipeError, OSError, ValueError):
        return []


def has_test_cases(root: Path) -> bool:
    """Whether there is anything to predict."""
    try:
        return bool(describe(root).test)
    except SegpipeError:
        return False


def labels_of(root: Path) -> Labels | None:
    """The classes as dataset.json has them; None where it is absent or malformed, which `describe` explains."""
    try:
        return dataset_json.classes(root, dataset_json.read(root / "dataset.json"))
    except (SegpipeError, KeyError):
        return None


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without what is hidden (macOS leaves ._copies in Decathlon's archives)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _volumes(folder: Path, ending: str) -> list[str]:
    """Names in a folder, without those of files that belong to another one; a DICOM series is a folder.

    A link that leads nowhere is a name too: what it stands for is missed when it is read.
    """
    found = [path for path in _visible(folder) if not path.is_dir() or path.name.endswith(ending)]
    others = {path.name for path in found if not path.name.endswith(ending)}
    if others:
        others &= {companion.name for path in found if path.name.endswith(ending) for companion in companions(path)}
    return [path.name for path in found if path.name not in others]


def _nnunet(root: Path, content: dict[str, Any]) -> Description:
    """nnU-Net's layout: imagesTr/CASE_0000.ext, one file per channel; labelsTr/CASE.ext."""
    ending = _ending(root, content)
    training = dict(_nnunet_cases(root, "imagesTr", "labelsTr", ending))
    test = dict(_nnunet_cases(root, "imagesTs", None, ending))
    return _description(root, content, ending, True, training, test)


def _listed(root: Path, content: dict[str, Any]) -> Description:
    """nnU-Net's key `dataset`: the files of each training case, anywhere; environment variables stand for folders."""
    try:
        training = {
            case: CaseFiles(tuple(_path(image) for image in _list(item["images"])), _path(item["label"]))
            for case, item in sorted(content["dataset"].items())
        }
    except (AttributeError, KeyError, TypeError) as error:
        expected = '"dataset": {"CASE": {"images": ["...", ...], "label": "..."}, ...}'
        raise _malformed(root, "dataset", error, expected) from None
    ending = _ending(root, content)
    return _description(root, content, ending, False, training, dict(_nnunet_cases(root, "imagesTs", None, ending)))


def _description(
    root: Path,
    content: dict[str, Any],
    ending: str,
    one_file_per_channel: bool,
    training: dict[str, CaseFiles],
    test: dict[str, CaseFiles],
) -> Description:
    reader = content.get("overwrite_image_reader_writer")
    return Description(
        dataset_json.channel_names(root, content),
        dataset_json.classes(root, content),
        ending,
        one_file_per_channel,
        training,
        test,
        content.get("numTraining"),
        None if reader in (None, "None") else str(reader),
        dataset_json.about(content),
    )


def _ending(root: Path, content: dict[str, Any]) -> str:
    ending = content.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in image.FILE_ENDINGS:
        raise SegpipeError(
            problem(
                "unsupported file ending",
                where=f"{root / 'dataset.json'}: file_ending",
                found=ending or "nothing",
                expected=" or ".join(image.FILE_ENDINGS),
                cure="convert the images",
            )
        )
    return ending


def _nnunet_cases(root: Path, images: str, labels: str | None, ending: str) -> Iterator[tuple[str, CaseFiles]]:
    channels: dict[str, list[str]] = {}
    for name in _volumes(root / images, ending):
        match = re.fullmatch(r"(.+)_\d{4}" + re.escape(ending), name)
        # a name without channel number is a case that `check` reports with the names that its files should have
        channels.setdefault(match[1] if match else name.removesuffix(ending), []).append(f"{images}/{name}")
    of_labels = image.label_ending(ending)
    if labels:
        for name in _volumes(root / labels, of_labels):
            channels.setdefault(name.removesuffix(of_labels), [])
    for case in sorted(channels):
        yield case, CaseFiles(tuple(channels[case]), f"{labels}/{case}{of_labels}" if labels else None)


def _decathlon(root: Path, content: dict[str, Any]) -> Description:
    """A Decathlon task: dataset.json lists the files; an image with several channels is 4D."""
    try:
        training = [
            (_id(item["image"]), CaseFiles((_path(item["image"]),), _path(item["label"])))
            for item in content["training"]
        ]
        test = [(_id(item), CaseFiles((_path(item),), None)) for item in content.get("test", [])]
    except (AttributeError, KeyError, TypeError) as error:
        expected = '"training": [{"image": "...", "label": "..."}, ...], "test": ["...", ...]'
        raise _malformed(root, "training and test", error, expected) from None
    dataset_json.require_unique(f"{root / 'dataset.json'}: training", [case for case, _ in training])
    dataset_json.require_unique(f"{root / 'dataset.json'}: test", [case for case, _ in test])
    return _description(root, content, ".nii.gz", False, dict(sorted(training)), dict(sorted(test)))


def _malformed(root: Path, key: str, error: Exception, expected: str) -> SegpipeError:
    return SegpipeError(
        problem(
            "the lists of files are malformed",
            where=f"{root / 'dataset.json'}: {key}",
            found=f"{type(error).__name__}: {error}",
            expected=expected,
            cure="correct the lists",
        )
    )


def _id(path: str) -> str:
    return Path(path).name.removesuffix(".nii.gz")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise TypeError(f"{value!r} is no list of files")
    return value


def _path(path: str) -> str:
    """Relative to the dataset's folder, or absolute."""
    return os.path.expandvars(path).removeprefix("./")
