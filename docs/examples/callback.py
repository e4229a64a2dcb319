"""What the weights do while the training runs: growth without end, a part that stands still."""

from logging import getLogger
from typing import Any

from torch.nn.utils import get_total_norm

from segpipe.training.loop import Training

log = getLogger(__name__)


def weight_norms(training: Training, row: dict[str, Any]) -> None:
    """Write the length of the weights of each part of the network to train.log."""
    norms = {name: get_total_norm(part.parameters()) for name, part in training.network.named_children()}
    log.info("epoch %d: weights of %s", row["epoch"], ", ".join(f"{name} {norm:.4f}" for name, norm in norms.items()))
