"""Target spacing, order of axes, shape after resampling."""

import numpy as np
import pytest

from segpipe.prepare.spacing import axis_order, resampled_shape, target_spacing


def target(spacings_mm: list[list[float]], shape: list[int]) -> list[float]:
    return [
        float(edge) for edge in target_spacing(np.array(spacings_mm, float), np.array([shape] * len(spacings_mm)))[0]
    ]


@pytest.mark.parametrize(
    ("coarse", "n_slices", "reason"),
    [
        (3, 20, "the median of 2 cases; no axis is coarse (more than 3 times the others)"),
        (8, 100, "the median of 2 cases; axis 0 of the files is coarse, but not short (100 voxels)"),
        (8, 20, "axis 0 of the files, which is coarse (8 mm) and short (20 voxels), the 10th percentile"),
    ],
)
def test_the_reason_says_which_rule_it_was(coarse: float, n_slices: int, reason: str) -> None:
    _, why = target_spacing(np.array([[coarse, 1.0, 1.0]] * 2), np.array([[n_slices, 200.0, 200.0]] * 2))
    assert reason in why


def test_the_median_by_axis() -> None:
    assert target([[1, 3, 2], [2, 1, 2], [3, 2, 5]], [50, 50, 50]) == [2, 2, 2]


def test_a_coarse_axis_with_few_slices_takes_the_10th_percentile() -> None:
    spacings = [[edge, 1, 1] for edge in (4, 6, 8, 10, 12)]
    assert target(spacings, [20, 200, 200]) == pytest.approx([np.percentile([4, 6, 8, 10, 12], 10), 1, 1])


def test_a_coarse_axis_with_many_slices_keeps_the_median() -> None:
    assert target([[edge, 1, 1] for edge in (4, 6, 8, 10, 12)], [100, 200, 200]) == [8, 1, 1]


def test_three_times_the_others_is_not_yet_coarse() -> None:
    assert target([[edge, 1, 1] for edge in (1, 3, 3)], [20, 200, 200]) == [3, 1, 1]


def test_the_coarse_axis_never_becomes_finer_than_the_others() -> None:
    spacings = [[edge, 1.5, 1] for edge in (0.5, 8, 8, 8, 8, 8, 8, 8, 8, 8)]
    spacings[1][0] = 0.5
    assert target(spacings, [20, 200, 200]) == pytest.approx([1.5 + 1e-5, 1.5, 1], abs=1e-9)


@pytest.mark.parametrize(
    ("spacing_mm", "order"),
    [([3, 1, 1], [0, 1, 2]), ([1, 3, 2], [1, 0, 2]), ([1, 2, 3], [2, 0, 1]), ([1, 1, 1], [0, 1, 2])],
)
def test_the_coarsest_axis_comes_first(spacing_mm: list[float], order: list[int]) -> None:
    assert axis_order(np.array(spacing_mm)) == order


def test_shapes_are_rounded_to_even_halves_as_python_does() -> None:
    assert resampled_shape([5, 7, 10], [1, 1, 1], [2, 2, 4]) == [2, 4, 2]
    assert resampled_shape([10, 20, 30], [1.5, 1, 3], [1.5, 2, 1]) == [10, 10, 90]


def test_no_axis_vanishes() -> None:
    assert resampled_shape([1, 2, 100], [1, 1, 1], [5, 5, 5]) == [1, 1, 20]
