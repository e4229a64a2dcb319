"""The journal of a study: a file of what the jobs of a search have done, a line each."""

import fcntl
from pathlib import Path
from typing import IO

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


class Journal(JournalFileBackend):
    """Optuna's journal file, whose lock and whose last line survive a job that is killed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path), _Lock(path))


class _Lock(JournalFileOpenLock):
    """A lock that the kernel frees with its process.

    Optuna's own are files: a killed job leaves one behind, which stops the others for 30 s, and one that is only slow
    has its lock taken away. Locks of this kind hold between nodes on NFS 4 as well; trials are claimed by them, too.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._path = journal, journal.with_name(f".{journal.name}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for the lock; whoever has it may write."""
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _drop_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Let the next one write."""
        assert self._file is not None
        self._file.close()


def _drop_torn_line(journal: Path) -> None:
    """Cut off a line that a full disk or a lost node left half-written: with the next one behind it, it would be read
    by nobody, and the study with it.
    """
    with journal.open("r+b") as file:
        if file.seek(0, 2) == 0:
            return
        file.seek(-1, 2)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
