"""Code of the user's that a setting names by an import path, `package.module:name` (docs/extending.md)."""

import contextlib
import difflib
import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from segpipe import digest
from segpipe.errors import SegpipeError, problem

SUFFIXES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES)  # of modules, in the order in which Python looks


def load(path: str, setting: str) -> Any:
    """What `path` names: from the working directory first, else from an installed package.

    setting : the line of params.yaml, for the message

    Raises SegpipeError where the module cannot be imported, has no such name, or has one that cannot be called.
    """
    module_name, name = path.split(":")
    module = _module(module_name, setting)
    if not hasattr(module, name):
        own = (other for other, value in vars(module).items() if getattr(value, "__module__", None) == module_name)
        known = [other for other in own if not other.startswith("_")]
        raise _error(
            "the module has no such name",
            setting,
            f"{path!r}; no {name!r} in {_origin(module)}",
            f"one of {', '.join(known)}" if known else "a name that the module defines",
            _hint(name, known, "name a function or class of that module"),
        )
    found = getattr(module, name)
    if not callable(found):
        raise _error(
            "what the import path names cannot be called",
            setting,
            f"{path!r} is of type {type(found).__name__} in {_origin(module)}",
            "a function or a class",
            "name one of those; docs/extending.md says what it is called with",
        )
    return found


def source_digest(path: str, setting: str) -> str:
    """Identity of the code of the module that `path` names; comments, docstrings and layout do not count.

    Of this one file only: modules that it imports do not count. The module is not executed: it might start CUDA, for
    which the job has no device yet. Whether it works, and has the name, is seen when it is loaded.

    Raises SegpipeError where there is no such module, no sign of the name in it, or no file of it.
    """
    module, name = path.split(":")
    spec = _found(module)
    if not _is_in(spec, name):
        load(path, setting)  # which says what is wrong, if anything is
        spec = sys.modules[module].__spec__
    if spec is None or not spec.has_location or spec.origin is None:
        raise _error(
            "an edit of the module could not be noticed",
            setting,
            f"{path!r}, which has no file",
            "a module with a file of its own",
            "wrap it in a function of your own module",
        )
    file = Path(spec.origin)
    try:
        return digest.of_source(file) if file.suffix == ".py" else digest.of_file(file)
    except (SyntaxError, ValueError):
        load(path, setting)
        raise


def _found(name: str) -> ModuleSpec | None:
    """Where a module would be imported from, found without executing it or the packages that it is in.

    None where it is not found so: packages may say in their code where their modules are.
    """
    if name in sys.modules:
        return sys.modules[name].__spec__
    top, *parts = name.split(".")
    with _working_directory_first():
        spec = sys.modules[top].__spec__ if top in sys.modules else find_spec(top)
        for part in parts:
            within = spec and spec.submodule_search_locations
            spec = PathFinder.find_spec(part, within) if within else None
    return spec


def _is_in(spec: ModuleSpec | None, name: str) -> bool:
    """Whether the file of a module has that word; what a module has may come about otherwise, but seldom does."""
    if spec is None or not spec.has_location or spec.origin is None:
        return False
    return re.search(rb"(?<!\w)%s(?!\w)" % name.encode(), Path(spec.origin).read_bytes()) is not None


def file_of(path: str, folder: Path = Path()) -> Path | None:
    """The file in a folder that `path` names, found without importing it; None for installed modules."""
    module = Path(folder, *path.partition(":")[0].split("."))
    files = [place.with_suffix(suffix) for place in (module / "__init__", module) for suffix in SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def _module(name: str, setting: str) -> ModuleType:
    with _working_directory_first():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _broken(name, setting, error) from error
            raise _absent(error.name, setting) from None
        except Exception as error:
            raise _broken(name, setting, error) from error


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # a file younger than the last look into its folder would not be seen
    try:
        yield
    finally:
        sys.path.remove(folder)


def _absent(name: str, setting: str) -> SegpipeError:
    """There is no such module. name : up to and with the part that was not found"""
    package, _, missing = name.rpartition(".")
    folders = getattr(sys.modules[package], "__path__", []) if package else [Path.cwd()]
    known = sorted({child for folder in folders for child in _modules_in(Path(folder))})
    searched = package or f"the working directory {Path.cwd()} and the installed packages"
    return _error(
        "no such module",
        setting,
        f"no {missing!r} in {searched}",
        "package.module:name, importable from the working directory or installed",
        _hint(missing, known, "correct the path, or run from the folder that holds the module"),
    )


def _modules_in(folder: Path) -> Iterator[str]:
    for child in folder.iterdir() if folder.is_dir() else ():
        if child.suffix == ".py" or child.is_dir():
            yield child.stem


def _broken(name: str, setting: str, error: Exception) -> SegpipeError:
    """The module is there, but its own code fails; the last line of it that was running is what helps."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return _error(
        "the module cannot be imported",
        setting,
        f"{name}: {type(error).__name__}: {error}{place}",
        "a module that imports without an error",
        f"mend what the error says; python -c 'import {name}' shows all of it",
    )


def _origin(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or f"module {module.__name__}"


def _hint(wanted: str, known: list[str], otherwise: str) -> str:
    near = difflib.get_close_matches(wanted, known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def _error(what: str, setting: str, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=f"params.yaml: {setting}", found=found, expected=expected, cure=cure))
