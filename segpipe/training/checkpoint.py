"""What a training leaves on disk. Written at once, loaded without executing anything."""

import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from segpipe import digest


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint at once; equal contents are equal files."""
    # given a path, torch.save would write its temporary name into the file
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        torch.save(_plain(content), file)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content


def sizes(folder: Path) -> str:
    """The checkpoints in a folder with their sizes, for a message."""
    return ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.glob("[!.]*.pth")))


class Writer:
    """Saves checkpoints in the order given, on a thread of its own, while the training goes on.

    The content is copied when it is given, on its device, and may change afterwards. At most one checkpoint waits while
    another is written. After a failed save nothing is written any more, and its error is raised at the second call
    after it or when the writer finishes: a `latest` without its `best` would never be noticed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def save(self, path: Path, content: dict[str, Any]) -> None:
        """Save soon."""
        self._finish(but=1)
        before = self._waiting[-1] if self._waiting else None
        self._waiting.append(self._thread.submit(_save_after, before, path, snapshot(content)))

    def finish(self) -> None:
        """Wait until everything is on disk."""
        self._finish(but=0)

    def _finish(self, but: int) -> None:
        while len(self._waiting) > but:
            self._waiting.popleft().result()


def _save_after(before: Future[None] | None, path: Path, content: dict[str, Any]) -> None:
    if before is not None:
        before.result()
    save(path, content)


def snapshot(value: Any) -> Any:
    """A copy that shares no memory with what it was taken from."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Tensors on the CPU; equal strings the same object, as pickle writes an object it has met as a reference."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return sys.intern(value) if isinstance(value, str) else value
