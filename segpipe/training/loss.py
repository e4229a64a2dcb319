"""Soft Dice and cross-entropy over several resolutions (nnunetv2/training/loss)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

SMOOTH = 1e-5


def n_supervised(n_stages: int) -> int:
    """How many outputs enter the loss: one per decoder stage but the coarsest, which nnU-Net gives weight 0.

    Where the decoder has one stage only, that one counts (nnU-Net divides 0 by 0 there).
    """
    return max(n_stages - 2, 1)


def supervision_weights(n_outputs: int) -> list[float]:
    """Halved per resolution, the finest first; the sum is 1."""
    weights = [0.5**i for i in range(n_outputs)]
    return [weight / sum(weights) for weight in weights]


def downsampled(label: Tensor, shape: Sequence[int]) -> Tensor:
    """The label at a coarser resolution: the voxel at the middle of each block ("nearest-exact")."""
    for axis, n in enumerate(shape, start=1):
        step = label.shape[axis] // n
        label = label[(slice(None),) * axis + (slice(step // 2, None, step),)]
    return label


def supervised_loss(outputs: Sequence[Tensor], label: Tensor, batch_dice: bool) -> Tensor:
    """Weighted sum of `dice_and_cross_entropy` over the outputs, the finest first."""
    weights = supervision_weights(len(outputs))
    terms = [
        weight * dice_and_cross_entropy(logits, downsampled(label, logits.shape[2:]), batch_dice)
        for weight, logits in zip(weights, outputs, strict=True)
    ]
    return torch.stack(terms).sum()


def dice_and_cross_entropy(logits: Tensor, label: Tensor, batch_dice: bool) -> Tensor:
    """Cross-entropy minus the mean soft Dice of the foreground classes, in float32.

    logits : (B, classes, ...); label : (B, ...) int64
    batch_dice : one Dice per class over the whole batch instead of one per sample
    """
    log_p = log_softmax(logits.float(), 1)
    probability = log_p.exp().flatten(2)[:, 1:]
    classes = torch.arange(1, logits.shape[1], device=label.device).view(1, -1, 1)
    reference = label.flatten(1)[:, None] == classes
    axes = (0, 2) if batch_dice else (2,)
    overlap = (probability * reference).sum(axes)
    total = probability.sum(axes) + reference.sum(axes)
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH).clamp_min(1e-8)
    return nll_loss(log_p, label) - dice.mean()
