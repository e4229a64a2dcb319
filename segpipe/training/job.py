"""One training from its inputs to its finished files: resume, log, checkpoints.

State lives in `state/<digest>/`, which no rule declares: a failed or killed job keeps it, other settings have another
digest and neither resume it nor overwrite it. The declared files are copied out by rename at the end.
"""

import os
import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from segpipe import digest
from segpipe.data import splits
from segpipe.params import Params
from segpipe.prepare.store import Store
from segpipe.ranks import ALONE, Ranks
from segpipe.training import (
    check,
    checkpoint,
    curves,
    divergence,
    failures,
    follower,
    interrupt,
    loop,
    messages,
    model,
    selection,
)
from segpipe.training.identity import Identity, identify, shorter
from segpipe.training.selection import Row
from segpipe.training.setup import Scorer, Setup, classes

log = getLogger(__name__)

NEW_BEST = "best_new.pth"  # becomes best.pth when `latest` is on disk
STEP_LINE_EVERY_S = 30.0  # a line within an epoch, where epochs are long
DRAW_EVERY_S = 60.0
OnEpoch = Callable[[list[Row]], None]


def train(
    store: Store,
    splits_path: Path,
    fold_name: str,
    out: Path,
    params: Params,
    whole_cases: Scorer | None = None,
    on_epoch: OnEpoch | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train one configuration on one fold, or continue it, and write its finished files into `out`.

    A training with the same digest that is finished is published again within seconds.

    whole_cases : makes the function that scores whole validation cases, for `train.full_validation`
    on_epoch : called with the rows so far after each epoch that another one follows, when its checkpoint is being
        written; what it raises ends the training, which a later call continues
    ranks : who share the training; each makes this call, and the first one writes
    Raises SegpipeError where the settings ask for what does not exist and where the training diverges; Interrupted
    after SIGTERM or SIGUSR1, when the state is saved.
    """
    fold = splits.read(splits_path, fold_name)
    title = f"training {store.configuration} fold {fold_name}"
    with ranks.exclusive(lock(out), title) as report:
        check.check(params, store.cases.labels)
        identity = ranks.same(identify(store, fold, params, out / "state"))
        state = out / "state" / identity.digest
        if not ranks.same((state / "final.pth").exists()):
            setup = Setup.of(store, fold, params, ranks)
            if not ranks.is_first:
                return follower.follow(setup, whole_cases)
            identity.write(state, params)
            with messages.kept(state / "train.log"):
                _Job(setup, state, identity, title, report).run(whole_cases, on_epoch)
        if ranks.is_first:
            _publish(state, out)
    log.info("%s: published from %s", title, state)


def lock(out: Path) -> Path:
    """The file whose lock a training holds that writes into `out`."""
    return out / "state" / ".lock"


def _publish(state: Path, out: Path) -> None:
    for source, target in (
        ("final.pth", "checkpoint_final.pth"),
        ("best.pth", "checkpoint_best.pth"),
        ("metrics.csv", "metrics.csv"),
        ("progress.png", "progress.png"),
    ):
        digest.copy(state / source, out / target)


class _Job:
    """A training with its files. `run` is the order of things; the rest is called by the loop."""

    def __init__(
        self, setup: Setup, state: Path, identity: Identity, title: str, report: Callable[[str], None]
    ) -> None:
        self.setup, self.state, self.identity, self.title, self.report = setup, state, identity, title, report
        self.settings, self.runtime, self.ranks = setup.params.train, setup.params.runtime, setup.ranks
        self.classes = classes(setup.store)
        self.callbacks = setup.callbacks()
        self.writer = checkpoint.Writer()
        self.best: dict[str, Any] | None = None  # kept here where nothing but the end is written
        self.step_seconds: list[float] = []
        self.last_line = self.last_drawing = time.monotonic()

    def run(self, whole_cases: Scorer | None, on_epoch: OnEpoch | None) -> None:
        """Resume, train to the end, write the final files."""
        self.on_epoch = on_epoch
        with interrupt.noted() as self.requests:
            self.training = self.setup.training(whole_cases, self._between)
            self._resume()
            self.board = curves.Board(self.state / "tensorboard", len(self.training.rows))
            try:
                self._fit()
                self._finish()
            except divergence.Diverged as found:
                raise divergence.explain(found, self.training, self.state) from None
            except torch.OutOfMemoryError as error:
                raise failures.out_of_memory(error, self.setup.store.planned) from error
            except OSError as error:
                raise failures.not_written(error, self.state) from error

    def _fit(self) -> None:
        """Train; whatever ends it, what was to be written is written before the lock is free."""
        try:
            loop.fit(self.training, self._between, self._on_epoch_end)
        finally:
            self.board.close()
            self.writer.finish()

    def _resume(self) -> None:
        path = self.ranks.same(self._resume_from())
        if path is not None:
            content = checkpoint.load(path)
            self._warn_of_other_precision(content["precision"])
            model.restore(self.training, content)
        self._settle_best()
        run = self._describe_start(path)
        digest.write_json(self.state / "run.json", run)

    def _settle_best(self) -> None:
        """A best model whose `latest` was written is the best; one that came to nothing is made again by its epoch."""
        new = self.state / NEW_BEST
        if new.exists():
            row = checkpoint.load(new)["row"]
            os.replace(new, self.state / "best.pth") if row in self.training.rows else new.unlink()

    def _warn_of_other_precision(self, before: str) -> None:
        now = str(self.setup.dtype).removeprefix("torch.")
        if now != before:
            log.warning("%s: goes on in %s what was begun in %s; train.precision would fix it", self.title, now, before)

    def _resume_from(self) -> Path | None:
        """The checkpoint to go on from: this training's, else the one of the training that it continues."""
        own = self.state / "latest.pth"
        parent = self.identity.parent
        return own if own.exists() else self.state.parent / parent / "latest.pth" if parent else None

    def _describe_start(self, path: Path | None) -> dict[str, Any]:
        """Say in the log how the training starts; what is said and what else is of this machine, for run.json."""
        done, step = len(self.training.rows), self.training.step
        within = f" and {len(self.training.losses)} steps" if self.training.losses else ""
        start = f"continues after epoch {done}{within}" if path else "starts"
        parent, extend = self.identity.parent, self.settings.on_extend
        if path and path.parent.name == parent:
            start = f"extends a finished training of {step} steps ({parent}) to {self.identity.total_steps}"
        elif not path and extend == "continue":
            start = "starts from the beginning: no finished, shorter training differs in its length alone"
        elif not path and shorter(self.identity, self.state.parent):
            start = "starts from the beginning (train.on_extend: continue would extend the finished shorter training)"
        precision = str(self.setup.dtype).removeprefix("torch.")
        log.info("%s: %s (%s, %s, digest %s)", self.title, start, self.setup.device, precision, self.identity.digest)
        runtime = self.runtime.model_dump(mode="json")
        return {
            **self.setup.computes_on,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.n,
            "feeding": self.training.feed.held.facts(),
            "torch": torch.__version__,
            "runtime": runtime,
            "start": start,
            "resumed_after_epoch": done,
            "resumed_after_step": step,
        }

    def _between(self) -> None:
        """Before each step and each validation batch: obey a signal, say how far the epoch is."""
        if number := self.ranks.highest(self.requests.number or 0):
            raise self._interrupted(interrupt.Interrupted(number))
        if time.monotonic() - self.last_line > STEP_LINE_EVERY_S:
            training, total = self.training, self.training.length.total_steps
            self._line(f"epoch {len(training.rows) + 1}/{training.epochs}  step {training.step}/{total}")

    def _interrupted(self, request: interrupt.Interrupted) -> interrupt.Interrupted:
        if self.runtime.disable_checkpointing:
            self._line(f"{self.title}: {request.name}, nothing saved (runtime.disable_checkpointing)")
        else:
            divergence.check_all(self.training)
            self._save_latest()
            self.writer.finish()
            self._line(f"{self.title}: {request.name}, saved after step {self.training.step}; a rerun continues there")
        self.ranks.meet()  # the others end now, not before: the launcher would end this one as well
        return request

    def _on_epoch_end(self, row: Row, seconds_per_step: float) -> None:
        """Best first, latest last: a kill in between repeats the epoch with the same result."""
        training, rows = self.training, self.training.rows
        for callback in self.callbacks:
            callback(training, row)
        if selection.best_epoch(rows) == row["epoch"]:
            self._save_best()
        curves.write_csv(self.state / "metrics.csv", rows)
        if time.monotonic() - self.last_drawing > DRAW_EVERY_S:
            curves.draw(self.state / "progress.png", rows, self.classes)
            self.last_drawing = time.monotonic()
        is_due = row["epoch"] % self.runtime.checkpoint_every == 0 or training.is_over()
        if is_due and not self.runtime.disable_checkpointing:
            self._save_latest()
        self.board.write(row)
        curves.add_timing(self.state / "timings.csv", row["epoch"], seconds_per_step)
        self.step_seconds = [*self.step_seconds[-4:], seconds_per_step]
        self._line(messages.epoch(training, self.classes, self.step_seconds))
        self.report(f"{self.title}, epoch {row['epoch']}/{training.epochs} done")
        if self.on_epoch is not None and not training.is_over():
            self.on_epoch(rows)

    def _save_best(self) -> None:
        if self.runtime.disable_checkpointing:
            self.best = checkpoint.snapshot(self._model())
        else:
            self.writer.save(self.state / NEW_BEST, self._model())

    def _save_latest(self) -> None:
        """With it on disk, what is the best by its rows is the best: not before, as a repeated epoch may differ."""
        self.writer.save(self.state / "latest.pth", self._resumable())
        self.writer.rename(self.state / NEW_BEST, self.state / "best.pth")

    def _finish(self) -> None:
        """The files that are published; `final` comes last, as it says that the others are there."""
        rows, stop = self.training.rows, selection.stopped(self.training.rows, self.settings.early_stopping)
        curves.write_csv(self.state / "metrics.csv", rows)
        curves.draw(self.state / "progress.png", rows, self.classes)
        if self.runtime.disable_checkpointing:  # one of an earlier attempt is not the end of this training
            (self.state / "latest.pth").unlink(missing_ok=True)
        checkpoint.save_now(self.state / "best.pth", self._finished_best())
        self.identity.write(self.state, self.setup.params, self.training.step)
        checkpoint.save_now(self.state / "final.pth", self._model())
        if stop is not None:
            log.info("%s: stopped early after epoch %d: %s", self.title, stop["epoch"], stop["reason"])
        best, sizes = selection.best_epoch(rows), checkpoint.sizes(self.state)
        log.info("%s: finished after epoch %d, best is epoch %s; %s", self.title, len(rows), best, sizes)

    def _finished_best(self) -> dict[str, Any]:
        """The best model, with what happened after it; it may be that of the training which this one continues."""
        if selection.best_epoch(self.training.rows) is None:
            log.warning("%s: no epoch had a fitness; the last one counts as the best", self.title)
            return self._model()
        path, parent = self.state / "best.pth", self.identity.parent
        if self.best is None and not path.exists() and parent is not None:
            path = self.state.parent / parent / "best.pth"
        best = self.best or checkpoint.load(path)
        return {**self._model(), **{key: best[key] for key in ("epoch", "step", "row", "network", "averaged")}}

    def _line(self, text: str) -> None:
        log.info("%s", text)
        self.last_line = time.monotonic()

    def _resumable(self) -> dict[str, Any]:
        """A model, and what else the training needs to go on from here, in the middle of an epoch too."""
        training = self.training
        resume = {
            "optimiser": training.optimiser.state_dict(),
            "scaler": training.scaler.state_dict(),
            "rows": training.rows,
            "losses": torch.stack(training.losses) if training.losses else torch.empty(0),
        }
        return {**self._model(), "resume": resume}

    def _model(self) -> dict[str, Any]:
        """A checkpoint that predicts without anything beside it; no optimiser state."""
        return model.content(self.setup, self.training, self.identity)
