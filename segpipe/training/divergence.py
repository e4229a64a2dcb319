"""A loss or gradient that is not finite ends the training, and leaves what is needed to see why."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segpipe.errors import problem
from segpipe.ranks import ALONE
from segpipe.training import checkpoint
from segpipe.training.failures import TrainingFailed

if TYPE_CHECKING:
    from segpipe.training.loop import Training

CHECK_EVERY = 50  # steps on a device, since each check waits for it; on the CPU every step is checked
FILE = "diverged.pth"


class Diverged(Exception):
    """A step whose loss or gradient is not finite. epoch : counted from 1; step : counted from 0; loss : as found."""

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"epoch {epoch}, step {step}: loss or gradient {loss}")
        self.epoch, self.step, self.loss = epoch, step, loss


def check(training: Training, step: int, loss: Tensor, norm: Tensor) -> Tensor:
    """The loss of a step, NaN where its gradient is not finite; called before the weights are updated.

    norm : of the gradient; under fp16 it may be infinite, the scaler then leaves the step out
    Raises Diverged, on the CPU in the step itself, on a device up to CHECK_EVERY steps later.
    """
    if not training.scaler.is_enabled():
        loss = torch.where(norm.isfinite(), loss, torch.nan)
    every = 1 if training.device.type == "cpu" else CHECK_EVERY
    ends_epoch = len(training.length.epoch_from(step)) == 1
    if (step + 1) % every == 0 or ends_epoch:
        _require_finite(training, [*training.losses, loss][-every:], step)
    return loss


def check_all(training: Training) -> None:
    """Check all steps of the epoch so far: what is not finite must not be saved to go on from.

    Raises Diverged.
    """
    if training.losses:
        _require_finite(training, training.losses, training.step - 1)


def _require_finite(training: Training, losses: list[Tensor], last_step: int) -> None:
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise Diverged(len(training.rows) + 1, last_step - len(losses) + 1 + first, float(losses[first]))


def explain(found: Diverged, training: Training, folder: Path) -> TrainingFailed:
    """Write the batches of the step and the weights into `folder` and say what happened.

    The batches are made again: they are a pure function of the step. Where steps were done after it, the weights are no
    longer those it had, and those of the last checkpoint are written instead.
    """
    k = training.settings.accumulate
    feed = replace(training.feed, ranks=ALONE)  # the samples of all ranks
    batches = [feed.training(number).on(training.device) for number in range(found.step * k, (found.step + 1) * k)]
    sources = [source for batch in batches for source in batch.sources]
    content: dict[str, Any] = {
        "epoch": found.epoch,
        "step": found.step,
        "image": torch.cat([batch.image for batch in batches]),
        "label": torch.cat([batch.label for batch in batches]),
        "sources": [{"case": case, **asdict(box)} for case, box in sources],
        "network": _weights(training.network.state_dict(), folder / "latest.pth"),
    }
    checkpoint.save_now(folder / FILE, content)
    places = "\n            ".join(
        f"{case}, voxels {list(box.start)} to {[s + n for s, n in zip(box.start, box.size, strict=True)]}"
        for case, box in sources
    )
    return TrainingFailed(
        problem(
            "the training diverged",
            where=f"epoch {found.epoch}, step {found.step}, patches\n            {places}",
            found=f"a loss or gradient of {found.loss}",
            expected="finite numbers",
            cure=f"look at the patches in {folder / FILE} (docs/training.md says how to replay them); if sound: "
            "a lower train.optimiser.learning_rate, more train.schedule.warmup_steps, or train.precision: off",
        )
    )


def _weights(now: dict[str, Tensor], latest: Path) -> dict[str, Tensor]:
    """The present weights; where they are no longer finite, those of the last checkpoint, if there is one."""
    if all(value.isfinite().all() for value in now.values()) or not latest.exists():
        return now
    before: dict[str, Tensor] = checkpoint.load(latest)["network"]
    return before
