"""One pair of masks in, numbers with units out."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.data.labels import Labels, belongs

Mask = NDArray[np.bool_]
LabelMap = NDArray[np.integer]
Numbers = dict[str, float | int | None]

OVERLAP = ("Dice", "IoU", "FP", "TP", "FN", "TN", "n_pred", "n_ref")
NOTHING: Numbers = dict.fromkeys((*OVERLAP, "hd95_mm", "volume_pred_ml", "volume_ref_ml"))


def case_metrics(
    predicted: LabelMap,
    reference: LabelMap,
    labels: Labels,
    annotated: Sequence[str] | None,
    spacing_mm: Sequence[float],
) -> dict[str, Numbers]:
    """Metrics of each class or region of one case, by its name in summary.json.

    predicted, reference : (Z, Y, X) label maps; spacing_mm : (Z, Y, X)
    annotated : the classes that a partly labelled case has annotations of; None: all
    """
    pairs = _mask_pairs(predicted, reference, labels, annotated)
    return {key: mask_metrics(*pair, spacing_mm, inside) if pair else NOTHING for key, pair, inside in pairs}


def case_overlap(
    predicted: LabelMap, reference: LabelMap, labels: Labels, annotated: Sequence[str] | None
) -> dict[str, Numbers]:
    """`case_metrics` without distances and volumes, which take longer than all else."""
    pairs = _mask_pairs(predicted, reference, labels, annotated)
    return {key: overlap(*pair, inside) if pair else dict.fromkeys(OVERLAP) for key, pair, inside in pairs}


def _mask_pairs(
    predicted: LabelMap, reference: LabelMap, labels: Labels, annotated: Sequence[str] | None
) -> Iterator[tuple[str, tuple[Mask, Mask] | None, Mask | None]]:
    """For each class its key, both masks without what nobody annotated, and where annotations are.

    None for the masks of a class that the case has no annotations of: it has no number there, not even 0.
    """
    inside = reference != labels.ignore if labels.ignore is not None else None
    for name, values in labels.foreground.items():
        pair = None
        if annotated is None or name in annotated:
            masks = [belongs(array, values) for array in (predicted, reference)]
            pair = (masks[0], masks[1]) if inside is None else (masks[0] & inside, masks[1] & inside)
        yield labels.key(name), pair, inside


def mask_metrics(predicted: Mask, reference: Mask, spacing_mm: Sequence[float], inside: Mask | None = None) -> Numbers:
    """nnU-Net's metrics of a pair of masks, and HD95 and volumes.

    inside : what counts of the volume, by default all of it; nothing of the masks lies outside
    HD95 is None where either mask is empty, volumes are None of a 2D image.
    """
    numbers, ml = overlap(predicted, reference, inside), _ml_per_voxel(spacing_mm)
    n_pred, n_ref = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    return {
        **numbers,
        "hd95_mm": hd95_mm(predicted, reference, spacing_mm) if n_pred and n_ref else None,
        "volume_pred_ml": None if ml is None else n_pred * ml,
        "volume_ref_ml": None if ml is None else n_ref * ml,
    }


def _ml_per_voxel(spacing_mm: Sequence[float]) -> float | None:
    """None for the slice of a 2D image, whose thickness means nothing."""
    is_2d = np.isclose(spacing_mm[0], SLICE_THICKNESS_2D * max(spacing_mm[1:]))
    return None if is_2d else float(np.prod(spacing_mm)) / 1000


def overlap(predicted: Mask, reference: Mask, inside: Mask | None = None) -> Numbers:
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
        "TN": (predicted.size if inside is None else int(np.count_nonzero(inside))) - any_voxel,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def hd95_mm(a: Mask, b: Mask, spacing_mm: Sequence[float]) -> float:
    """95th percentile of the distances between two surfaces, the larger of both directions, in mm.

    The surface is the mask's voxels with a face neighbour outside; the volume's border counts as outside, but for
    that of a single slice: all of it would be surface. Neither mask may be empty.
    """
    around = _around(a | b)
    faces = generate_binary_structure(a.ndim, 1)[tuple(slice(None) if n > 1 else slice(1, 2) for n in a.shape)]
    surfaces = [mask[around] & ~binary_erosion(mask[around], faces) for mask in (a, b)]
    distances = [distance_transform_edt(~surface, sampling=tuple(spacing_mm)) for surface in surfaces]
    return float(max(np.percentile(distances[1][surfaces[0]], 95), np.percentile(distances[0][surfaces[1]], 95)))


def _around(mask: Mask) -> tuple[slice, ...]:
    """The box of a mask: distances between masks never need what lies outside of it."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
