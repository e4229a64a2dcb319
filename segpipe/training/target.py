"""What a label map says of each output of a network: class by class, where it says anything, and how well it is met."""

from dataclasses import dataclass

import torch
from torch import Tensor

from segpipe.data.labels import Labels


@dataclass(frozen=True)
class Target:
    """The aim of one batch at one resolution.

    reference : (B, heads, voxels) float32, 0 or 1; of plain classes the first is the background
    inside : (B, voxels) float32, 1 where the case is annotated; None where all of it is
    known : (B, heads) float32, 1 for the classes that a sample's case has annotations of; None where it has of all
    """

    reference: Tensor
    inside: Tensor | None
    known: Tensor | None


def of(label: Tensor, labels: Labels, known: Tensor | None) -> Target:
    """The target of a label map (B, ...) of integers. known : (B, heads) bool"""
    flat = label.flatten(1)
    inside = None if labels.ignore is None else (flat != labels.ignore).float()
    return Target(_reference(flat, labels), inside, None if known is None else known.float())


def _reference(flat: Tensor, labels: Labels) -> Tensor:
    if not labels.has_regions:
        return (flat[:, None] == torch.arange(len(labels.heads), device=flat.device).view(1, -1, 1)).float()
    regions = [torch.stack([flat == value for value in values]).any(0) for values in labels.heads.values()]
    return torch.stack(regions, 1).float()


def overlaps(logits: Tensor, label: Tensor, labels: Labels, known: Tensor | None) -> Tensor:
    """(2, foreground classes) int64: voxels in both prediction and label, and in one plus in the other.

    Voxels and classes that nobody annotated do not count. logits : (B, heads, ...); label : (B, ...)
    """
    aim, scores = of(label, labels, known), logits.flatten(2)
    if labels.has_regions:
        predicted = scores > 0
        reference = aim.reference > 0
    else:
        classes = torch.arange(1, len(labels.heads), device=label.device).view(1, -1, 1)
        predicted = scores.argmax(1, keepdim=True) == classes
        reference = aim.reference[:, 1:] > 0
    if aim.inside is not None:
        predicted = predicted & (aim.inside[:, None] > 0)
    if known is not None:
        counted = known[:, -predicted.shape[1] :, None]
        predicted, reference = predicted & counted, reference & counted
    both = (predicted & reference).sum((0, 2))
    return torch.stack([both, predicted.sum((0, 2)) + reference.sum((0, 2))])
