"""One pair of masks in, numbers with units out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]
Numbers = dict[str, float | int | None]


def case_metrics(
    predicted: NDArray[np.integer], reference: NDArray[np.integer], values: Sequence[int], spacing_mm: Sequence[float]
) -> dict[str, Numbers]:
    """Metrics of each class (by its value, as text) of one case.

    predicted, reference : (Z, Y, X) label maps; spacing_mm : (Z, Y, X)
    """
    return {str(value): mask_metrics(predicted == value, reference == value, spacing_mm) for value in values}


def case_overlap(
    predicted: NDArray[np.integer], reference: NDArray[np.integer], values: Sequence[int]
) -> dict[str, Numbers]:
    """`case_metrics` without distances and volumes, which take longer than all else."""
    return {str(value): overlap(predicted == value, reference == value) for value in values}


def mask_metrics(predicted: Mask, reference: Mask, spacing_mm: Sequence[float]) -> Numbers:
    """nnU-Net's metrics of a pair of masks, and HD95 and volumes.

    HD95 is None where either mask is empty.
    """
    numbers, ml = overlap(predicted, reference), float(np.prod(spacing_mm)) / 1000
    n_pred, n_ref = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    return {
        **numbers,
        "hd95_mm": hd95_mm(predicted, reference, spacing_mm) if n_pred and n_ref else None,
        "volume_pred_ml": n_pred * ml,
        "volume_ref_ml": n_ref * ml,
    }


def overlap(predicted: Mask, reference: Mask) -> Numbers:
    """nnU-Net's metrics of a pair of masks: Dice and IoU, None where both are empty, and the counts behind them
    (nnunetv2/evaluation/evaluate_predictions.py).
    """
    tp = int(np.count_nonzero(predicted & reference))
    n_pred, n_ref = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    fp, fn = n_pred - tp, n_ref - tp
    any_voxel = tp + fp + fn
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if any_voxel else None,
        "IoU": tp / any_voxel if any_voxel else None,
        "FP": fp,
        "TP": tp,
        "FN": fn,
        "TN": predicted.size - any_voxel,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def hd95_mm(a: Mask, b: Mask, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the distances between two surfaces, the larger of both directions, in mm.

    The surface is the mask's voxels with a face neighbour outside; the volume's border counts as outside. Neither
    mask may be empty.
    """
    around = _around(a | b)
    surfaces = [mask[around] & ~binary_erosion(mask[around]) for mask in (a, b)]
    distances = [distance_transform_edt(~surface, sampling=tuple(spacing_mm)) for surface in surfaces]
    return float(max(np.percentile(distances[1][surfaces[0]], 95), np.percentile(distances[0][surfaces[1]], 95)))


def _around(mask: Mask) -> tuple[slice, ...]:
    """The box of a mask: distances between masks never need what lies outside of it."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
