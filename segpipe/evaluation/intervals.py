"""How sure a mean over cases is: confidence intervals by drawing the cases again (bootstrap)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluation.summary import CaseRow
from segpipe.params import Evaluate

VOXELS = ("FP", "TP", "FN", "TN", "n_pred", "n_ref")  # counts, which nobody compares between cases
Floats = NDArray[np.float64]


def confidence(rows: Sequence[CaseRow], settings: Evaluate) -> dict[str, Any]:
    """Intervals of what `summary.tables` has as means: `foreground_mean` and `mean`, by metric `low` and `high`.

    All cases of a draw are drawn together for all classes and metrics, as often as there are cases, each with the same
    probability; a mean leaves out what is null, as in the tables. The interval lies between percentiles of the means
    (Efron, 1979). It is null where fewer than two cases have a number.
    """
    classes = list(rows[0]["metrics"])
    names = [name for name in rows[0]["metrics"][classes[0]] if name not in VOXELS]
    values = np.array(
        [[[row["metrics"][label][name] for name in names] for label in classes] for row in rows], np.float64
    )
    means = drawn_means(values, settings)
    known = np.isfinite(values).sum(0)
    percents = 50 * (1 + settings.confidence_level * np.array([-1, 1]))
    in_any_class = np.isfinite(values).any(1).sum(0)
    return {
        "level": settings.confidence_level,
        "method": "percentile bootstrap over cases",
        "resamples": settings.bootstrap_resamples,
        "seed": settings.bootstrap_seed,
        "foreground_mean": _between(mean_of_known(means), in_any_class, names, percents),
        "mean": {label: _between(means[:, i], known[i], names, percents) for i, label in enumerate(classes)},
    }


def drawn_means(values: Floats, settings: Evaluate) -> Floats:
    """Mean over the cases of each draw, (draws, classes, metrics), of (cases, classes, metrics) with NaN for null."""
    n_cases = len(values)
    draws = np.random.default_rng(settings.bootstrap_seed).multinomial(
        n_cases, np.full(n_cases, 1 / n_cases), settings.bootstrap_resamples
    )
    known = np.isfinite(values)
    sums = np.tensordot(draws, np.where(known, values, 0), 1)
    counts = np.tensordot(draws, known.astype(np.float64), 1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def mean_of_known(means: Floats) -> Floats:
    """Over the classes that have one."""
    known = np.isfinite(means)
    counts = known.sum(1)
    return np.divide(np.where(known, means, 0).sum(1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _between(
    means: Floats, known: NDArray[np.integer], names: Sequence[str], percents: Floats
) -> dict[str, dict[str, float] | None]:
    """low and high of each metric, of means (draws, metrics)."""
    intervals: dict[str, dict[str, float] | None] = dict.fromkeys(names)
    for index, name in enumerate(names):
        if known[index] > 1:
            low, high = np.percentile(means[np.isfinite(means[:, index]), index], percents)
            intervals[name] = {"low": float(low), "high": float(high)}
    return intervals
