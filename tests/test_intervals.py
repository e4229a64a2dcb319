"""Confidence intervals of means: seeded, over cases, as scipy's bootstrap finds them."""

import numpy as np
import pytest
from scipy import stats
from tiny import params

from segpipe.evaluation import summary
from segpipe.evaluation.intervals import confidence, units


def rows_of(values):
    """Cases x classes of Dice, NaN for null, with a count."""
    return [
        summary.case_row({str(i): {"Dice": None if np.isnan(v) else v, "TP": 3} for i, v in enumerate(case)}, "p", "r")
        for case in values
    ]


def intervals(values, **changes):
    settings = params(**{f"evaluate__{key}": value for key, value in changes.items()}).evaluate
    return confidence(rows_of(values), units([str(i) for i in range(len(values))], None, None), settings)


VALUES = np.random.default_rng(0).beta(8, 2, (25, 2))


def test_the_same_seed_gives_the_same_intervals():
    assert intervals(VALUES) == intervals(VALUES)
    assert intervals(VALUES) != intervals(VALUES, bootstrap_seed=1)
    assert intervals(VALUES)["mean"]["0"]["Dice"].keys() == {"low", "high"}


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_they_are_those_of_scipy(level):
    found = intervals(VALUES, confidence_level=level, bootstrap_resamples=20000)
    for index in range(2):
        expected = stats.bootstrap(
            (VALUES[:, index],),
            np.mean,
            confidence_level=level,
            n_resamples=20000,
            method="percentile",
            rng=np.random.default_rng(3),
        ).confidence_interval
        between = found["mean"][str(index)]["Dice"]
        assert (between["low"], between["high"]) == pytest.approx(tuple(expected), abs=2e-3)
    of_cases = stats.bootstrap((VALUES.mean(1),), np.mean, confidence_level=level, n_resamples=20000)
    between = found["foreground_mean"]["Dice"]
    assert (between["low"], between["high"]) == pytest.approx(tuple(of_cases.confidence_interval), abs=4e-3)


def test_the_mean_lies_inside_and_more_cases_are_surer():
    few, many = intervals(VALUES[:6])["mean"]["0"]["Dice"], intervals(np.tile(VALUES[:6], (10, 1)))["mean"]["0"]["Dice"]
    assert few["low"] < VALUES[:6, 0].mean() < few["high"]
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 2


def test_nulls_are_left_out_as_in_the_tables():
    gaps = VALUES.copy()
    gaps[::2, 1] = np.nan
    found = intervals(gaps)
    assert found["mean"]["0"] == intervals(VALUES)["mean"]["0"]
    known = gaps[1::2, 1]
    between = found["mean"]["1"]["Dice"]
    assert between["low"] < known.mean() < between["high"]
    # the foreground's is the mean of the classes' means
    between = found["foreground_mean"]["Dice"]
    assert between["low"] < (gaps[:, 0].mean() + known.mean()) / 2 < between["high"]


def test_a_class_that_no_case_has_leaves_the_foreground_alone():
    absent = np.column_stack([VALUES[:, 0], np.full(len(VALUES), np.nan)])
    found = intervals(absent)
    assert found["foreground_mean"]["Dice"] == found["mean"]["0"]["Dice"]
    assert found["mean"]["1"]["Dice"] is None


def test_one_case_says_nothing_of_how_sure_it_is():
    alone = np.full((4, 2), np.nan)
    alone[:, 0] = 0.5
    alone[2, 1] = 0.25
    found = intervals(alone)
    assert found["mean"]["0"]["Dice"] == {"low": 0.5, "high": 0.5}
    assert found["mean"]["1"]["Dice"] is None
    assert intervals(VALUES[:1])["foreground_mean"]["Dice"] is None
    assert intervals(np.full((3, 1), np.nan))["foreground_mean"]["Dice"] is None


def test_counts_of_voxels_have_none_and_the_settings_are_named():
    found = intervals(VALUES, confidence_level=0.9, bootstrap_resamples=150, bootstrap_seed=4)
    assert list(found["foreground_mean"]) == ["Dice"]
    assert (found["level"], found["resamples"], found["seed"]) == (0.9, 150, 4)
    assert "percentile" in found["method"]
