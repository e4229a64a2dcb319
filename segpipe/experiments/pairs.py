"""How much better one result is than another, over the cases that both have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluation import intervals
from segpipe.evaluation.intervals import Units
from segpipe.experiments import fair, patients
from segpipe.experiments.found import Result
from segpipe.params import Evaluate

COMPARED = ("Dice", "hd95_mm", "nsd")
FOREGROUND = "foreground"  # stands for the mean over all classes
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Of a mean over cases: a result's less the reference's; None where both have a number in no case.

    low, high : interval of it; None with fewer than two cases, or patients
    p : Wilcoxon signed-rank test, two-sided, of patients the mean of each one's cases; None where no case differs
    n : cases in which both have a number; left_out : those in which one has and the other has not
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    left_out: int


def differences(reference: Result, result: Result, metric: str, settings: Evaluate) -> dict[str, Difference]:
    """By class, and for the foreground where both have the same classes; none where they have no case in common.

    The intervals are those of the means when the common cases, or their patients, are drawn again, the same draws for
    both. A class of a case in which either has no number does not count in both.
    """
    keys = fair.common_classes(reference, result)
    cases = fair.common_cases(reference, result)
    if not cases or not keys:
        return {}
    values = [_values(one, cases, keys, metric) for one in (reference, result)]
    known = np.isfinite(values[0]) & np.isfinite(values[1])
    one_sided = np.isfinite(values[0]) ^ np.isfinite(values[1])
    of_both = [np.where(known, one, np.nan) for one in values]
    of = patients.units(cases, reference.patients, result.patients)
    drawn = [intervals.drawn_means(one[..., None], of, settings) for one in of_both]
    steps = of_both[1] - of_both[0]
    found = {
        key: _difference(steps[:, [i]], drawn[1][:, [i], 0] - drawn[0][:, [i], 0], one_sided[:, i], of, settings)
        for i, key in enumerate(keys)
    }
    if len(keys) == len(reference.keys) == len(result.keys):
        of_means = intervals.mean_of_known(drawn[1]) - intervals.mean_of_known(drawn[0])
        found[FOREGROUND] = _difference(steps, of_means, np.any(one_sided, axis=1), of, settings)
    return {key: one for key, one in found.items() if one.n or one.left_out}


def _values(result: Result, cases: Sequence[str], keys: Sequence[str], metric: str) -> Floats:
    """(cases, classes), NaN for null."""
    return np.array([[result.cases[case][key].get(metric) for key in keys] for case in cases], np.float64)


def _difference(steps: Floats, drawn: Floats, left_out: Any, of: Units, settings: Evaluate) -> Difference:
    """steps : (cases, classes) of each case; drawn : of the means of each draw; left_out : of each case, whether"""
    of_classes = [of_class[np.isfinite(of_class)].mean() for of_class in steps.T if np.isfinite(of_class).any()]
    if not of_classes:
        return Difference(None, None, None, None, 0, int(left_out.sum()))
    known = np.isfinite(steps).any(1)
    of_cases = np.array([case[np.isfinite(case)].mean() for case in steps[known]])
    of_units = _means(of_cases, of.of_case[known])
    low, high = None, None
    if len(of_units) > 1:
        percents = 50 * (1 + settings.confidence_level * np.array([-1, 1]))
        low, high = map(float, np.percentile(drawn[np.isfinite(drawn)], percents))
    return Difference(float(np.mean(of_classes)), low, high, _wilcoxon(of_units), len(of_cases), int(left_out.sum()))


def _means(of_cases: Floats, unit: NDArray[np.int64]) -> Floats:
    """Of the cases of each unit that has some."""
    counts = np.bincount(unit)
    return (np.bincount(unit, of_cases) / np.maximum(counts, 1))[counts > 0]


def _wilcoxon(steps: Floats) -> float | None:
    """Two-sided p of the signed-rank test (Wilcoxon, 1945); None where no case differs."""
    from scipy import stats  # noqa: PLC0415 - takes as long to load as all the rest

    return float(stats.wilcoxon(steps).pvalue) if np.any(steps) else None
