"""Artifacts never lie: what identifies them, how they come into being at once, and who may write them.

- A *digest* names what determines a result: inputs, settings, deciding code. Another digest is never resumed or mixed.
- A file appears under its name only when it is complete: written beside it, flushed to disk, renamed.
- A job holds the lock of what it writes. The lock dies with its process, however that ends.
"""

import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from logging import getLogger
from pathlib import Path
from typing import IO, Any

from segpipe import launched
from segpipe.deciding import DECIDING_MODULES
from segpipe.errors import SegpipeError

log = getLogger(__name__)

FORMAT_VERSION = 1  # raised when files of an older version can no longer be read or mixed
PACKAGE = Path(__file__).parent
LEFTOVER_AFTER_S = 3600
REPORT_BYTES = 256  # of what a lock file says
_parsing = threading.Lock()  # Python 3.11 counts the depth of all trees that are being made together, and fails
_listed: dict[Path, tuple[float, list[str]]] = {}  # of an absolute path: when it was listed, its temporary names


class Busy(SegpipeError):
    """Another process holds the lock, and this one is not to wait for it."""


def of(value: Any) -> str:
    """Identity of plain data (dicts, lists, strings, numbers): 16 hex digits, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_file(path: Path) -> str:
    """Identity of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@functools.cache
def of_code(rule: str) -> str:
    """Identity of the code that decides a rule's result; comments, docstrings and layout do not count."""
    return of([_meaning((PACKAGE / module).read_text()) for module in DECIDING_MODULES[rule]] + [FORMAT_VERSION])


def of_source(path: Path) -> str:
    """Identity of the code of one module's file, of which comments, docstrings and layout do not count."""
    return of(_meaning(path.read_bytes()))


@functools.cache  # a module decides several rules
def _meaning(source: str | bytes) -> str:
    """The syntax tree of a module without its docstrings."""
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return _said(tree)


def _said(node: Any) -> str:
    """What a syntax tree says, the same in each version of Python; `ast.dump` shows what newer ones added."""
    if isinstance(node, list):
        return f"[{','.join(map(_said, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_said(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(fields)})"


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`."""
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well, it replaces `path`."""
    temporary = _temporary(path)
    replaced = temporary.with_name(f".replaced{temporary.name}")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, replaced)  # not deleted in place: a kill would leave a part of it under its name
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside `path`, after removing what a killed process left under such a name an hour ago or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _left_beside(path):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AFTER_S:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp.{path.name}")


def _left_beside(path: Path) -> list[Path]:
    """Temporary names of a file. A folder is listed once an hour: it may hold the files of thousands of cases."""
    now = time.monotonic()
    folder = path.parent.absolute()
    listed_s, names = _listed.get(folder, (-math.inf, []))
    if now - listed_s >= LEFTOVER_AFTER_S:
        names = [name for name in os.listdir(folder) if name.startswith(".") and ".tmp." in name]
        _listed[folder] = now, names
    return [path.with_name(name) for name in names if name.endswith(f".tmp.{path.name}")]


def write_text(path: Path, text: str) -> None:
    """Write a text file at once."""
    with new_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write JSON at once: valid (null, never NaN), stable, readable in a diff."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def copy(source: Path, target: Path) -> None:
    """Copy a file so that it appears at once."""
    with new_file(target) as temporary:
        shutil.copyfile(source, temporary)


def link(source: Path, target: Path) -> None:
    """Let a second name stand for a file that is never written again, where the file system can; else copy it."""
    with new_file(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


@contextlib.contextmanager
def exclusive(lock: Path, doing: str) -> Iterator[Callable[[str], None]]:
    """Hold `lock` for the block; yields a function that says there how far the work is.

    A second writer waits: the first may be the orphan of a killed Snakemake, which still does the same work. Under
    Slurm the waiting job would hold its device for nothing, so it stops with an error and is requeued (cli/requeue.py).

    Raises Busy under Slurm when the lock is taken.
    """
    with locked(lock, doing) as file:
        yield functools.partial(_say, file)


@contextlib.contextmanager
def locked(lock: Path, doing: str) -> Iterator[int]:
    """The same, yielding the lock's descriptor. A rank has what its launcher holds."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with lock.open("r+") as file:
        if not launched.holds(lock):
            _acquire(file, lock)
        _say(file.fileno(), doing)
        yield file.fileno()


def _say(lock: int, progress: str) -> None:
    """In one write of one length: whoever reads, or stops this process, never finds half a line."""
    os.pwrite(lock, f"pid {os.getpid()}: {progress}".ljust(REPORT_BYTES).encode()[:REPORT_BYTES], 0)


def _acquire(file: IO[str], lock: Path, poll_s: float = 1.0, remind_s: float = 60.0) -> None:
    reminded = -remind_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if "SLURM_JOB_ID" in os.environ:
                raise Busy(f"{lock.parent} is being written by {holder}") from None
            if time.monotonic() - reminded >= remind_s:
                log.info("%s is being written by %s; waiting for it to end", lock.parent, holder)
                reminded = time.monotonic()
            time.sleep(poll_s)
