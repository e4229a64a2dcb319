"""Which voxels two masks have in common: nnU-Net's metrics, class by class, and the masks that they are counted on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from segpipe.data.labels import Labels, belongs

Mask = NDArray[np.bool_]
LabelMap = NDArray[np.integer]
Numbers = dict[str, float | int | None]
Box = tuple[slice, ...]

OVERLAP = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")


@dataclass(frozen=True)
class Pair:
    """The masks of one class in one case.

    predicted, reference : in a box around both, without what nobody annotated; nothing lies outside of the box
    shape : of the whole volume, (Z, Y, X)
    n_voxels : of the volume that are annotated
    """

    predicted: Mask
    reference: Mask
    shape: tuple[int, ...]
    n_voxels: int

    @classmethod
    def of(cls, predicted: Mask, reference: Mask) -> "Pair":
        """Two masks of a whole volume, all of it annotated."""
        box = _around(find_objects((predicted | reference).view(np.int8)), predicted.ndim)
        return cls(predicted[box], reference[box], predicted.shape, predicted.size)


def case_overlap(
    predicted: LabelMap, reference: LabelMap, labels: Labels, annotated: Sequence[str] | None
) -> dict[str, Numbers]:
    """nnU-Net's metrics of each class or region, as `metrics.case_metrics` has them beside others that take longer."""
    pairs = mask_pairs(predicted, reference, labels, annotated)
    return {labels.key(name): overlap(pair) if pair else dict.fromkeys(OVERLAP) for name, pair in pairs}


def mask_pairs(
    predicted: LabelMap, reference: LabelMap, labels: Labels, annotated: Sequence[str] | None
) -> Iterator[tuple[str, Pair | None]]:
    """Each class or region by name, with its masks.

    predicted, reference : (Z, Y, X) label maps in the training's values
    annotated : the classes that a partly labelled case has annotations of; None: all
    The pair is None for a class that the case has no annotations of: it has no number there, not even 0.
    """
    n_ignored = 0 if labels.ignore is None else int(np.count_nonzero(reference == labels.ignore))
    # by value, from 1: where its voxels lie in either map
    objects = [*zip(*(find_objects(array, labels.n_values - 1) for array in (predicted, reference)), strict=True)]
    for name, values in labels.foreground.items():
        if annotated is not None and name not in annotated:
            yield name, None
            continue
        box = _around([part for value in values for part in objects[value - 1]], predicted.ndim)
        masks = [belongs(array[box], values) for array in (predicted, reference)]
        if n_ignored:
            inside = reference[box] != labels.ignore
            masks = [mask & inside for mask in masks]
        yield name, Pair(masks[0], masks[1], predicted.shape, predicted.size - n_ignored)


def overlap(pair: Pair) -> Numbers:
    """Dice and IoU, None where both masks are empty, and the counts behind them
    (nnunetv2/evaluation/evaluate_predictions.py).
    """
    tp = int(np.count_nonzero(pair.predicted & pair.reference))
    n_pred, n_ref = int(np.count_nonzero(pair.predicted)), int(np.count_nonzero(pair.reference))
    fp, fn = n_pred - tp, n_ref - tp
    any_voxel = tp + fp + fn
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if any_voxel else None,
        "IoU": tp / any_voxel if any_voxel else None,
        "FP": fp,
        "TP": tp,
        "FN": fn,
        "TN": pair.n_voxels - any_voxel,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def _around(boxes: Sequence[Box | None], ndim: int) -> Box:
    """The box around all of these; nothing at all where there is none."""
    parts = [box for box in boxes if box is not None]
    if not parts:
        return (slice(0, 0),) * ndim
    axes = zip(*parts, strict=True)
    return tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes)
