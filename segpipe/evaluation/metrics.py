"""One pair of masks in, numbers with units out."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.data.labels import Labels
from segpipe.evaluation.overlap import OVERLAP, LabelMap, Mask, Numbers, Pair, mask_pairs, overlap
from segpipe.params import Evaluate

METRICS = (*OVERLAP, "hd95_mm", "volume_pred_ml", "volume_ref_ml")


def case_metrics(
    predicted: LabelMap,
    reference: LabelMap,
    labels: Labels,
    annotated: Sequence[str] | None,
    spacing_mm: Sequence[float],
    settings: Evaluate,
) -> dict[str, Numbers]:
    """Metrics of each class or region of one case, by its name in summary.json.

    predicted, reference : (Z, Y, X) label maps in the training's values; spacing_mm : (Z, Y, X)
    annotated : the classes that a partly labelled case has annotations of; None: all. Others have None throughout.
    """
    pairs = mask_pairs(predicted, reference, labels, annotated)
    return {
        labels.key(name): mask_metrics(pair, spacing_mm) if pair else dict.fromkeys(METRICS) for name, pair in pairs
    }


def mask_metrics(pair: Pair, spacing_mm: Sequence[float]) -> Numbers:
    """nnU-Net's metrics of a pair of masks, and HD95 and volumes.

    HD95 is None where either mask is empty, volumes are None of a 2D image.
    """
    numbers, ml = overlap(pair), _ml_per_voxel(spacing_mm)
    n_pred, n_ref = int(np.count_nonzero(pair.predicted)), int(np.count_nonzero(pair.reference))
    return {
        **numbers,
        "hd95_mm": hd95_mm(pair.predicted, pair.reference, spacing_mm) if n_pred and n_ref else None,
        "volume_pred_ml": None if ml is None else n_pred * ml,
        "volume_ref_ml": None if ml is None else n_ref * ml,
    }


def _ml_per_voxel(spacing_mm: Sequence[float]) -> float | None:
    """None for the slice of a 2D image, whose thickness means nothing."""
    is_2d = np.isclose(spacing_mm[0], SLICE_THICKNESS_2D * max(spacing_mm[1:]))
    return None if is_2d else float(np.prod(spacing_mm)) / 1000


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
