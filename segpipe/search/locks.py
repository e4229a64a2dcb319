"""Locks between the jobs of a search. They die with the process that holds them, however it ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock for a block that takes no time; wait for who has it."""
    with _opened(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def claimed(lock: Path) -> IO[str] | None:
    """Take a lock for as long as the file stays open; None where another process has it."""
    file = _opened(lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _opened(lock: Path) -> IO[str]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock.open("a")
