"""A new experiment: a folder with a params.yaml of its own, in which the project's Snakefile works."""

import filecmp
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeGuard

from segpipe import digest
from segpipe import params as params_yaml
from segpipe.data import phantoms
from segpipe.errors import problem, raise_all
from segpipe.experiments import modules, settings
from segpipe.params import PARAMS_FILE, Params

GENERATED = f"data/raw/{phantoms.NAME}"
FILES = ("plan.file", "splits.file", "train.pretrained_weights")  # settings that are paths, but for `dataset`
SHARING = "runtime.share_cases_with"  # folders
RANGES, WEIGHTS = "search.ranges", "train.pretrained_weights"  # in the first, choices of the second
TASK = re.compile(r"Task\d{2,}_\w+$")  # of the Decathlon


def make(folder: Path, source: Path, given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Write `folder`/params.yaml: the text of `source` with what is given, by dotted key.

    Relative paths lead to the same files from the new folder: those of the source start at its folder, given ones at
    the working directory. A dataset that the pipeline generates or downloads is made anew in the new folder, unless
    the given path leads to one. Own modules, which are looked for beside params.yaml, are copied.

    Returns the two values, old and new, of every setting that was given and differs from the source.

    Raises SegpipeError with everything that is wrong; nothing is written then. Raises OSError where the folder cannot
    be written.
    """
    target = folder / PARAMS_FILE
    raise_all(f"{folder} cannot be made", [*_in_the_way(target), *_no_source(source)])
    old = source.read_text()
    text = params_yaml.changed(old, given, source)
    before, raw = (params_yaml.parse(each, source) for each in (old, text))
    wrong = list(_wrong(before, raw, source, given))
    params = None if wrong else params_yaml.validated(raw, source)
    named = [*params.train.import_paths().values(), *params.search.import_paths()] if params else []
    own = modules.files(named, [source.parent, Path()])
    raise_all(f"{folder} cannot be made", [*wrong, *_absent(raw, given), *_others(own, folder)])
    assert params is not None
    text = params_yaml.changed(text, _moved(params, given, source.parent, folder), source)
    for file, place in own.items():
        digest.copy(file, folder / place)
    digest.write_text(target, text)
    changes = settings.differing([before, params_yaml.parse(text, source)])
    return {key: values for key, values in changes.items() if key in settings.differing([before, raw])}


def _wrong(before: Any, raw: Any, source: Path, given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the settings: of the source, or of what was given."""
    of_source = params_yaml.problems(before, source)
    for said in params_yaml.problems(raw, source):
        where = re.search(rf"\n  where:    {re.escape(str(source))}: (.+)\n", said)
        if said in of_source or where is None:
            yield said
            continue
        key = where[1]
        near = [one for one in given if f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.")]
        options = ", ".join(_option(one) + (f" ({key})" if one in near and one != key else "") for one in near or given)
        yield said.replace(where[0], f"\n  where:    {options}\n", 1)


def _option(key: str) -> str:
    """How a setting is given on the command line."""
    return "--dataset" if key == "dataset" else f"--set {key}"


def _in_the_way(target: Path) -> Iterator[str]:
    folder = target.parent
    if target.exists():
        expected, cure = "a new folder", "name another one, or edit that file"
        yield problem("there is an experiment already", where=folder, found=target, expected=expected, cure=cure)
    elif folder.exists() and not folder.is_dir():
        yield problem("not a folder", where=folder, found="a file", expected="a new folder", cure="name another one")


def _no_source(source: Path) -> Iterator[str]:
    if not source.is_file():
        expected = "params.yaml of a clone of segpipe, or of another experiment"
        cure = "run from the project's folder, or name a file or folder with --from"
        yield problem("no settings to start from", where=source, found="no such file", expected=expected, cure=cure)


def _absent(raw: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Given paths that lead nowhere. Those of the source are left to the run: they may be on another machine."""
    expected, cure = "a path from the working directory, or an absolute one", "correct it"
    for key in FILES:
        path = given.get(key)
        if isinstance(path, str) and not os.path.exists(path):
            yield problem("no such path", where=_option(key), found=path, expected=expected, cure=cure)
    dataset = given.get("dataset")
    if not isinstance(dataset, str) or any(Path(dataset, name).exists() for name in ("imagesTr", "dataset.json")):
        return
    there = os.path.exists(dataset)
    if there or not _is_made(dataset):
        what = "not a dataset" if there else "no such path"
        made = f"{GENERATED}, which is generated; or a task that is downloaded, data/raw/Task04_Hippocampus"
        expected = f"a folder with imagesTr or dataset.json; or {made}"
        yield problem(what, where=_option("dataset"), found=dataset, expected=expected, cure=cure)


def _is_made(dataset: str) -> bool:
    """Whether the pipeline itself makes a dataset of this path in the experiment's folder."""
    path = Path(dataset)
    return path.parent == Path(GENERATED).parent and (path.name == phantoms.NAME or bool(TASK.match(path.name)))


def _others(own: Mapping[Path, Path], folder: Path) -> Iterator[str]:
    """Files in the new folder that the user's modules would replace."""
    for file, place in own.items():
        there = folder / place
        if there.exists() and not filecmp.cmp(file, there, shallow=False):
            expected, cure = f"nothing, or the same as {file}", "name another folder, or remove the file"
            yield problem("another module of that name", where=there, found="a file", expected=expected, cure=cure)


def _moved(params: Params, given: Mapping[str, Any], base: Path, folder: Path) -> dict[str, Any]:
    """Relative paths as they are from the new folder."""
    raw: Any = params.model_dump(mode="json", by_alias=True)
    moved: dict[str, Any] = {}
    sharing, weights = params.runtime.share_cases_with, params.search.ranges.get(WEIGHTS)
    if any(_is_relative(one) for one in sharing):
        moved[SHARING] = _all_from(folder, Path() if SHARING in given else base, sharing)
    if isinstance(weights, list) and any(_is_relative(one) for one in weights):
        start = Path() if given.keys() & {"search", RANGES} else base
        moved[RANGES] = {**params.search.ranges, WEIGHTS: _all_from(folder, start, weights)}
    for key in ("dataset", *FILES):
        path: Any = reduce(lambda block, name: block[name], key.split("."), raw)
        if not _is_relative(path):
            continue
        there = (Path() if key in given else base) / path
        stays = key == "dataset" and _is_made(path) and not (there.exists() and _is_shared(path, key in given))
        if not stays:
            moved[key] = _from(folder, there)
    return moved


def _is_shared(dataset: str, given: bool) -> bool:
    """Whether a dataset in data/raw is taken where it lies: generated ones follow from the settings beside them."""
    return given or Path(dataset).name != phantoms.NAME


def _is_relative(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and not Path(path).is_absolute()


def _all_from(folder: Path, start: Path, paths: Sequence[Any]) -> list[Any]:
    """The relative ones, which begin at `start`, as they are from the folder; all else as it is."""
    return [_from(folder, start / one) if _is_relative(one) else one for one in paths]


def _from(folder: Path, path: Path) -> str:
    """A relative path. Folders on the way may be links, and `..` is the parent of what they lead to; the last part
    keeps its name.
    """
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()
