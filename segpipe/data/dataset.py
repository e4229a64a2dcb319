"""Which cases a dataset folder has: nnU-Net's raw layout and Decathlon task folders."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe.data import image, labels
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case, relative to the dataset's folder. A 4D image holds several channels in one file."""

    images: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Description:
    """What dataset.json says, in one form for both layouts.

    channel_names : one per channel, in order
    """

    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    one_file_per_channel: bool
    training: dict[str, CaseFiles]
    test: dict[str, CaseFiles]
    n_training: int | None


def describe(root: Path) -> Description:
    """Read dataset.json and list the cases of a dataset folder, sorted by id.

    Raises SegpipeError for a missing or malformed dataset.json.
    """
    content = _read_dataset_json(root / "dataset.json")
    return _decathlon(root, content) if "training" in content else _nnunet(root, content)


def labels_of(root: Path) -> Labels | None:
    """The classes as dataset.json has them; None where it is absent or malformed, which `describe` explains."""
    try:
        return _labels(root, _read_dataset_json(root / "dataset.json"))
    except (SegpipeError, KeyError):
        return None


def _read_dataset_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise SegpipeError(
            problem(
                "no dataset.json",
                where=path,
                found="no such file",
                expected="a dataset in nnU-Net raw layout or a Decathlon task folder",
                cure="correct `dataset:` in params.yaml",
            )
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SegpipeError(
            problem("dataset.json is not JSON", where=path, found=error, expected="valid JSON", cure="correct it")
        ) from None
    content = content if isinstance(content, dict) else {}
    keys = [("channel_names", "modality"), ("labels",)]
    missing = [" or ".join(names) for names in keys if not any(isinstance(content.get(name), dict) for name in names)]
    raise_all(
        "dataset.json is incomplete",
        [
            problem(
                "missing key",
                where=path,
                found=f"keys {sorted(content)}",
                expected=f"{name}: {{...}}",
                cure=f"add {name}",
            )
            for name in missing
        ],
    )
    return content


def _channel_names(root: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("channel_names") or content.get("modality", {})
    numbers = [str(number) for number in range(len(names))]
    if not names or set(names) != set(numbers):
        raise SegpipeError(
            problem(
                "channels are not numbered",
                where=f"{root / 'dataset.json'}: channel_names",
                found=", ".join(names) or "none",
                expected='"0", "1", ... as in the file names',
                cure="number the channels from 0",
            )
        )
    return tuple(str(names[number]) for number in numbers)


def _labels(root: Path, content: dict[str, Any]) -> Labels:
    return labels.parse(content["labels"], content.get("regions_class_order"), root / "dataset.json")


def _files(folder: Path) -> list[str]:
    """Names in a folder, without hidden files (macOS leaves ._copies in the Decathlon archives)."""
    return (
        sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        if folder.is_dir()
        else []
    )


def _nnunet(root: Path, content: dict[str, Any]) -> Description:
    """nnU-Net's layout: imagesTr/CASE_0000.ext, one file per channel; labelsTr/CASE.ext."""
    ending = content.get("file_ending", "")
    if ending not in image.FILE_ENDINGS:
        raise SegpipeError(
            problem(
                "unsupported file ending",
                where=f"{root / 'dataset.json'}: file_ending",
                found=ending or "nothing",
                expected=" or ".join(image.FILE_ENDINGS),
                cure="convert the images",
            )
        )
    return Description(
        _channel_names(root, content),
        _labels(root, content),
        ending,
        True,
        dict(_nnunet_cases(root, "imagesTr", "labelsTr", ending)),
        dict(_nnunet_cases(root, "imagesTs", None, ending)),
        content.get("numTraining"),
    )


def _nnunet_cases(root: Path, images: str, labels: str | None, ending: str) -> Iterator[tuple[str, CaseFiles]]:
    channels: dict[str, list[str]] = {}
    for name in _files(root / images):
        match = re.fullmatch(r"(.+)_\d{4}" + re.escape(ending), name)
        # a name without channel number is a case that `check` reports with the names that its files should have
        channels.setdefault(match[1] if match else name.removesuffix(ending), []).append(f"{images}/{name}")
    if labels:
        for name in _files(root / labels):
            channels.setdefault(name.removesuffix(ending), [])
    for case in sorted(channels):
        yield case, CaseFiles(tuple(channels[case]), f"{labels}/{case}{ending}" if labels else None)


def _decathlon(root: Path, content: dict[str, Any]) -> Description:
    """A Decathlon task: dataset.json lists the files; an image with several channels is 4D."""
    try:
        training = {
            _id(item["image"]): CaseFiles((_relative(item["image"]),), _relative(item["label"]))
            for item in content["training"]
        }
        test = {_id(item): CaseFiles((_relative(item),), None) for item in content.get("test", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise SegpipeError(
            problem(
                "the lists of files are malformed",
                where=f"{root / 'dataset.json'}: training and test",
                found=f"{type(error).__name__}: {error}",
                expected='"training": [{"image": "...", "label": "..."}, ...], "test": ["...", ...]',
                cure="correct the lists",
            )
        ) from None
    return Description(
        _channel_names(root, content),
        _labels(root, content),
        ".nii.gz",
        False,
        dict(sorted(training.items())),
        dict(sorted(test.items())),
        content.get("numTraining"),
    )


def _id(path: str) -> str:
    return Path(path).name.removesuffix(".nii.gz")


def _relative(path: str) -> str:
    return path.removeprefix("./")
