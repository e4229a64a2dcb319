"""Lesions found, invented and missed, counted by hand."""

import numpy as np
import pytest
from tiny import params

from segpipe.evaluation.lesions import lesion_metrics
from segpipe.evaluation.overlap import Pair


def lesions(predicted, reference, match="any", connectivity=26):
    settings = params(evaluate__lesion_match=match, evaluate__lesion_connectivity=connectivity).evaluate
    f1, *counts = lesion_metrics(Pair.of(predicted, reference), settings).values()
    return f1, tuple(counts)


def line(*parts, length=30):
    """A row of voxels with parts from a to b."""
    mask = np.zeros((3, 3, length), bool)
    for start, stop in parts:
        mask[1, 1, start:stop] = True
    return mask


def test_found_invented_and_missed():
    reference, predicted = line((0, 3), (6, 9), (12, 15)), line((1, 4), (17, 19), (21, 22), (24, 26))
    assert lesions(predicted, reference) == (pytest.approx(2 / (2 + 3 + 2)), (1, 3, 2))


def test_one_lesion_may_find_several_by_any_voxel_but_one_by_iou():
    reference, predicted = line((0, 4), (6, 10)), line((0, 10))
    assert lesions(predicted, reference) == (1, (2, 0, 0))
    assert lesions(reference, predicted) == (1, (1, 0, 0))
    assert lesions(predicted, reference, 0.1) == (pytest.approx(2 / 3), (1, 0, 1))
    assert lesions(reference, predicted, 0.1) == (pytest.approx(2 / 3), (1, 1, 0))


@pytest.mark.parametrize(("least", "found"), [(0.49, 1), (0.5, 1), (0.51, 0)])
def test_the_least_iou_is_enough(least, found):
    assert lesions(line((0, 3)), line((1, 4)), least)[1] == (found, 1 - found, 1 - found)


def test_pairs_are_as_many_as_can_be():
    """The left prediction overlaps both lesions, the right one the left lesion alone: both are found only crosswise."""
    reference, predicted = np.zeros((2, 3, 4, 12), bool)
    reference[1, 0, 0:8], reference[1, 2, 0:4] = True, True
    predicted[1, 0:3, 0], predicted[1, 0, 2:8] = True, True
    assert lesions(predicted, reference, 0.05) == (1, (2, 0, 0))


def test_neighbours_make_one_lesion():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[0, 0, 1] = mask[1, 0, 2] = mask[2, 1, 3] = True
    for connectivity, number in ((6, 3), (18, 2), (26, 1)):
        assert lesions(mask, mask, connectivity=connectivity)[1] == (number, 0, 0)


def test_neighbours_in_an_image():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True
    for connectivity, number in ((6, 2), (18, 1), (26, 1)):
        assert lesions(mask, mask, connectivity=connectivity)[1] == (number, 0, 0)


@pytest.mark.parametrize("match", ["any", 0.5])
def test_empty_masks(match):
    empty, two = line(), line((0, 2), (5, 6))
    assert lesions(empty, empty, match) == (None, (0, 0, 0))
    assert lesions(two, empty, match) == (0, (0, 2, 0))
    assert lesions(empty, two, match) == (0, (0, 0, 2))


def test_many_lesions_are_counted_each():
    rng = np.random.default_rng(0)
    mask = np.zeros((9, 60, 60), bool)
    mask[::2, ::2, ::2] = rng.random((5, 30, 30)) < 0.5
    number = int(mask.sum())
    assert lesions(mask, mask, 0.9) == (1, (number, 0, 0))
