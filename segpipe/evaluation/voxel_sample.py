"""A sample of the voxels of many cases: what was predicted of them and what they are, in memory that stays the same.

Voxels are drawn per case, half of them near foreground, with weights that make up for it. Regions (sigmoid) become
two-class distributions, one per region and voxel, so that whoever looks at a sample knows one kind of row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from segpipe.data.labels import Labels, belongs

Rows = NDArray[np.floating]


@dataclass(frozen=True)
class Sample:
    """Voxels with what was predicted of them and what they are, one row each; of regions one row per region.

    probabilities : (n, classes) float32, of regions (n, 2): outside and inside
    reference : (n,) int64, the class
    weight : (n,) float64, how many voxels each row stands for
    near : (n,) bool, whether it lies near foreground
    about : (n, foreground classes or regions) bool, of which of them the row says something
    """

    probabilities: Rows
    reference: NDArray[np.int64]
    weight: NDArray[np.float64]
    near: NDArray[np.bool_]
    about: NDArray[np.bool_]

    def where(self, mask: NDArray[np.bool_]) -> "Sample":
        """Some of the rows."""
        rest = self.weight[mask], self.near[mask], self.about[mask]
        return Sample(self.probabilities[mask], self.reference[mask], *rest)


def joined(samples: Sequence[Sample]) -> Sample:
    """Several samples as one."""
    return Sample(
        np.concatenate([sample.probabilities for sample in samples]),
        np.concatenate([sample.reference for sample in samples]),
        np.concatenate([sample.weight for sample in samples]),
        np.concatenate([sample.near for sample in samples]),
        np.concatenate([sample.about for sample in samples]),
    )


def near(foreground: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float) -> NDArray[np.bool_]:
    """Voxels with foreground in the box of `margin_mm` to all sides, both (Z, Y, X).

    A slice thicker than the margin has no neighbours.
    """
    grown: NDArray[np.uint8] = foreground.astype(np.uint8)
    for axis, of_axis in enumerate(spacing_mm):
        grown = maximum_filter1d(grown, 2 * int(margin_mm / of_axis) + 1, axis=axis, mode="constant")
    return grown.astype(bool)


def draw(
    inside: NDArray[np.bool_], close: NDArray[np.bool_], n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Flat indices of up to `n` voxels inside, half of them near foreground, and how many voxels each stands for.

    Within each half every voxel is as likely as the other, and their weights add up to the voxels there are: sums over
    the sample are unbiased estimates of sums over the volume.
    """
    chosen, weights = [], []
    for half in (inside & close, inside & ~close):
        there = np.count_nonzero(half, axis=tuple(range(1, half.ndim)))
        n_there, n_drawn = int(there.sum()), min(int(there.sum()), n // 2)
        chosen.append(_positions(half, there, np.sort(rng.choice(n_there, n_drawn, replace=False))))
        weights.append(np.full(n_drawn, n_there / max(n_drawn, 1)))
    return np.concatenate(chosen), np.concatenate(weights)


def _positions(mask: NDArray[np.bool_], there: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat indices of the k-th voxels of a mask, for sorted k; `there` counts them by plane. Never all in memory."""
    found = np.empty(len(ranks), np.int64)
    ends = np.cumsum(there)
    planes = np.searchsorted(ends, ranks, side="right")
    for plane in np.unique(planes):
        of_plane = planes == plane
        inner = np.flatnonzero(mask[plane])[ranks[of_plane] - (ends - there)[plane]]
        found[of_plane] = inner + int(plane) * mask[plane].size
    return found


def of_voxels(
    probabilities: Rows,
    values: NDArray[np.integer],
    weight: NDArray[np.float64],
    close: NDArray[np.bool_],
    labels: Labels,
    annotated: Sequence[str] | None,
) -> Sample:
    """The rows of some voxels of one case.

    probabilities : (heads, n); values : (n,) of the label map, none of them ignored; weight, close : (n,)
    annotated : the classes that a partly labelled case has annotations of; None: all. The other regions have no rows.
        Of plain classes the background takes the others in, as in the loss of the training.

    The reference class is never quite impossible: a 0 of a file is what its precision has left of some probability.
    All other zeros stay: anything above them would be a probability that nobody predicted, and change temperatures
    more than the rounding does (docs/calibration.md).
    """
    if labels.has_regions:
        return _of_regions(probabilities, values, weight, close, labels, annotated)
    rows = probabilities.T.astype(np.float32, order="C")
    reference = values.astype(np.int64)
    about = np.ones((len(rows), len(labels.foreground)), bool)
    for index, name in enumerate(labels.foreground):
        if annotated is not None and name not in annotated:
            rows[:, 0] += rows[:, index + 1]
            rows[:, index + 1] = 0
            reference[reference == index + 1] = 0
            about[:, index] = False
    _make_possible(rows, reference, np.full(len(probabilities), _smallest(probabilities)))
    return Sample(rows, reference, weight, close, about)


def _of_regions(
    probabilities: Rows,
    values: NDArray[np.integer],
    weight: NDArray[np.float64],
    close: NDArray[np.bool_],
    labels: Labels,
    annotated: Sequence[str] | None,
) -> Sample:
    below_one = np.finfo(probabilities.dtype).epsneg / 2  # 1 - p of what is rounded to 1
    regions = []
    for index, (name, of_region) in enumerate(labels.heads.items()):
        counted = slice(None if annotated is None or name in annotated else 0)
        inside, reference = probabilities[index, counted].astype(np.float32), belongs(values[counted], of_region)
        rows = np.stack([1 - inside, inside], 1)
        _make_possible(rows, reference.astype(np.int64), np.array([below_one, _smallest(probabilities)]))
        about = np.zeros((len(rows), len(labels.heads)), bool)
        about[:, index] = True
        regions.append(Sample(rows, reference.astype(np.int64), weight[counted], close[counted], about))
    return joined(regions)


def _smallest(probabilities: Rows) -> float:
    """What lies next to 0 in the precision of a file, and is no rounding error in float32."""
    return max(float(np.finfo(probabilities.dtype).smallest_subnormal), float(np.finfo(np.float32).tiny))


def _make_possible(rows: Rows, reference: NDArray[np.int64], smallest: NDArray[np.float64]) -> None:
    """Give the reference class of each row at least the smallest probability of its column, in place."""
    at = reference[:, None]
    np.put_along_axis(rows, at, np.maximum(np.take_along_axis(rows, at, 1), smallest[at]), 1)
