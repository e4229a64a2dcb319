"""How far probabilities may be taken at their word, and the temperature that mends it.

Expected calibration error: confidences in equal bins of [0, 1], the difference between mean confidence and accuracy
per bin, weighted by the voxels in it (Guo 2017, arXiv:1706.04599). In a medical volume almost every voxel is
background that any network is sure of, and rightly: such voxels push the error of a whole volume towards zero
whatever happens at the organ. So each number is given twice: of all annotated voxels, and of those near the predicted
or the reference foreground, on which the temperature is fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.evaluation.voxel_sample import Rows, Sample

COOLEST, HOTTEST = 0.05, 20.0  # temperatures looked at: a network that is never wrong has its best at 0
ROUNDS = 60  # of the search for one; halving alone comes to 1e-15 of the first interval, Newton's steps need five
TOLERANCE = 1e-9  # of 1 / temperature
NOTHING = float(np.finfo(np.float32).tiny)
BLOCK = 1 << 20  # probabilities that are worked on at once, per array of the work


def with_temperature(probabilities: Any, temperature: float, has_regions: bool) -> None:
    """Divide the logits behind probabilities by a temperature, in place: above 1 less sure, below 1 more.

    probabilities : (heads, n, ...) array or tensor of any floating type, on any device; worked on in blocks, in
        float32. Plain classes: p^(1/T) over its sum, which needs no logits as they are log p up to a constant.
        Regions: each the same with its complement, which is sigmoid(logit / T).
    What was 0 stays 0, the most probable class stays so, and regions stay on their side of one half; only rounding
    may bring a close second level with it, so a segmentation is made before.
    """
    if temperature == 1:
        return
    heads = torch.from_numpy(probabilities) if isinstance(probabilities, np.ndarray) else probabilities
    per_row = max(1, heads[:, :1].numel())
    for block in heads.split(max(1, BLOCK // per_row), dim=1):
        exact = block.float()
        block.copy_(_inside_at(exact, temperature) if has_regions else _classes_at(exact, temperature))


def _classes_at(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    largest = probabilities.amax(0).clamp_min(torch.finfo(torch.float32).tiny)
    powers = (probabilities / largest) ** (1 / temperature)  # of the largest 1: no underflow of all of them
    return powers / powers.sum(0).clamp_min(torch.finfo(torch.float32).tiny)


def _inside_at(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.sigmoid(torch.logit(probabilities) / temperature)


def tempered(sample: Sample, temperature: float) -> Sample:
    """The same voxels at another temperature."""
    rows = sample.probabilities.copy()
    with_temperature(rows.T, temperature, has_regions=False)  # of regions both sides are there
    return replace(sample, probabilities=rows)


def fit_temperature(sample: Sample) -> float:
    """The temperature of the lowest negative log-likelihood, between 0.05 and 20; 1 where there is no voxel.

    The likelihood is convex in 1/T: Newton's method on its derivative, kept within an interval that holds the
    minimum, always ends at the same number.
    """
    if not len(sample.reference):
        return 1.0
    low, high = 1 / HOTTEST, 1 / COOLEST
    if _slope(sample, low)[0] >= 0:
        return HOTTEST
    if _slope(sample, high)[0] <= 0:
        return COOLEST
    at = 1.0
    for _ in range(ROUNDS):
        slope, curvature = _slope(sample, at)
        low, high = (low, at) if slope > 0 else (at, high)
        step = at - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - at) < TOLERANCE:
            break
        at = following
    return float(1 / at)


def _slope(sample: Sample, sharpness: float) -> tuple[float, float]:
    """First and second derivative of the summed negative log-likelihood after 1/T, at 1/T = `sharpness`."""
    slope = curvature = 0.0
    rows = max(1, BLOCK // sample.probabilities.shape[1])
    for start in range(0, len(sample.reference), rows):
        part = slice(start, start + rows)
        logits = _logits(sample.probabilities[part])
        powers = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
        powers /= powers.sum(1, keepdims=True)
        mean = (powers * logits).sum(1)
        of_reference = np.take_along_axis(logits, sample.reference[part, None], 1)[:, 0]
        slope += float(sample.weight[part] @ (mean - of_reference))
        curvature += float(sample.weight[part] @ ((powers * logits**2).sum(1) - mean**2))
    return slope, curvature


def _logits(probabilities: Rows) -> NDArray[np.float64]:
    """Up to a constant. A 0 counts as 1e-300: nothing, at every temperature that is looked at."""
    return np.log(np.maximum(probabilities, 1e-300, dtype=np.float64))


def scores(sample: Sample, n_bins: int, names: Sequence[str], has_regions: bool) -> dict[str, Any]:
    """What a sample says of its probabilities; None for what has no voxel.

    names : the foreground classes or regions
    voxels : how many voxels the sample stands for (of regions: voxels times regions)
    ece : of the predicted class, whose probability is the confidence and which is right or wrong; of a region that
        is its side of one half
    classwise_ece : of each class or region by itself, whether it was predicted or not: its probability against how
        often it is there
    nll, brier : means over voxels of -log p and of the squared difference to the reference, summed over classes
        (for a region over inside and outside)
    reliability : bin by bin its bounds, voxels, mean confidence and accuracy of the predicted class
    """
    if not len(sample.reference):
        return dict.fromkeys(("voxels", "ece", "classwise_ece", "nll", "brier", "reliability"))
    rows, total = sample.probabilities, float(sample.weight.sum())
    of_reference = np.take_along_axis(rows, sample.reference[:, None], 1)[:, 0].astype(np.float64)
    squared = (rows.astype(np.float64) ** 2).sum(1) - 2 * of_reference + 1
    right = rows.argmax(1) == sample.reference
    bins = _Bins.of(rows.max(1), right, sample.weight, n_bins)
    return {
        "voxels": round(total),
        "ece": bins.error(),
        "classwise_ece": _classwise(sample, n_bins, names, has_regions),
        "nll": float(-sample.weight @ np.log(np.maximum(of_reference, NOTHING))) / total,
        "brier": float(sample.weight @ squared) / total,
        "reliability": bins.table(),
    }


def _classwise(sample: Sample, n_bins: int, names: Sequence[str], has_regions: bool) -> dict[str, float | None]:
    errors = {}
    for index, name in enumerate(names):
        column = 1 if has_regions else index + 1
        of_class = sample.where(sample.about[:, index])
        there = of_class.reference == column
        bins = _Bins.of(of_class.probabilities[:, column], there, of_class.weight, n_bins)
        errors[name] = bins.error()
    return errors


@dataclass(frozen=True)
class _Bins:
    """Sums per bin: of weights, of confidences, of outcomes; (n_bins,) each."""

    weight: NDArray[np.float64]
    confidence: NDArray[np.float64]
    right: NDArray[np.float64]

    @classmethod
    def of(cls, confidence: Rows, right: NDArray[np.bool_], weight: NDArray[np.float64], n_bins: int) -> "_Bins":
        """The last bin holds 1 as well."""
        index = np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)

        def summed(column: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(index, column, minlength=n_bins).astype(np.float64)

        return cls(summed(weight), summed(weight * confidence), summed(weight * right))

    def error(self) -> float | None:
        """The expected calibration error."""
        total = self.weight.sum()
        return float(np.abs(self.confidence - self.right).sum() / total) if total else None

    def table(self) -> list[dict[str, float | None]]:
        """The bins that have voxels."""
        n_bins = len(self.weight)
        return [
            {
                "lower": index / n_bins,
                "upper": (index + 1) / n_bins,
                "voxels": round(float(weight)),
                "confidence": float(self.confidence[index] / weight),
                "accuracy": float(self.right[index] / weight),
            }
            for index, weight in enumerate(self.weight)
            if weight
        ]
