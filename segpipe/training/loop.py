"""The training loop. `fit` is the whole of it: epoch -> training steps -> validation steps -> end of the epoch."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from segpipe.params import Train
from segpipe.ranks import Ranks
from segpipe.training import averaging, divergence, selection, target
from segpipe.training.execution import Execution, Forward
from segpipe.training.feed import Batch, Feed, ahead, arriving
from segpipe.training.loss import SegmentationLoss
from segpipe.training.network import require_shape
from segpipe.training.optimiser import set_rate
from segpipe.training.parallel import Parallel
from segpipe.training.sampling import NETWORK, generator
from segpipe.training.schedule import Length, Rate
from segpipe.training.selection import Row

Outputs = Callable[[Tensor, int], list[Tensor]]


@dataclass
class Training:
    """Everything that changes while training, and what it is made of.

    averaged : running mean of the weights, or None
    execution : how the network runs: layout, compiled or not
    forward, objective : a network's `n` finest outputs for a batch, and the loss, as they are executed
    parallel : the network where several ranks share the training, or None
    whole_cases : Dice of a network on whole validation cases, or None
    dtype : of convolutions under autocast; float32 is no autocast
    prefetch, feed_threads : batches prepared ahead, and by how many threads
    ranks : who share the training; rows and losses are those of all of them
    rows : one per finished epoch
    losses : one per step of the unfinished epoch
    """

    network: nn.Module
    averaged: nn.Module | None
    execution: Execution
    forward: Forward
    parallel: Parallel | None
    objective: Callable[..., Tensor]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    feed: Feed
    loss: SegmentationLoss
    n_outputs: int
    length: Length
    rate: Rate
    whole_cases: Callable[[nn.Module], Row] | None
    settings: Train
    device: torch.device
    dtype: torch.dtype
    prefetch: int
    feed_threads: int
    ranks: Ranks
    rows: list[Row]
    losses: list[Tensor]

    @property
    def evaluated_step(self) -> int:
        """How many steps were done when the last epoch ended."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.evaluated_step + len(self.losses)

    @property
    def epochs(self) -> int:
        """How many epochs there will be."""
        return len(self.rows) + self.length.epochs_after(self.evaluated_step)

    def is_over(self) -> bool:
        """Whether the last step is done and evaluated, or the training stops early."""
        done = self.evaluated_step == self.length.total_steps
        return done or selection.stopped(self.rows, self.settings.early_stopping) is not None


def fit(training: Training, between: Callable[[], None], on_epoch_end: Callable[[Row, float], None]) -> None:
    """Train from the first step that is not done to the last.

    between : called before each training step and each validation batch; may raise to stop there
    on_epoch_end : called with the epoch's row (already in `training.rows`) and its seconds per training step
    """
    batches = training_batches(training)
    while not training.is_over():
        start, before = time.monotonic(), len(training.losses)
        for step in _rest_of_epoch(training):
            between()
            set_rate(training.optimiser, training.rate(step))
            loss = train_step(training, step, [next(batches) for _ in range(training.settings.accumulate)])
            if training.averaged is not None:
                averaging.update(training.averaged, training.network, averaging.decay_at(step, training.settings.ema))
            training.losses.append(loss)
        train_loss = float(torch.stack(training.losses).mean())  # waits for the device
        seconds_per_step = (time.monotonic() - start) / max(len(training.losses) - before, 1)
        row = {
            "epoch": len(training.rows) + 1,
            "step": training.step,
            "learning_rate": training.rate(training.step - 1),
        }
        row |= {"train_loss": train_loss, **evaluate(training, between), **_on_whole_cases(training)}
        row = selection.with_running_means(row, training.rows, training.settings.best)
        training.rows.append(training.ranks.same(row))
        training.losses = []
        on_epoch_end(training.rows[-1], seconds_per_step)


def training_batches(training: Training) -> Iterator[Batch]:
    """The batches of the steps that are not done."""
    k = training.settings.accumulate
    numbers = range(training.step * k, training.length.total_steps * k)
    return _arriving(training, training.feed.training, numbers)


def _arriving(training: Training, batch_of: Callable[[int], Batch], numbers: Sequence[int]) -> Iterator[Batch]:
    """Batches that are prepared ahead, on the training's device."""
    batches = ahead(batch_of, numbers, training.prefetch, training.feed_threads)
    return arriving(batches, training.device, training.prefetch)


def _rest_of_epoch(training: Training) -> range:
    """The steps of the epoch that are not done; none where it was interrupted between its steps and its end."""
    return training.length.epoch_from(training.evaluated_step)[len(training.losses) :]


def train_step(training: Training, step: int, batches: Sequence[Batch]) -> Tensor:
    """One update of the weights from the mean loss over `batches`; returns it without waiting for the device.

    Raises Diverged where the loss or a gradient is not finite.
    """
    training.execution.begin_step()
    if not training.network.training:  # telling a hundred modules takes half a millisecond
        training.network.train()
    training.optimiser.zero_grad(set_to_none=True)
    losses = []
    for part, (batch, elsewhere) in enumerate(zip(batches, _sums_elsewhere(training, step, batches), strict=True)):
        _seed(training, step, part)
        with _exchanging(training, now=part == len(batches) - 1):
            loss = _training_loss(training, batch, elsewhere)
            training.scaler.scale(loss / len(batches)).backward()
        losses.append(loss.detach())
    training.scaler.unscale_(training.optimiser)
    norm = clip_grad_norm_(training.network.parameters(), training.settings.optimiser.clip_norm or math.inf)
    mean = training.ranks.total(torch.stack(losses).mean()) / training.ranks.n
    mean = divergence.check(training, step, mean, norm)
    training.scaler.step(training.optimiser)
    training.scaler.update()
    return mean


def _training_loss(training: Training, batch: Batch, elsewhere: list[Tensor] | None) -> Tensor:
    """The loss of this rank's share of a batch, such that the mean over the ranks is the loss of the batch."""
    ranks, outputs = training.ranks, _outputs(training, _of_all_ranks(training), batch)
    if ranks.n > 1 and elsewhere is None and training.loss.joint:
        own = torch.stack(training.loss.sums(outputs, batch.label, batch.known))
        elsewhere = list((ranks.total(own) - own).unbind())
    loss = training.objective(outputs, batch.label, elsewhere, batch.known)
    weight = len(batch.image) * ranks.n / training.feed.store.planned.batch_size
    return loss if weight == 1 else loss * weight


@torch.no_grad()
def _sums_elsewhere(training: Training, step: int, batches: Sequence[Batch]) -> list[list[Tensor] | None]:
    """For each batch the region sums of the others, where the Dice is one of all samples of a step together.

    It costs a forward pass per batch; without it four batches of two would not learn what one of eight learns.
    """
    if len(batches) == 1 or not training.loss.joint:
        return [None] * len(batches)
    sums = []
    buffers = [buffer.clone() for buffer in training.network.buffers()]
    for part, batch in enumerate(batches):
        _seed(training, step, part)
        outputs = _outputs(training, _alone(training, training.network), batch)
        sums.append(training.loss.sums(outputs, batch.label, batch.known))
    for buffer, before in zip(training.network.buffers(), buffers, strict=True):
        buffer.copy_(before)  # running statistics count each batch once
    total = [training.ranks.total(torch.stack(level).sum(0)) for level in zip(*sums, strict=True)]
    return [[all_ - own for all_, own in zip(total, one, strict=True)] for one in sums]


def _seed(training: Training, step: int, part: int) -> None:
    """Make what a network draws itself (dropout) a function of seed, step and rank, as its batches are.

    The plan's networks and the losses here draw nothing, and seeding takes a tenth of a millisecond.
    """
    if not training.settings.import_paths():
        return
    number = part * training.ranks.n + training.ranks.rank
    torch.manual_seed(int(generator(training.settings.seed, NETWORK, step, number).integers(2**63)))


@torch.no_grad()
def evaluate(training: Training, between: Callable[[], None]) -> Row:
    """Loss and Dice per class on the fixed validation patches, of the weights and, prefixed, of their running mean."""
    row = _evaluate(training, training.network, between)
    if training.averaged is not None:
        row |= {f"averaged_{key}": value for key, value in _evaluate(training, training.averaged, between).items()}
    return row


def _evaluate(training: Training, network: nn.Module, between: Callable[[], None]) -> Row:
    """The Dice counts the voxels of all patches together. The ranks take the batches in turns."""
    network.eval()
    losses, counts = [], []
    numbers, ranks = range(training.settings.val_iterations_per_epoch), training.ranks
    batches = _arriving(training, training.feed.validation, ranks.own(numbers))
    for number in ranks.turns(numbers):
        between()
        if number is not None:
            loss, logits, batch = _validation_loss(training, network, next(batches))
            losses.append(loss)
            counts.append(target.overlaps(logits, batch.label, training.feed.store.cases.labels, batch.known))
    return _evaluated(training, ranks.collected(_plain(losses)), ranks.collected(_plain(counts)))


def _plain(tensors: list[Tensor]) -> list[Any]:
    return torch.stack(tensors).tolist() if tensors else []


def _validation_loss(training: Training, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Batch]:
    """The loss of a batch, the logits at full resolution, the batch."""
    training.execution.begin_step()
    outputs = _outputs(training, _alone(training, network), batch)
    return training.objective(outputs, batch.label, None, batch.known), outputs[0], batch


def _evaluated(training: Training, losses: list[float], counts: list[list[list[int]]]) -> Row:
    """losses, counts : of all batches in their order"""
    overlap, total = torch.tensor(counts).sum(0).tolist()
    dice = [2 * o / t if t else None for o, t in zip(overlap, total, strict=True)]
    known = [value for value in dice if value is not None]
    names = training.feed.store.cases.labels.foreground
    return {
        "val_loss": _finite(float(torch.tensor(losses).mean())),
        "dice_mean": sum(known) / len(known) if known else None,
        **{f"dice_{name}": value for name, value in zip(names, dice, strict=True)},
    }


def _finite(loss: float) -> float | None:
    """A loss that is not finite is no number to compare epochs by; one patch may have overflowed under fp16."""
    return loss if math.isfinite(loss) else None


def _on_whole_cases(training: Training) -> Row:
    """Dice on whole validation cases in the epochs that have it, nothing in the others."""
    settings, names = training.settings, training.feed.store.cases.labels.foreground
    if settings.full_validation.every is None:
        return {}
    if (len(training.rows) + 1) % settings.full_validation.every:
        return dict.fromkeys(["case_dice_mean", *(f"case_dice_{name}" for name in names)])
    network = training.averaged if settings.full_validation.weights == "averaged" else training.network
    assert training.whole_cases is not None
    assert network is not None
    return training.whole_cases(network)


def _exchanging(training: Training, now: bool) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if training.parallel is None else training.parallel.exchanging(now)


def _of_all_ranks(training: Training) -> Outputs:
    """The network, with gradients of all ranks."""
    return training.parallel or _alone(training, training.network)


def _alone(training: Training, network: nn.Module) -> Outputs:
    """A network as it is executed in this rank by itself."""
    return lambda x, n_outputs: training.forward(network, x, n_outputs)


def _outputs(training: Training, network: Outputs, batch: Batch) -> list[Tensor]:
    """The outputs that enter the loss, the finest first."""
    with torch.autocast(training.device.type, training.dtype, enabled=training.dtype != torch.float32):
        outputs = network(training.execution.laid_out(batch.image), training.n_outputs)
    require_shape(outputs[0], batch.label, len(training.feed.store.cases.labels.heads))
    return outputs
