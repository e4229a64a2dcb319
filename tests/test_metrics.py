"""Metrics of one pair of masks, against numbers counted by hand and distances found by brute force."""

import numpy as np
import pytest
from tiny import FOUR

from segpipe.evaluation.metrics import case_metrics, hd95_mm, mask_metrics

SPACING = (3.0, 1.0, 0.5)


def cube(start, edge=4, shape=(12, 14, 16)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, a + edge) for a in start)] = True
    return mask


def test_counts_by_hand():
    reference = np.array([[[1, 1, 0, 0], [1, 0, 0, 0]]], bool)
    predicted = np.array([[[1, 0, 1, 0], [1, 0, 1, 0]]], bool)
    numbers = mask_metrics(predicted, reference, (2, 5, 10))
    expected = {"TP": 2, "FP": 2, "FN": 1, "TN": 3, "n_pred": 4, "n_ref": 3}
    assert {name: numbers[name] for name in expected} == expected
    assert numbers["Dice"] == pytest.approx(4 / 7)
    assert numbers["IoU"] == pytest.approx(2 / 5)
    # 2 x 5 x 10 mm are 0.1 ml
    assert numbers["volume_pred_ml"] == pytest.approx(0.4)
    assert numbers["volume_ref_ml"] == pytest.approx(0.3)
    assert all(isinstance(numbers[name], int) for name in expected)


def test_a_perfect_and_a_disjoint_prediction():
    perfect = mask_metrics(cube((2, 2, 2)), cube((2, 2, 2)), SPACING)
    assert (perfect["Dice"], perfect["IoU"], perfect["hd95_mm"], perfect["FP"], perfect["FN"]) == (1, 1, 0, 0, 0)
    apart = mask_metrics(cube((0, 0, 0)), cube((8, 8, 8)), SPACING)
    assert (apart["Dice"], apart["IoU"], apart["TP"]) == (0, 0, 0)
    assert apart["hd95_mm"] > 0


def test_what_does_not_exist_is_none():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    both = mask_metrics(empty, empty, SPACING)
    assert both["Dice"] is None
    assert both["IoU"] is None
    assert both["hd95_mm"] is None
    assert (both["TP"], both["FP"], both["FN"], both["TN"]) == (0, 0, 0, 64)
    for predicted, reference in ((full, empty), (empty, full)):
        one = mask_metrics(predicted, reference, SPACING)
        assert one["Dice"] == one["IoU"] == 0
        assert one["hd95_mm"] is None
        assert one["TN"] == 0
    assert mask_metrics(full, full, SPACING)["hd95_mm"] == 0


@pytest.mark.parametrize(("axis", "mm"), [(0, 3.0), (1, 1.0), (2, 0.5)])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_a_shifted_cube_is_as_far_away_as_it_was_shifted(axis, mm, shift):
    """A layer of a whole face moves out: more than 5 % of the surface is that far away, nothing further."""
    moved = [3, 3, 3]
    moved[axis] += shift
    assert hd95_mm(cube((3, 3, 3)), cube(tuple(moved)), SPACING) == pytest.approx(shift * mm)


def surface_mm(mask, spacing):
    """Coordinates of the voxels that have a face neighbour outside, or none at all."""
    points = []
    for voxel in np.argwhere(mask):
        for axis in range(3):
            for step in (-1, 1):
                other = voxel.copy()
                other[axis] += step
                if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                    points.append(tuple(voxel))
    return np.array(sorted(set(points))) * spacing


def brute_force_hd95(a, b, spacing):
    first, second = surface_mm(a, spacing), surface_mm(b, spacing)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_hd95_is_the_brute_force_one(seed, spacing):
    rng = np.random.default_rng(seed)
    blob = np.kron(rng.random((3, 4, 4)) < 0.4, np.ones((3, 2, 3), bool)).astype(bool)
    other = blob ^ (rng.random(blob.shape) < 0.03)
    assert hd95_mm(blob, other, spacing) == pytest.approx(brute_force_hd95(blob, other, np.array(spacing)))
    assert hd95_mm(other, blob, spacing) == pytest.approx(hd95_mm(blob, other, spacing))


def test_hd95_leaves_out_the_worst_twentieth():
    """One stray voxel far away among many does not count; the plain maximum would."""
    reference, predicted = cube((2, 2, 2), 6), cube((2, 2, 2), 6)
    predicted[11, 13, 15] = True
    assert hd95_mm(predicted, reference, SPACING) == 0
    assert brute_force_hd95(predicted, reference, np.array(SPACING)) == 0


def test_every_class_is_measured_on_its_own():
    reference, predicted = np.zeros((6, 6, 6), np.int16), np.zeros((6, 6, 6), np.uint8)
    reference[:3], reference[3:] = 1, 2
    predicted[:3], predicted[3:5] = 1, 2
    predicted[5] = 1
    numbers = case_metrics(predicted, reference, FOUR, None, (1, 1, 1))
    assert list(numbers) == ["1", "2", "3"]
    assert numbers["1"]["Dice"] == pytest.approx(2 * 108 / (144 + 108))
    assert numbers["2"]["Dice"] == pytest.approx(2 * 72 / (72 + 108))
    assert numbers["3"]["Dice"] is None
