"""How a call speaks and ends: messages on the terminal and in a log file, exit codes."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from segpipe.errors import SegpipeError

log = logging.getLogger("segpipe")


def start_log(path: str | None) -> None:
    """Messages go to stderr and, appended, to the log file: a retried job keeps the history of its attempts."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="a"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    if path:
        log.debug("pid %d", os.getpid())


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Bad input exits with 2 and one readable message, an unexpected error with 1 and a traceback."""
    try:
        yield
    except SegpipeError as error:
        log.error("%s", error)
        sys.exit(2)
    except Exception:
        log.exception("unexpected error")
        sys.exit(1)
