"""Signals that ask a training to end soon: noted when they come, obeyed where the state can be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(SystemExit):
    """The training was asked to end. The exit status is that of a process ended by the signal (128 + its number).

    So Snakemake takes the job as failed and, with `--retries`, starts it again; Slurm sees what it sent.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


class Requests:
    """The signals that came. number : of the first one, None while there was none."""

    number: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number is not None:
            raise KeyboardInterrupt  # asked twice from the keyboard: at once
        self.number = self.number or number


@contextmanager
def noted() -> Iterator[Requests]:
    """Only note these signals while the block runs. Off the main thread, where none arrives, do nothing."""
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    before = {number: signal.signal(number, requests._note) for number in SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
