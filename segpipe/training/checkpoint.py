"""What a training leaves on disk. Written at once, loaded without executing anything."""

import os
import re
import sys
import zipfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from segpipe import digest
from segpipe.errors import SegpipeError, problem

PLAIN = (bool, int, float, str, type(None))


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint at once. content : as `snapshot` gives it; equal contents are equal files."""
    # given a path, torch.save would write its temporary name into the file
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only.

    Raises SegpipeError for a file that is damaged or no checkpoint of segpipe.
    """
    return _own(path, lambda: _read(path, device))


def peek(path: Path) -> dict[str, Any]:
    """What `load` reads of a model, with tensors that stay in the file, unchecked, until they are used.

    Raises SegpipeError as `load`, and for a file without the plan of a model.
    """
    content = _own(path, lambda: torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    require_model(path, content)
    return content


def require_model(path: Path, content: dict[str, Any]) -> None:
    """Raise SegpipeError where a file holds tensors, but no model of segpipe: nnU-Net's checkpoint, a state_dict."""
    if "plan" not in content:
        raise _unusable(path, f"{', '.join(map(str, list(content)[:8]))} in it, but no plan")


def load_foreign(path: Path) -> Any:
    """Read a file of torch.save that nnU-Net may have written: tensors, plain data and numpy's numbers, no code.

    Raises whatever a broken or refused file leads to; `why_unreadable` says it in a line.
    """
    with torch.serialization.safe_globals(_numpy_scalars()):
        return _read(path, "cpu")


def _read(path: Path, device: torch.device | str) -> Any:
    content = torch.load(path, map_location=device, weights_only=True)
    if zipfile.is_zipfile(path):  # torch compares no checksums: flipped bits would be weights
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} in it is wrong")
    return content


def _own(path: Path, read: Callable[[], Any]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read()
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file may fail in any way
        whole = zipfile.is_zipfile(path)
        raise _unusable(path, why_unreadable(error) if whole else "cut off, or not written by torch.save") from error
    return content


def _unusable(path: Path, found: str) -> SegpipeError:
    return SegpipeError(
        problem(
            "the checkpoint cannot be used",
            where=path,
            found=found,
            expected="a file that a training of segpipe wrote, whole",
            cure="take a copy of it, or remove it and train again; `segpipe import-nnunet` reads nnU-Net's",
        )
    )


def _numpy_scalars() -> list[Any]:
    """What unpickling nnU-Net's logged numbers needs, under the names of numpy 2 and 1; it builds numbers only."""
    scalar = np.float64().__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")] + [np.dtype, *dtypes]


def why_unreadable(error: Exception) -> str:
    """The one line that matters. torch's advice for files with more than tensors is to execute them."""
    if isinstance(error, UnpicklingError):
        refused = re.search(r"GLOBAL (\S+) w|but got <class '(\S+)'>", str(error))
        return (
            f"it holds a {refused[1] or refused[2]}, which could run code" if refused else "not written by torch.save"
        )
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


def sizes(folder: Path) -> str:
    """The checkpoints in a folder with their sizes, for a message."""
    return ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.glob("[!.]*.pth")))


def save_now(path: Path, content: dict[str, Any]) -> None:
    """Save what may lie on a device; it is on disk when this returns. Raises SegpipeError as `snapshot` does."""
    copy = snapshot(content)
    _save_when(_copied(), path, copy)


class Writer:
    """Saves checkpoints in the order given, on a thread of its own, while the training goes on.

    The content is copied when it is given and may change afterwards. At most one save waits while another is written.
    After a failed one nothing is written any more, and its error is raised at the second call after it or when the
    writer finishes: a `latest` without its `best` would never be noticed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Save soon."""
        copy = snapshot(content)
        # the copies from a CUDA device are still under way: the thread waits for them, the training does not
        copied = _copied()
        self._soon(lambda: _save_when(copied, path, copy))

    def rename(self, path: Path, target: Path) -> None:
        """Rename a file after what was given before, if it is there."""
        self._soon(lambda: _rename(path, target))

    def finish(self) -> None:
        """Wait until everything is on disk."""
        self._finish(but=0)

    def _soon(self, write: Callable[[], None]) -> None:
        self._finish(but=1)
        before = self._waiting[-1] if self._waiting else None
        self._waiting.append(self._thread.submit(_after, before, write))

    def _finish(self, but: int) -> None:
        while len(self._waiting) > but:
            self._waiting.popleft().result()


def _after(before: Future[None] | None, write: Callable[[], None]) -> None:
    if before is not None:
        before.result()
    write()


def _copied() -> torch.cuda.Event | None:
    """When the device has come to what it was asked for so far; None without one."""
    return torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None


def _save_when(copied: torch.cuda.Event | None, path: Path, content: dict[str, Any]) -> None:
    if copied is not None:
        copied.synchronize()
    save(path, content)


def _rename(path: Path, target: Path) -> None:
    if path.exists():
        os.replace(path, target)


def snapshot(value: Any) -> Any:
    """A copy in host memory that shares nothing with what it was taken from; plain data stays plain data.

    What comes from a CUDA device is complete when the device's stream has come to it.

    Raises SegpipeError for what `load` would refuse to read again.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type == "cuda":
            return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        return {snapshot(key): snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    if type(value) not in PLAIN:
        raise _not_plain(value)
    # equal strings are one object: pickle writes an object that it has met as a reference
    return sys.intern(value) if isinstance(value, str) else value


def _not_plain(value: Any) -> SegpipeError:
    return SegpipeError(
        problem(
            "the training's state could not be read again",
            where="what a schedule, optimiser or callback of yours returns or keeps",
            found=f"{value!r} of type {type(value).__module__}.{type(value).__name__}",
            expected="tensors, numbers and strings of Python, and lists and dicts of them",
            cure="convert it: float(...), int(...), torch.tensor(...)",
        )
    )
