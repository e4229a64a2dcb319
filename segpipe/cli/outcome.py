"""How a call speaks and ends: messages on the terminal and in a log file, exit codes."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from segpipe import digest, launched
from segpipe.cli import requeue
from segpipe.errors import SegpipeError, problem

log = logging.getLogger("segpipe")

# What is wrong with the input is wrong in all ranks: the launcher ends the others before they say so.
SAME_ERROR_S = 10.0


def start_log(path: str | None) -> None:
    """Messages go to stderr and, appended, to the log file: a retried job keeps the history of its attempts.

    Raises SegpipeError where the log file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        handlers.append(_log_file(Path(path)))
    rank = launched.rank()  # of several that share a job the first one speaks; the others say what went wrong
    level, shape = (logging.ERROR, f"rank {rank}: %(message)s") if rank else (logging.INFO, "%(message)s")
    logging.basicConfig(level=level, format=shape, handlers=handlers, force=True)
    logging.getLogger(launched.SHARE).setLevel(logging.INFO)
    if path:
        log.debug("pid %d", os.getpid())


def _log_file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(path, mode="a")
    except OSError as error:
        expected, cure = "a file that can be written", "correct the path, or who may write there"
        what = "the log file cannot be written"
        raise SegpipeError(problem(what, where=path, found=error.strerror, expected=expected, cure=cure)) from None


def require_folder(path: Path) -> None:
    """Raise SegpipeError where there can be no folder for results, before anything is computed; it is not made yet."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        expected, cure = "a folder that can be written to", "name another one"
        found = error.strerror or str(error)
        raise SegpipeError(
            problem("results cannot be written", where=path, found=found, expected=expected, cure=cure)
        ) from None


def require_file(path: Path | None) -> None:
    """The same for a file."""
    if path is not None and path.is_dir():
        expected, cure = "a file", "name one in it"
        raise SegpipeError(
            problem("results cannot be written", where=path, found="a folder", expected=expected, cure=cure)
        )
    if path is not None:
        require_folder(path.parent)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Bad input exits with 2 and one readable message, an unexpected error with 1 and a traceback.

    Under Slurm a job that came too early, or ran out of time, is requeued.
    """
    try:
        yield
    except SystemExit as end:
        requeue.when_time_is_up(end.code)
        raise
    except digest.Busy as error:
        log.error("%s", error)
        requeue.when_busy()
        sys.exit(2)
    except SegpipeError as error:
        if launched.rank():
            time.sleep(SAME_ERROR_S)
        log.error("%s", error)
        sys.exit(2)
    except Exception:
        log.exception("unexpected error")
        sys.exit(1)
    except KeyboardInterrupt:
        if not launched.is_rank():
            raise
        sys.exit(128 + signal.SIGINT)  # of several ranks none has to say where it was
