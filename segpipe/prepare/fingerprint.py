"""The dataset's fingerprint: spacings, shapes after cropping, intensities of the foreground.

Rules of nnunetv2/experiment_planning/dataset_fingerprint/fingerprint_extractor.py, with one difference: nnU-Net draws
the same number of foreground voxels from each case, with replacement; here each case weighs the same, so the statistics
are those that the draw estimates. Mean, deviation and range are exact. Percentiles are exact up to KEPT_VALUES
foreground voxels; above that each case keeps evenly spaced ranks of its sorted values, which bounds the memory.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.params import Runtime
from segpipe.prepare.nonzero import bounding_box, nonzero
from segpipe.prepare.normalise import moments

log = getLogger(__name__)

KEPT_VALUES = 5_000_000  # of all cases and channels together, for the percentiles
PERCENTILES = {"percentile_00_5": 0.005, "median": 0.5, "percentile_99_5": 0.995}
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class CaseStatistics:
    """What the fingerprint needs of one case.

    channels : one entry per channel; empty where the case has no foreground
    """

    spacing_mm: tuple[float, ...]
    shape_after_crop: tuple[int, ...]
    relative_size: float
    channels: list["Intensities"]


@dataclass(frozen=True)
class Intensities:
    """The foreground of one channel of one case.

    sorted : float32; all values, or as many as are kept, each for an equal share of them
    """

    mean: float
    std: float
    min: float
    max: float
    sorted: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float32], n_kept: int, offset: float) -> "Intensities":
        """Sum up one case.

        values : (N,) float32, N > 0; sorted in place
        n_kept : values that stand for all, evenly spaced ranks
        offset : 0..1, where in its share of the ranks a kept value lies
        """
        mean, std = moments(values)
        values.sort()
        ranks = ((np.arange(n_kept) + offset) * (len(values) / n_kept)).astype(int)
        kept = values if len(values) <= n_kept else values[ranks]
        return cls(mean, std, float(values[0]), float(values[-1]), kept)


def extract(cases: Cases, out: Path, runtime: Runtime) -> None:
    """Write fingerprint.json for the training cases. As many cases as threads are in memory at a time."""
    n_kept = max(KEPT_VALUES // (len(cases.training) * len(cases.channel_names)), 1)
    # Alike cases must not all miss a percentile by the same part of a rank: their offsets are spread over 0..1.
    offsets = (np.arange(len(cases.training)) * GOLDEN_RATIO + 0.5) % 1
    with ThreadPoolExecutor(cases.at_once(runtime.threads)) as pool:
        statistics = list(pool.map(lambda case, offset: analyse(cases, case, offset, n_kept), cases.training, offsets))
    digest.write_json(out, summarise(cases, statistics))
    log.info("fingerprint of %d cases", len(statistics))


def analyse(cases: Cases, case: str, offset: float, n_kept: int) -> CaseStatistics:
    """Read one case, crop it to its nonzero region, sum up its foreground. For `offset`, `n_kept`: `Intensities.of`."""
    volume = cases.read_image(case)
    image = volume.array.astype(np.float32, copy=False)
    box = bounding_box(nonzero(image))
    shape = tuple(side.stop - side.start for side in box)
    # the ignore label, the highest value, is no foreground (nnU-Net's documentation says so, its code counts it in)
    label = cases.read_label(case)[box]
    foreground = np.flatnonzero((label > 0) & (label < cases.labels.n_values))
    inside = (channel[box].ravel()[foreground] for channel in image if len(foreground))
    channels = [Intensities.of(values, n_kept, offset) for values in inside]
    return CaseStatistics(volume.spacing_mm, shape, math.prod(shape) / math.prod(volume.shape), channels)


def summarise(cases: Cases, statistics: list[CaseStatistics]) -> dict[str, Any]:
    """The content of fingerprint.json."""
    foreground = [case.channels for case in statistics if case.channels]
    return {
        "cases": {
            case: {"spacing_mm": list(one.spacing_mm), "shape_after_crop": list(one.shape_after_crop)}
            for case, one in zip(cases.training, statistics, strict=True)
        },
        "median_relative_size_after_cropping": float(np.median([case.relative_size for case in statistics])),
        "channels": {
            str(channel): channel_statistics([case[channel] for case in foreground])
            for channel in range(len(cases.channel_names))
        },
    }


def channel_statistics(cases: list[Intensities]) -> dict[str, float]:
    """Statistics of one channel's foreground, in which each case weighs the same; all zero without any case."""
    if not cases:
        return dict.fromkeys(("mean", "std", "min", "max", *PERCENTILES), 0.0)
    mean = math.fsum(case.mean for case in cases) / len(cases)
    variance = math.fsum(case.std**2 + (case.mean - mean) ** 2 for case in cases) / len(cases)
    return {
        "mean": mean,
        "std": math.sqrt(variance),
        "min": min(case.min for case in cases),
        "max": max(case.max for case in cases),
        **_percentiles([case.sorted for case in cases]),
    }


def _percentiles(cases: list[NDArray[np.float32]]) -> dict[str, float]:
    values = np.concatenate(cases)
    weights = np.repeat([1 / len(case) for case in cases], [len(case) for case in cases])
    order = values.argsort(kind="stable")
    shares = weights[order].cumsum()
    wanted = [share * shares[-1] for share in PERCENTILES.values()]
    found = values[order[np.searchsorted(shares, wanted)]]
    return dict(zip(PERCENTILES, found.tolist(), strict=True))
