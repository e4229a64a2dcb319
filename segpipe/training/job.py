"""One training from its inputs to its finished files: identity, resume, log, checkpoints.

State lives in `state/<digest>/`, which no rule declares: a failed or killed job keeps it, other settings have another
digest and neither resume it nor overwrite it. The declared files are copied out by rename at the end.
"""

import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from logging import FileHandler, getLogger
from pathlib import Path
from sys import intern
from typing import Any

import torch

from segpipe import device, digest
from segpipe.data import splits
from segpipe.params import Params, section
from segpipe.prepare.store import Store
from segpipe.training import checkpoint, curves, loop
from segpipe.training.feed import Feed
from segpipe.training.loop import Row, Training
from segpipe.training.network import build
from segpipe.training.schedule import optimiser

log = getLogger(__name__)

STEP_LINE_EVERY_S = 30.0  # a line within an epoch, where epochs are long
DRAW_EVERY_S = 60.0


@dataclass(frozen=True)
class Identity:
    """What a training is. settings : equal in all folds of a configuration; digest : of this fold."""

    settings: str
    digest: str


def identify(store: Store, fold: splits.Fold, params: Params) -> Identity:
    """The digests of a training."""
    planned = {key: value for key, value in asdict(store.planned).items() if key != "reasons"}
    settings = digest.of([section(params, "train"), planned, store.cases.labels, digest.of_code("train")])
    return Identity(settings, digest.of([settings, store.digest, fold]))


def train(store: Store, splits_path: Path, fold_name: str, out: Path, params: Params) -> None:
    """Train one configuration on one fold, or continue it, and write its finished files into `out`.

    A training with the same digest that is finished is published again within seconds.
    """
    fold = splits.read(splits_path, fold_name)
    identity = identify(store, fold, params)
    state = out / "state" / identity.digest
    title = f"training {store.configuration} fold {fold_name}"
    with digest.exclusive(out / "state" / ".lock", title) as report:
        state.mkdir(parents=True, exist_ok=True)
        handler = FileHandler(state / "train.log")
        getLogger().addHandler(handler)
        try:
            _Job(store, fold, state, identity, params, title).run(report)
        finally:
            getLogger().removeHandler(handler)
        _publish(state, out)


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
        self, store: Store, fold: splits.Fold, state: Path, identity: Identity, params: Params, title: str
    ) -> None:
        self.store, self.state, self.identity, self.params, self.title = store, state, identity, params, title
        self.settings = params.train
        self.device = device.start(params.runtime)
        self.dtype = device.precision(self.settings.precision, self.device)
        cases = store.cases
        self.classes = [name for name, value in cases.labels.items() if value]
        network = build(len(cases.channel_names), len(cases.labels), store.planned, self.settings.seed).to(self.device)
        self.training = Training(
            network,
            optimiser(network, self.settings),
            torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16),
            Feed(store, fold["train"], fold["val"], self.settings),
            self.settings,
            self.device,
            self.dtype,
            0 if self.device.type == "cpu" else params.runtime.prefetch,
            [],
        )
        self.last_line = self.last_drawing = time.monotonic()
        self.step_seconds: list[float] = []

    def run(self, report: Any) -> None:
        """Resume, train to the end, write the final files."""
        self.report = report
        self._resume()
        loop.fit(self.training, self._on_step, self._on_epoch_end)
        rows = self.training.rows
        curves.write_csv(self.state / "metrics.csv", rows)
        curves.draw(self.state / "progress.png", rows, self.classes)
        checkpoint.save(self.state / "final.pth", self._model(rows[-1]))
        log.info("%s: finished, best running mean of Dice %.4f", self.title, max(row["dice_ema"] for row in rows))

    def _resume(self) -> None:
        latest = self.state / "latest.pth"
        if latest.exists():
            content = checkpoint.load(latest, self.device)
            self.training.network.load_state_dict(content["network"])
            self.training.optimiser.load_state_dict(content["optimiser"])
            self.training.scaler.load_state_dict(content["scaler"])
            # keys as the loop names them, the same objects: so a resume leaves no trace in the bytes of the final file
            self.training.rows = [{intern(key): value for key, value in row.items()} for row in content["rows"]]
        done = len(self.training.rows)
        start = f"continues after epoch {done}" if done else "starts"
        precision = str(self.dtype).removeprefix("torch.")
        log.info("%s: %s (%s, %s, digest %s)", self.title, start, self.device, precision, self.identity.digest)
        run = {"device": str(self.device), "precision": precision, "threads": torch.get_num_threads()}
        digest.write_json(self.state / "run.json", {**run, "torch": torch.__version__, "resumed_after_epoch": done})

    def _on_step(self, epoch: int, step: int) -> None:
        if time.monotonic() - self.last_line > STEP_LINE_EVERY_S:
            n = self.settings.iterations_per_epoch
            self._line(f"epoch {epoch + 1}/{self.settings.epochs}  step {step}/{n}")

    def _on_epoch_end(self, row: Row, seconds_per_step: float) -> None:
        """Best first, latest last: a kill in between repeats the epoch with the same result."""
        rows = self.training.rows
        if row["dice_ema"] > max((earlier["dice_ema"] for earlier in rows[:-1]), default=float("-inf")):
            checkpoint.save(self.state / "best.pth", self._model(row))
        curves.write_csv(self.state / "metrics.csv", rows)
        if time.monotonic() - self.last_drawing > DRAW_EVERY_S:
            curves.draw(self.state / "progress.png", rows, self.classes)
            self.last_drawing = time.monotonic()
        checkpoint.save(self.state / "latest.pth", self._resumable())
        self.step_seconds.append(seconds_per_step)
        self._timing(row["epoch"], seconds_per_step)
        self._line(self._describe(row, seconds_per_step))
        self.report(f"{self.title}, epoch {row['epoch']}/{self.settings.epochs} done")

    def _line(self, text: str) -> None:
        log.info("%s", text)
        self.last_line = time.monotonic()

    def _describe(self, row: Row, seconds_per_step: float) -> str:
        recent = self.step_seconds[-5:]
        steps = (self.settings.epochs - row["epoch"]) * self.settings.iterations_per_epoch
        left = timedelta(seconds=round(steps * sum(recent) / len(recent)))
        dice = " ".join(
            f"{n} {'-' if row[f'dice_{n}'] is None else format(row[f'dice_{n}'], '.3f')}" for n in self.classes
        )
        return (
            f"epoch {row['epoch']}/{self.settings.epochs}  loss {row['train_loss']:.3f}  val {row['val_loss']:.3f}  "
            f"dice {dice}  ema {row['dice_ema']:.3f}  lr {row['learning_rate']:.5f}  "
            f"{seconds_per_step:.3f} s/it  left {left}"
        )

    def _timing(self, epoch: int, seconds_per_step: float) -> None:
        """Times are no part of the result: they are kept beside it."""
        with (self.state / "timings.csv").open("a") as file:
            file.write(f"{epoch},{seconds_per_step:.4f},{time.time():.1f}\n")

    def _resumable(self) -> dict[str, Any]:
        training = self.training
        return {
            "network": training.network.state_dict(),
            "optimiser": training.optimiser.state_dict(),
            "scaler": training.scaler.state_dict(),
            "rows": training.rows,
        }

    def _model(self, row: Row) -> dict[str, Any]:
        """A checkpoint that predicts without anything beside it; no optimiser state."""
        plan = {key: self.store.plan[key] for key in ("transpose_forward", "transpose_backward", "intensities")}
        return {
            "format": digest.FORMAT_VERSION,
            "digest": self.identity.digest,
            "settings_digest": self.identity.settings,
            "configuration": self.store.configuration,
            "plan": {**plan, "configurations": {self.store.configuration: asdict(self.store.planned)}},
            "labels": self.store.cases.labels,
            "channel_names": self.store.cases.channel_names,
            "mirror_axes": self.settings.mirror_axes,
            "precision": str(self.dtype).removeprefix("torch."),
            "settings": section(self.params, "train"),
            "epoch": row["epoch"],
            "row": row,
            "network": {key: value.cpu() for key, value in self.training.network.state_dict().items()},
        }
