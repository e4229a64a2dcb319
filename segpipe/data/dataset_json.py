"""What stands in dataset.json, apart from the files that it lists."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segpipe.data import labels
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all

ABOUT = ("description", "reference", "licence", "license", "release")


def read(path: Path) -> dict[str, Any]:
    """Read dataset.json.

    Raises SegpipeError where it is missing, malformed or incomplete, or where a key stands twice.
    """
    try:
        content = json.loads(path.read_text(), object_pairs_hook=lambda pairs: _unique(path, pairs))
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
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
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


def about(content: dict[str, Any]) -> dict[str, str]:
    """Where the data are from, by the names that the Decathlon and nnU-Net have for it."""
    return {key: str(content[key]) for key in ABOUT if isinstance(content.get(key), str | int | float)}


def channel_names(root: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """One per channel, in the order of their numbers. Raises SegpipeError where these are not 0, 1, ..."""
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


def classes(root: Path, content: dict[str, Any]) -> Labels:
    """The classes. Raises SegpipeError where they make no sense."""
    if all(key.isdecimal() for key in content["labels"]):  # Decathlon's form, {"1": "liver"}
        require_unique(f"{root / 'dataset.json'}: labels", map(str, content["labels"].values()))
    return labels.parse(content["labels"], content.get("regions_class_order"), root / "dataset.json")


def require_unique(where: str, names: Iterable[str]) -> None:
    """Raise SegpipeError where a name stands twice."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise SegpipeError(
            problem(
                "the same name twice",
                where=where,
                found=", ".join(twice),
                expected="every name once",
                cure="rename or remove one of them",
            )
        )


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; the standard reader silently takes the last of two equal keys."""
    require_unique(str(path), [key for key, _ in pairs])
    return dict(pairs)
