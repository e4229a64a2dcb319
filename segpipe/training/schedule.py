"""How long a training is, and its rate: pure functions of the step, so a resume cannot get them wrong.

A step is one update of the weights; steps are counted from the start of the training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from segpipe import plugins
from segpipe.errors import SegpipeError, problem
from segpipe.params.train import Schedule, Train


@dataclass(frozen=True)
class Length:
    """How many steps a training has, and after how many an epoch ends; the last one may be shorter."""

    steps_per_epoch: int
    total_steps: int

    def epochs_after(self, step: int) -> int:
        """How many epochs follow a step at which one ended."""
        boundaries = range(step // self.steps_per_epoch, math.ceil(self.total_steps / self.steps_per_epoch))
        return len(boundaries) if step < self.total_steps else 0

    def epoch_from(self, step: int) -> range:
        """The steps from `step` to the end of its epoch."""
        return range(step, min((step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.total_steps))


def length(settings: Train, n_cases: int, batch_size: int) -> Length:
    """The length that the settings name.

    n_cases, batch_size : of the training; they say how long one pass over the cases is
    Raises SegpipeError where the warm-up leaves no step for the schedule.
    """
    n = settings.iterations_per_epoch
    steps_per_epoch = math.ceil(n_cases / (batch_size * settings.accumulate)) if n == "pass" else n
    total = settings.max_steps if settings.epochs is None else settings.epochs * steps_per_epoch
    assert total is not None
    if settings.schedule.warmup_steps >= total:
        raise SegpipeError(
            problem(
                "the warm-up is as long as the training",
                where="params.yaml: train.schedule.warmup_steps",
                found=settings.schedule.warmup_steps,
                expected=f"fewer than the {total} steps of the training",
                cure="warm up for fewer steps, or train for longer",
            )
        )
    return Length(steps_per_epoch, total)


class Rate:
    """The learning rate at a step, for parameter groups of factor 1."""

    def __init__(self, settings: Train, length: Length) -> None:
        self.learning_rate, self.settings, self.length = settings.optimiser.learning_rate, settings.schedule, length
        self.factor = _factor(settings.schedule)

    def __call__(self, step: int) -> float:
        """The rate of a step. It rises with each step of the warm-up, even where the schedule changes it per epoch."""
        warmup = self.settings.warmup_steps
        if step < warmup:
            return self.learning_rate * ((step + 1) / warmup)
        unit = self.length.steps_per_epoch if self.settings.per == "epoch" else 1
        start, end = max(step // unit * unit, warmup), math.ceil(self.length.total_steps / unit) * unit
        return float(self.learning_rate * self.factor((start - warmup) / (end - warmup), self.settings))

    def check(self) -> None:
        """Raise SegpipeError where the rate of an epoch's first step is not a number of 0 or more."""
        steps = range(0, self.length.total_steps, self.length.steps_per_epoch)
        wrong = [(step, rate) for step in steps if not 0 <= (rate := self(step)) < math.inf]
        if wrong:
            raise SegpipeError(
                problem(
                    "no learning rate",
                    where="params.yaml: train.schedule.name",
                    found=f"{self.settings.name} gives {wrong[0][1]} at step {wrong[0][0]}",
                    expected="a finite number, 0 or more",
                    cure="correct the schedule; it is called with the share of the training that is done, from 0 to 1",
                )
            )


def _factor(settings: Schedule) -> Callable[[float, Schedule], float]:
    if settings.name in FACTORS:
        return FACTORS[settings.name]
    custom: Callable[[float, Schedule], float] = plugins.load(settings.name, "train.schedule.name")
    return custom


def poly(p: float, settings: Schedule) -> float:
    """Polynomial decay to zero (nnunetv2/training/lr_scheduler/polylr.py). p : share of the training that is done."""
    return float((1 - p) ** settings.poly_exponent)


def cosine(p: float, settings: Schedule) -> float:
    """Half a cosine from 1 to `final_factor` (Loshchilov and Hutter 2017, without restarts)."""
    return settings.final_factor + (1 - settings.final_factor) * (1 + math.cos(math.pi * p)) / 2


def exponential(p: float, settings: Schedule) -> float:
    """Equal ratios from step to step, `final_factor` at the end."""
    return float(settings.final_factor**p)


def step(p: float, settings: Schedule) -> float:
    """Multiplied by `step_factor` at each of `steps_at`."""
    return float(settings.step_factor ** sum(p >= at for at in settings.steps_at))


def constant(p: float, settings: Schedule) -> float:
    """No change."""
    return 1.0


FACTORS: dict[str, Callable[[float, Schedule], float]] = {
    "poly": poly,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "constant": constant,
}
