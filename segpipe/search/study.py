"""One search: its trials, what they were given, which of them a job takes next, what came of them."""

import itertools
import json
import random
import warnings
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.params import Params
from segpipe.search import locks, ranges
from segpipe.search.journal import Journal
from segpipe.search.ranges import Range
from segpipe.training.selection import LOSSES

log = getLogger(__name__)

JOURNAL, RECORD = "journal.log", "study.json"
PRESENT = "present settings"  # mark of the trial that has the values of params.yaml
DIGITS = 4  # of a drawn number
CRASHES, REASON = "crashes", "reason"


@dataclass(frozen=True)
class Taken:
    """A trial that this job, and no other one, may train. values : of the varied settings, by their keys"""

    trial: optuna.Trial
    values: dict[str, Any]
    folder: Path
    lock: IO[str]

    @property
    def number(self) -> int:
        """Of the trial, from 0."""
        return self.trial.number


class Search:
    """The trials of a study, shared by all jobs through the files of its folder."""

    def __init__(self, folder: Path, params: Params, epochs: int | None) -> None:
        """Open the study of a folder, or begin it.

        epochs : of a trial, over all its folds; None for who trains none
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.folder, self.settings, self.ranges = folder, params.search, ranges.of(params)
        with locks.held(folder / ".lock"):
            storage = JournalStorage(Journal(folder / JOURNAL))
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=storage,
                direction="maximize" if self.rises else "minimize",
                pruner=self._pruner(epochs),
                load_if_exists=True,
            )
            planned = self._planned(params)
            grid = self.settings.sampler == "grid"
            for values in planned[len(self.trials) :]:
                self.study.enqueue_trial({key: label(value) for key, value in values.items()}, {PRESENT: not grid})
        self.wanted = min(self.settings.trials, len(planned)) if grid else self.settings.trials

    def _planned(self, params: Params) -> list[dict[str, Any]]:
        """Trials whose values are known before: of a grid all, else the present values where they lie in the ranges."""
        if self.settings.sampler == "grid":
            points = [one.grid() for one in self.ranges.values()]
            grid = [dict(zip(self.ranges, point, strict=True)) for point in itertools.product(*points)]
            random.Random(self.settings.seed).shuffle(grid)
            return grid
        present = {key: ranges.value_of(params, key) for key in self.ranges}
        return [present] if all(self.ranges[key].has(value) for key, value in present.items()) else []

    @property
    def rises(self) -> bool:
        """Whether a higher value is better."""
        return self.settings.measure not in LOSSES

    @property
    def trials(self) -> list[FrozenTrial]:
        """All that were begun or, in state WAITING, planned; by their numbers."""
        return self.study.get_trials(deepcopy=False)

    def take(self) -> Taken | None:
        """The next trial for this job: one that a killed job has left, else a new one; None where all are begun."""
        with locks.held(self.folder / ".lock"):
            return self._left() or self._new()

    def _left(self) -> Taken | None:
        for one in self.trials:
            lock = locks.claimed(self._lock(one.number)) if one.state == TrialState.RUNNING else None
            if lock is not None and self.trials[one.number].state == TrialState.RUNNING:
                log.info("trial %d: goes on, another job has left it", one.number)
                self.study.sampler = self._sampler(one.number)  # for values that the other job did not come to draw
                return self._taken(optuna.Trial(self.study, one._trial_id), lock)
            if lock is not None:
                lock.close()
        return None

    def _new(self) -> Taken | None:
        trials = self.trials
        waiting = [one.number for one in trials if one.state == TrialState.WAITING]
        if len(trials) - len(waiting) >= self.wanted:
            return None
        self.study.sampler = self._sampler(waiting[0] if waiting else len(trials))
        trial = self.study.ask()
        lock = locks.claimed(self._lock(trial.number))
        assert lock is not None, "a trial that nobody knows of is not taken"
        return self._taken(trial, lock)

    def _taken(self, trial: optuna.Trial, lock: IO[str]) -> Taken:
        for key, one in self.ranges.items():
            _suggest(trial, key, one)
        return Taken(trial, self.values(trial), self.folder_of(trial.number), lock)

    def values(self, trial: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        """The values of a trial, by key; without those that a killed job did not come to draw."""
        drawn = {key: trial.params[key] for key in self.ranges if key in trial.params}
        is_present = trial.user_attrs.get(PRESENT, False)
        return {key: _meant(self.ranges[key], value, is_present) for key, value in drawn.items()}

    def folder_of(self, number: int) -> Path:
        """Where a trial's training lies."""
        return self.folder / f"trial_{number}"

    def _lock(self, number: int) -> Path:
        return self.folder_of(number) / ".lock"

    def left(self) -> list[int]:
        """Numbers of the trials that were begun and not ended, whether or not a job is at them."""
        return [one.number for one in self.trials if one.state == TrialState.RUNNING]

    def is_taken(self, number: int) -> bool:
        """Whether a job is at a trial."""
        with locks.held(self.folder / ".lock"):
            lock = locks.claimed(self._lock(number))
        if lock is not None:
            lock.close()
        return lock is None

    def finish(self, taken: Taken, value: float) -> None:
        """A trial came to its end."""
        self.study.tell(taken.trial, value)

    def prune(self, taken: Taken) -> None:
        """A trial leads nowhere."""
        self.study.tell(taken.trial, state=TrialState.PRUNED)

    def fail(self, taken: Taken, reason: str) -> None:
        """A trial's settings made it fail."""
        taken.trial.set_user_attr(REASON, reason)
        self.study.tell(taken.trial, state=TrialState.FAIL)

    def crash(self, taken: Taken, reason: str) -> None:
        """Something unexpected happened. Whoever takes the trial next tries it once more; then it has failed."""
        crashes = taken.trial.user_attrs.get(CRASHES, 0) + 1
        taken.trial.set_user_attr(CRASHES, crashes)
        if crashes > 1:
            self.fail(taken, reason)

    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value, the first of them; None where none is finished."""
        complete = [one for one in self.trials if one.state == TrialState.COMPLETE]
        sign = 1 if self.rises else -1
        return max(complete, key=lambda one: (sign * (one.value or 0), -one.number), default=None)

    def _sampler(self, number: int) -> BaseSampler:
        """What draws the values of a trial: of the seed and its number, so two jobs never draw the same."""
        seed = int(digest.of([self.settings.seed, number])[:8], 16)
        if self.settings.sampler == "tpe":
            # trials that are not ended count as bad ones: jobs side by side do not try the same
            return TPESampler(seed=seed, constant_liar=True)
        return RandomSampler(seed=seed)  # of a grid all values are known

    def _pruner(self, epochs: int | None) -> BasePruner:
        settings = self.settings.pruner
        if settings.name == "median":
            return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)
        if settings.name == "hyperband" and epochs is not None:
            return HyperbandPruner(min(max(settings.warmup_epochs, 1), epochs), epochs)
        return NopPruner()


def label(value: Any) -> Any:
    """A choice as Optuna keeps it: what is no single value by its text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _meant(one: Range, drawn: Any, exactly: bool) -> Any:
    """The value that Optuna's stands for; unless `exactly`, with as many digits as a person would write."""
    if one.choices is not None:
        return one.choices[[label(choice) for choice in one.choices].index(drawn)]
    return drawn if one.whole or exactly else min(max(float(f"{drawn:.{DIGITS}g}"), one.low), one.high)


def _suggest(trial: optuna.Trial, key: str, one: Range) -> None:
    """Draw the value of a setting, where the trial has none yet."""
    if one.choices is not None:
        trial.suggest_categorical(key, [label(choice) for choice in one.choices])
    elif one.whole:
        trial.suggest_int(key, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    else:
        trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def listed(values: dict[str, Any]) -> str:
    """The settings of a trial on one line."""
    return ", ".join(f"{key}: {ranges.written(value)}" for key, value in values.items())
