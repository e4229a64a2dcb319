"""What both sides of training_speed.py have in common: a process that measures when it is told to.

It reads one JSON object per line from stdin, {"mode": "real", "steps": 2, "tune": true}, and answers with one line:
seconds per step, of the clock on the wall and of all threads of this process. Needs torch and the standard library
only, since it runs in the environments of both programs.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Over(Exception):
    """All steps of a measurement are done."""


class Clock:
    """Times steps without waiting for the device between them. `tick` comes before each step, and once after the last.

    warm : steps that come before the timed ones
    """

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps, self.done = warm, steps, 0
        self.started = self.started_cpu = self.seconds = self.cpu_seconds = 0.0

    def tick(self) -> None:
        """Raises Over when all steps are done."""
        if self.done == self.warm:
            _synchronise()
            self.started, self.started_cpu = time.perf_counter(), time.process_time()
        if self.done == self.warm + self.steps:
            _synchronise()
            self.seconds = (time.perf_counter() - self.started) / self.steps
            self.cpu_seconds = (time.process_time() - self.started_cpu) / self.steps
            raise Over
        self.done += 1


class Program(Protocol):
    """One program, ready to train.

    on_cpu : then nothing needs to run ahead before a measurement
    ahead : batches that may be prepared when a measurement starts; the first ones would cost nothing
    """

    on_cpu: bool
    ahead: int

    def facts(self) -> dict[str, Any]:
        """What is trained: parameters, shape of a batch, precision."""

    def rest(self) -> None:
        """Return when nothing is prepared in the background any more."""

    def real(self, clock: Clock) -> None:
        """Train until the clock says Over."""

    def feed(self, clock: Clock) -> None:
        """Make the batches of a training and throw them away."""

    def compute(self, clock: Clock) -> None:
        """Train on one batch, which is there."""


def serve(start: Callable[[], Program]) -> None:
    """Answer with the facts, then with each measurement, until stdin ends. What the program prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    program = start()
    print(json.dumps(program.facts()), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.backends.cudnn.benchmark = asked["tune"]
        print(json.dumps(_measure(program, asked["mode"], asked["steps"])), file=answers, flush=True)


def _measure(program: Program, mode: str, steps: int) -> dict[str, Any]:
    """On the CPU a step takes longer than its batch, in both programs: what is ahead stays ahead. Elsewhere that is
    what is to be found out, so what is ahead is used up before the timed steps."""
    program.rest()
    used_up = mode == "feed" or (mode == "real" and not program.on_cpu)
    clock = Clock(program.ahead if used_up else 0 if program.on_cpu else 3, steps)
    with contextlib.suppress(Over):
        {"real": program.real, "feed": program.feed, "compute": program.compute}[mode](clock)
    device = None if program.on_cpu else torch.cuda.max_memory_allocated() / 2**20
    return {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "device_mib": device}


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
