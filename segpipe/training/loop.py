"""The training loop. `fit` is the whole of it: epoch -> training steps -> validation steps -> end of the epoch."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from segpipe.errors import SegpipeError
from segpipe.params import Train
from segpipe.training.feed import Batch, Feed, ahead
from segpipe.training.loss import n_supervised, supervised_loss
from segpipe.training.network import PlainConvUNet
from segpipe.training.schedule import rate

Row = dict[str, Any]


@dataclass
class Training:
    """Everything that changes while training, and what it is made of.

    dtype : of convolutions under autocast; float32 is no autocast
    rows : one per finished epoch; the next epoch is `len(rows)`
    """

    network: PlainConvUNet
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    feed: Feed
    settings: Train
    device: torch.device
    dtype: torch.dtype
    prefetch: int
    rows: list[Row]


def fit(training: Training, on_step: Callable[[int, int], None], on_epoch_end: Callable[[Row, float], None]) -> None:
    """Train from the first unfinished epoch to the last.

    on_step : called with epoch and step of the epoch, before each training step
    on_epoch_end : called with the epoch's row (already in `training.rows`) and its seconds per training step
    """
    settings = training.settings
    first, n = len(training.rows), settings.iterations_per_epoch
    batches = ahead(training.feed.training, range(first * n, settings.epochs * n), training.prefetch)
    for epoch in range(first, settings.epochs):
        for group in training.optimiser.param_groups:
            group["lr"] = rate(settings, epoch)
        start = time.monotonic()
        losses = []
        for step, batch in enumerate(islice(batches, n)):
            on_step(epoch, step)
            losses.append(train_step(training, batch))
        seconds_per_step = (time.monotonic() - start) / n
        row = {"epoch": epoch + 1, "learning_rate": rate(settings, epoch), "train_loss": _mean(losses)}
        row |= evaluate(training)
        if not math.isfinite(row["train_loss"]):
            raise SegpipeError(
                f"the training loss is {row['train_loss']} in epoch {epoch + 1}; lower train.learning_rate"
            )
        row["dice_ema"] = _running_mean(settings, training.rows, row["dice_mean"])
        training.rows.append(row)
        on_epoch_end(row, seconds_per_step)


def train_step(training: Training, batch: Batch) -> torch.Tensor:
    """One step of the optimiser; returns the loss without waiting for the device."""
    training.network.train()
    loss, _ = _loss(training, batch)
    training.optimiser.zero_grad(set_to_none=True)
    training.scaler.scale(loss).backward()
    training.scaler.unscale_(training.optimiser)
    clip_grad_norm_(training.network.parameters(), training.settings.gradient_clip_norm)
    training.scaler.step(training.optimiser)
    training.scaler.update()
    return loss.detach()


@torch.no_grad()
def evaluate(training: Training) -> Row:
    """Loss and Dice per class on the fixed validation patches; the Dice counts all patches' voxels together."""
    training.network.eval()
    losses, counts = [], []
    steps = range(training.settings.val_iterations_per_epoch)
    for batch in ahead(training.feed.validation, steps, training.prefetch):
        loss, logits = _loss(training, batch)
        losses.append(loss)
        counts.append(_overlaps(logits.argmax(1), batch.label.to(training.device), logits.shape[1]))
    overlap, total = torch.stack(counts).sum(0).tolist()
    dice = [2 * o / t if t else None for o, t in zip(overlap, total, strict=True)]
    known = [value for value in dice if value is not None]
    names = [name for name, value in training.feed.store.cases.labels.items() if value]
    return {
        "val_loss": _mean(losses),
        "dice_mean": sum(known) / len(known) if known else 0.0,
        **{f"dice_{name}": value for name, value in zip(names, dice, strict=True)},
    }


def _loss(training: Training, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a batch and the logits at full resolution."""
    image = batch.image.to(training.device, non_blocking=True)
    label = batch.label.to(training.device, non_blocking=True)
    plan = training.feed.store.planned
    with torch.autocast(training.device.type, training.dtype, enabled=training.dtype != torch.float32):
        outputs = training.network.supervised(image, n_supervised(len(plan.strides)))
    return supervised_loss(outputs, label, plan.batch_dice), outputs[0]


def _overlaps(predicted: torch.Tensor, label: torch.Tensor, n_classes: int) -> torch.Tensor:
    """(2, foreground classes): voxels in both, and in one plus in the other."""
    both = torch.bincount(label[predicted == label], minlength=n_classes)
    either = torch.bincount(predicted.flatten(), minlength=n_classes) + torch.bincount(
        label.flatten(), minlength=n_classes
    )
    return torch.stack([both[1:], either[1:]])


def _running_mean(settings: Train, rows: list[Row], dice: float) -> float:
    return settings.best_ema * rows[-1]["dice_ema"] + (1 - settings.best_ema) * dice if rows else dice


def _mean(losses: Iterable[torch.Tensor]) -> float:
    return float(torch.stack(list(losses)).mean())
