"""The dataset's fingerprint: spacings, shapes after cropping, intensities of the foreground.

Rules of nnunetv2/experiment_planning/dataset_fingerprint/fingerprint_extractor.py, with one difference: nnU-Net draws
the same number of foreground voxels from each case, with replacement; here each case weighs the same by weighting its
voxels, so the statistics are the exact values that the draw estimates.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.params import Runtime

log = getLogger(__name__)

FOREGROUND_VOXELS = 100_000_000  # kept of all cases together, at most
SUBSAMPLING_SEED = 1234

Box = tuple[slice, slice, slice]


def nonzero_mask(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where any channel differs from zero, holes filled. image : (C, Z, Y, X); returns (Z, Y, X)."""
    mask: NDArray[np.bool_] = binary_fill_holes((image != 0).any(axis=0))
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around a mask; the whole volume where the mask is empty."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, mask.shape[axis]))
    return box[0], box[1], box[2]


@dataclass(frozen=True)
class CaseStatistics:
    """What the fingerprint needs of one case.

    intensities : (C, N) float32, foreground voxels
    """

    spacing_mm: tuple[float, ...]
    shape_after_crop: tuple[int, ...]
    relative_size: float
    intensities: NDArray[np.float32]


def extract(cases: Cases, out: Path, runtime: Runtime) -> None:
    """Write fingerprint.json for the training cases."""
    n_voxels = FOREGROUND_VOXELS // len(cases.training)
    with ThreadPoolExecutor(runtime.threads or os.cpu_count()) as pool:
        statistics = list(pool.map(lambda case: analyse(cases, case, n_voxels), cases.training))
    digest.write_json(out, summarise(cases, statistics))
    log.info("fingerprint of %d cases", len(statistics))


def analyse(cases: Cases, case: str, n_voxels: int) -> CaseStatistics:
    """Read one case, crop it to its nonzero region, take up to `n_voxels` of its foreground."""
    volume = cases.read_image(case)
    image = volume.array.astype(np.float32, copy=False)
    box = bounding_box(nonzero_mask(image))
    shape = tuple(side.stop - side.start for side in box)
    foreground = image[:, *box][:, cases.read_label(case)[box] > 0]
    if foreground.shape[1] > n_voxels:
        chosen = np.random.default_rng(SUBSAMPLING_SEED).choice(foreground.shape[1], n_voxels, replace=False)
        foreground = foreground[:, chosen]
    return CaseStatistics(volume.spacing_mm, shape, float(np.prod(shape) / np.prod(volume.shape)), foreground)


def summarise(cases: Cases, statistics: list[CaseStatistics]) -> dict[str, Any]:
    """The content of fingerprint.json."""
    foreground = [case.intensities for case in statistics if case.intensities.size]
    weights = np.concatenate([np.full(case.shape[1], 1 / case.shape[1]) for case in foreground] or [np.ones(0)])
    return {
        "cases": {
            case: {"spacing_mm": list(one.spacing_mm), "shape_after_crop": list(one.shape_after_crop)}
            for case, one in zip(cases.training, statistics, strict=True)
        },
        "median_relative_size_after_cropping": float(np.median([case.relative_size for case in statistics])),
        "channels": {
            str(channel): channel_statistics(
                np.concatenate([case[channel] for case in foreground] or [np.ones(0)]), weights
            )
            for channel in range(len(cases.channel_names))
        },
    }


def channel_statistics(intensities: NDArray[np.float32], weights: NDArray[np.float64]) -> dict[str, float]:
    """Weighted statistics of one channel's foreground; all zero where no case has any foreground."""
    names = ("percentile_00_5", "median", "percentile_99_5")
    if not intensities.size:
        return dict.fromkeys(("mean", "std", "min", "max", *names), 0.0)
    mean = float(np.average(intensities, weights=weights))
    std = float(np.sqrt(np.average((intensities - mean) ** 2, weights=weights)))
    quantiles = np.quantile(intensities, [0.005, 0.5, 0.995], weights=weights, method="inverted_cdf")
    return {
        "mean": mean,
        "std": std,
        "min": float(intensities.min()),
        "max": float(intensities.max()),
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
    }
