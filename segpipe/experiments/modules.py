"""Modules of the user's that a params.yaml names: they lie beside it, so a new experiment gets its own."""

import ast
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import segpipe
from segpipe import plugins


def files(import_paths: Iterable[str], folders: Iterable[Path]) -> dict[Path, Path]:
    """What has to be copied for `package.module:name`: from a file, to a path below the new folder.

    A module lies in the first of the folders that has it, with its whole package and the modules there that these
    import; what none of them has is installed.
    """
    found: dict[Path, Path] = {}
    for path in import_paths:
        folder = next((one for one in folders if plugins.file_of(path, one)), None)
        if folder is not None:
            found |= {file: file.relative_to(folder) for file in _with_imported(_top(path), folder)}
    return found


def _with_imported(name: str, folder: Path) -> Iterator[Path]:
    """Files of a top-level module or package of the folder, and of those it imports, in turn."""
    seen, waiting = {segpipe.__name__}, [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for file in _of(name, folder):
            yield file
            waiting += _imported(file)


def _of(name: str, folder: Path) -> list[Path]:
    package = folder / name
    inside = sorted(package.rglob("*")) if package.is_dir() else []
    beside = [package.with_name(f"{name}{suffix}") for suffix in plugins.SUFFIXES]
    return [file for file in [*inside, *beside] if file.is_file() and file.name.endswith(plugins.SUFFIXES)]


def _imported(file: Path) -> Iterator[str]:
    """Top-level names that a module imports; of one with an error none, which is said when it is imported."""
    if file.suffix != ".py":
        return
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (_top(alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield _top(node.module)


def _top(path: str) -> str:
    """`package` of package.module:name."""
    return path.partition(":")[0].partition(".")[0]
