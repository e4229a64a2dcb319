"""One trial: a training of each fold with the trial's settings, and the value that judges it."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import optuna

from segpipe.data import splits
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params
from segpipe.prepare import planning
from segpipe.prepare.plan import Configuration
from segpipe.prepare.store import Store
from segpipe.search import ranges
from segpipe.search.study import Taken
from segpipe.training import check, job, schedule, selection
from segpipe.training.failures import TrainingFailed
from segpipe.training.selection import Row
from segpipe.training.setup import Scorer

# what preprocessing takes from a plan, beside the order of the axes and the dataset's intensities
PREPARED = ("spacing_mm", "normalisation", "use_mask_for_norm", "previous_stage")


@dataclass(frozen=True)
class Data:
    """What all trials train on: the preprocessed cases, the folds, and the fingerprint, for other plans."""

    store: Store
    splits: Path
    fingerprint: Path

    def fold_names(self, params: Params) -> list[str]:
        """Those that a trial trains."""
        return [str(number) for number in params.search.folds]

    def epochs(self, params: Params, store: Store) -> int:
        """The most epochs that a fold of a trial can have. Raises SegpipeError for lengths that cannot be."""
        lengths = [
            schedule.length(params.train, len(splits.read(self.splits, name)["train"]), store.planned.batch_size)
            for name in self.fold_names(params)
        ]
        for length in lengths:
            selection.check_full_validation(params.train, length)
        return max(length.epochs_after(0) for length in lengths)


def train(taken: Taken, data: Data, params: Params, whole_cases: Scorer) -> float:
    """Train a trial's folds, or continue them, and judge it.

    Raises optuna.TrialPruned where the pruner ends it, TrainingFailed where its settings make it fail, and what
    `job.train` raises.
    """
    settings, store, epochs = _prepared(taken.values, data, params)
    values: list[float] = []
    for index, name in enumerate(data.fold_names(params)):
        out = taken.folder / store.configuration / f"fold_{name}"
        watch = _Watch(taken.trial, params.search.measure, values, index * epochs)
        job.train(store, data.splits, name, out, settings, whole_cases, watch.look)
        rows = read_rows(out / "metrics.csv")
        watch.report(rows)
        value = judged(rows, params)
        if value is None:
            raise TrainingFailed(f"no epoch of fold {name} has a {params.search.measure}")
        values = [*values, value]
    return mean(values)


def _prepared(values: Mapping[str, Any], data: Data, params: Params) -> tuple[Params, Store, int]:
    """Settings, cases and epochs per fold of a trial. Raises TrainingFailed for values that do not go together."""
    try:
        settings = ranges.applied(params, values)
        check.check(settings, data.store.cases.labels)
        store = _replanned(data, settings) if any(key.startswith("plan.") for key in values) else data.store
        return settings, store, data.epochs(settings, store)
    except SegpipeError as error:
        raise TrainingFailed(str(error)) from error


def _replanned(data: Data, settings: Params) -> Store:
    """The same cases with another patch, batch or network.

    Raises SegpipeError where they would have to be prepared otherwise: the patch of 3d_fullres decides the spacing of
    3d_lowres, say.
    """
    store = data.store
    plan = json.loads(json.dumps(planning.make(store.cases, data.fingerprint, settings)))
    offered = plan["configurations"].get(store.configuration, {})
    before = {key: getattr(store.planned, key) for key in PREPARED}
    after = {key: offered.get(key) for key in PREPARED}
    if after != before or plan["transpose_forward"] != store.plan["transpose_forward"]:
        where, cure = f"plan of {store.configuration}", "leave this out of search.ranges, or search by hand"
        what = "a plan for which the cases are not prepared"
        raise SegpipeError(problem(what, where=where, found=after, expected=before, cure=cure))
    configurations = {name: Configuration(**value) for name, value in plan["configurations"].items()}
    return replace(store, plan={**plan, "configurations": configurations})


@dataclass(frozen=True)
class _Watch:
    """Tells the study the value of each epoch, and ends the training that the pruner has enough of.

    before : values of the folds that were trained before; first_step : epochs that those had at most
    """

    trial: optuna.Trial
    measure: str
    before: Sequence[float]
    first_step: int

    def look(self, rows: Iterable[Row]) -> None:
        """Raises optuna.TrialPruned."""
        self.report(rows)
        if self.trial.should_prune():
            raise optuna.TrialPruned()

    def report(self, rows: Iterable[Row]) -> None:
        """The epochs that the study does not know yet: after a kill it may be one behind, or ahead."""
        known = self.trial.storage.get_trial(self.trial._trial_id).intermediate_values
        for row in rows:
            value, step = row.get(self.measure), self.first_step + row["epoch"]
            if value is not None and step not in known:
                self.trial.report(mean([*self.before, float(f"{value:.6g}")]), step)  # digits as in metrics.csv


def read_rows(path: Path) -> list[Row]:
    """The lines of a metrics.csv; None where a value does not exist."""
    with path.open() as file:
        rows = [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"] or 0)} for row in rows]


def judged(rows: list[Row], params: Params) -> float | None:
    """The measure of the checkpoint that counts: of the best epoch, or the last value there is."""
    known = [row for row in rows if row.get(params.search.measure) is not None]
    if params.validate_.checkpoint == "best":
        best = selection.best_epoch(rows)
        known = [row for row in known if row["epoch"] == best] or known
    return float(known[-1][params.search.measure]) if known else None
