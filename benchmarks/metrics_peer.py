"""MONAI's and surface-distance's side of metrics_agreement.py: python metrics_peer.py PAIRS.npz TOLERANCE_MM."""

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

# surface-distance 0.1 takes functions from where older scipy and numpy had them, and sorts what Python 2 called a list
scipy.ndimage.filters = scipy.ndimage
scipy.ndimage.morphology = scipy.ndimage
np.Inf = np.inf
import surface_distance  # noqa: E402
from surface_distance import metrics as theirs  # noqa: E402


def _sorted(distances: Any, areas: Any) -> tuple[Any, Any]:
    order = np.lexsort((areas, distances))
    return distances[order], areas[order]


theirs._sort_distances_surfels = _sorted


def main() -> None:
    content, tolerance_mm = np.load(sys.argv[1]), float(sys.argv[2])
    pairs = []
    for index, edges_mm in enumerate(content["spacing_mm"]):
        masks, spacing_mm = [content[f"{index}_{side}"] for side in (0, 1)], edges_mm
        if len(masks[0]) == 1:  # a 2D image: a contour
            masks, spacing_mm = [mask[0] for mask in masks], edges_mm[1:]
        of_pair = *masks, spacing_mm, tolerance_mm
        pairs.append({"surface-distance": of_surface_distance(*of_pair), "MONAI": of_monai(*of_pair)})
    versions = {name: version(name) for name in ("monai", "surface-distance", "torch")}
    json.dump({"versions": versions, "pairs": pairs}, sys.stdout)


def of_surface_distance(predicted: Any, reference: Any, spacing_mm: Any, tolerance_mm: float) -> dict[str, float]:
    """Its two mean distances are put together by area, as the symmetric mean is defined."""
    found = surface_distance.compute_surface_distances(reference, predicted, spacing_mm)
    means = surface_distance.compute_average_surface_distance(found)
    areas = [found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()]
    return {
        "hd95_mm": float(surface_distance.compute_robust_hausdorff(found, 95)),
        "assd_mm": float(np.average(means, weights=areas)),
        "nsd": float(surface_distance.compute_surface_dice_at_tolerance(found, tolerance_mm)),
    }


def of_monai(predicted: Any, reference: Any, spacing_mm: Any, tolerance_mm: float) -> dict[str, float]:
    """Boundary voxels without weights for the distances; NSD of weighted elements (`use_subvoxels`)."""
    masks = [torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (predicted, reference)]
    spacing = [float(edge) for edge in spacing_mm]
    how = {"include_background": True, "spacing": spacing}
    return {
        "hd95_mm": float(compute_hausdorff_distance(*masks, percentile=95, **how)),
        "assd_mm": float(compute_average_surface_distance(*masks, symmetric=True, **how)),
        "nsd": float(compute_surface_dice(*masks, class_thresholds=[tolerance_mm], use_subvoxels=True, **how)),
    }


if __name__ == "__main__":
    main()
