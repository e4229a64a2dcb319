"""One pair of masks in, numbers with units out. docs/metrics.md defines each of them."""

from collections.abc import Sequence

import numpy as np

from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.data.labels import Labels
from segpipe.evaluation import surface
from segpipe.evaluation.lesions import LESIONS, lesion_metrics
from segpipe.evaluation.overlap import OVERLAP, LabelMap, Numbers, Pair, mask_pairs, overlap
from segpipe.params import Evaluate

RATES = ("precision", "recall")
SURFACE = ("hd95_mm", "assd_mm", "nsd")
VOLUMES = ("volume_pred_ml", "volume_ref_ml", "volume_difference_ml", "volume_difference_relative")
METRICS = (*OVERLAP, *RATES, *SURFACE, *VOLUMES, *LESIONS)


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

    Raises SegpipeError where settings.nsd_tolerance_mm names other classes than there are.
    """
    tolerance_mm = settings.tolerances_mm(labels.foreground)
    return {
        labels.key(name): (
            mask_metrics(pair, spacing_mm, tolerance_mm[name], settings) if pair else dict.fromkeys(METRICS)
        )
        for name, pair in mask_pairs(predicted, reference, labels, annotated)
    }


def mask_metrics(pair: Pair, spacing_mm: Sequence[float], tolerance_mm: float, settings: Evaluate) -> Numbers:
    """All metrics of one pair of masks. What does not exist is None.

    spacing_mm : (Z, Y, X); tolerance_mm : of nsd
    """
    numbers = overlap(pair)
    tp, n_pred, n_ref = (int(numbers[name] or 0) for name in ("TP", "n_pred", "n_ref"))
    return {
        **numbers,
        "precision": tp / n_pred if n_pred else None,
        "recall": tp / n_ref if n_ref else None,
        **surface_metrics(pair, spacing_mm, tolerance_mm),
        **volumes(n_pred, n_ref, spacing_mm),
        **lesion_metrics(pair, settings),
    }


def surface_metrics(pair: Pair, spacing_mm: Sequence[float], tolerance_mm: float) -> Numbers:
    """HD95, ASSD and NSD, each over elements of the surface weighted by their area (of a contour by its length).

    hd95_mm : 95 % of each surface are at most so far from the other one; the larger of both directions
    assd_mm : mean distance of both surfaces together
    nsd : the share of both surfaces together that is at most `tolerance_mm` from the other one, surface Dice
    None where both masks are empty. Where one is, NSD is 0, and there are no distances.
    """
    empty = [not mask.any() for mask in (pair.predicted, pair.reference)]
    if any(empty):
        return {"hd95_mm": None, "assd_mm": None, "nsd": None if all(empty) else 0.0}
    between = surface.distances(pair, spacing_mm)
    return {
        "hd95_mm": between.percentile_mm(0.95),
        "assd_mm": between.mean_mm(),
        "nsd": between.share_within(tolerance_mm),
    }


def volumes(n_pred: int, n_ref: int, spacing_mm: Sequence[float]) -> Numbers:
    """Volumes in ml, None of a 2D image; their difference, positive where too much was predicted.

    volume_difference_relative : to the reference; None where that is empty
    """
    ml = _ml_per_voxel(spacing_mm)
    in_ml = (None,) * 3 if ml is None else (n_pred * ml, n_ref * ml, (n_pred - n_ref) * ml)
    return dict(zip(VOLUMES, (*in_ml, (n_pred - n_ref) / n_ref if n_ref else None), strict=True))


def _ml_per_voxel(spacing_mm: Sequence[float]) -> float | None:
    """None for the slice of a 2D image, whose thickness means nothing."""
    is_2d = np.isclose(spacing_mm[0], SLICE_THICKNESS_2D * max(spacing_mm[1:]))
    return None if is_2d else float(np.prod(spacing_mm)) / 1000
