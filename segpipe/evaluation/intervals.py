"""How sure a mean over cases is: confidence intervals by drawing the cases again (bootstrap).

Cases of one patient are not independent: where patients are known, these are drawn, each with all its cases (cluster
bootstrap; Field and Welsh, J R Stat Soc B 2007). Without them, or with one case of each, a case is a unit of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.evaluation.summary import CaseRow
from segpipe.params import Evaluate

VOXELS = ("FP", "TP", "FN", "TN", "n_pred", "n_ref")  # counts, which nobody compares between cases
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """What is drawn again.

    name : in the plural, `cases` or `patients`
    of_case : (cases,) the number of each case's unit, counted from 0 in the order in which they first come
    """

    name: str
    of_case: NDArray[np.int64]

    @property
    def n(self) -> int:
        """How many there are."""
        return int(self.of_case.max(initial=-1)) + 1

    def told(self) -> dict[str, Any]:
        """What a file with intervals says of them."""
        return {"resampled": self.name, "n_resampled": self.n}


def units(cases: Sequence[str], groups: Mapping[str, str] | None, column: str | None) -> Units:
    """What is drawn again of some cases, each of another name.

    groups : value by case in a column of cases.tsv, of which equal ones belong together; None or empty: there is none
    """
    if not groups:
        return Units("cases", np.arange(len(cases)))
    numbers: dict[str, int] = {}
    return Units(f"{column}s", np.array([numbers.setdefault(groups[case], len(numbers)) for case in cases], np.int64))


def confidence(rows: Sequence[CaseRow], of: Units, settings: Evaluate) -> dict[str, Any]:
    """Intervals of what `summary.tables` has as means: `foreground_mean` and `mean`, by metric `low` and `high`.

    All units of a draw are drawn together for all classes and metrics, as often as there are units, each with the same
    probability; a mean is over all cases of these and leaves out what is null, as in the tables. The interval lies
    between percentiles of the means (Efron, 1979). It is null where fewer than two units have a number.
    """
    classes = list(rows[0]["metrics"])
    names = [name for name in rows[0]["metrics"][classes[0]] if name not in VOXELS]
    values = np.array(
        [[[row["metrics"][label][name] for name in names] for label in classes] for row in rows], np.float64
    )
    means = drawn_means(values, of, settings)
    is_known = np.isfinite(values)
    known, in_any_class = n_with(is_known, of), n_with(np.any(is_known, axis=1), of)
    percents = 50 * (1 + settings.confidence_level * np.array([-1, 1]))
    return {
        "level": settings.confidence_level,
        "method": f"percentile bootstrap over {of.name}",
        **of.told(),
        "resamples": settings.bootstrap_resamples,
        "seed": settings.bootstrap_seed,
        "foreground_mean": _between(mean_of_known(means), in_any_class, names, percents),
        "mean": {label: _between(means[:, i], known[i], names, percents) for i, label in enumerate(classes)},
    }


def drawn_means(values: Floats, of: Units, settings: Evaluate) -> Floats:
    """Mean over the cases of each draw, (draws, classes, metrics), of (cases, classes, metrics) with NaN for null."""
    of_units = np.random.default_rng(settings.bootstrap_seed).multinomial(
        of.n, np.full(of.n, 1 / of.n), settings.bootstrap_resamples
    )
    draws = of_units[:, of.of_case]
    known = np.isfinite(values)
    sums = np.tensordot(draws, np.where(known, values, 0), 1)
    counts = np.tensordot(draws, known.astype(np.float64), 1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def n_with(known: NDArray[np.bool_], of: Units) -> NDArray[np.int64]:
    """In how many units some case has a number, (...) of (cases, ...)."""
    of_units = np.zeros((of.n, *known.shape[1:]), bool)
    np.logical_or.at(of_units, of.of_case, known)
    return of_units.sum(0)


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
