"""Metrics of one pair of masks, against numbers counted by hand and distances found by brute force."""

import numpy as np
import pytest
from tiny import FOUR, labels_of, params

from segpipe.errors import SegpipeError
from segpipe.evaluation import metrics, summary
from segpipe.evaluation.overlap import OVERLAP, Pair, case_overlap

SPACING = (3.0, 1.0, 0.5)
SETTINGS = params().evaluate


def mask_metrics(predicted, reference, spacing_mm):
    return metrics.mask_metrics(Pair.of(predicted, reference), spacing_mm, 2.0, SETTINGS)


def case_metrics(*args):
    return metrics.case_metrics(*args, SETTINGS)


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


def test_a_2d_image_has_no_volumes():
    mask = cube((0, 2, 2), shape=(1, 14, 16))
    numbers = mask_metrics(mask, mask, (999 * 0.25, 0.25, 0.1))
    assert (numbers["volume_pred_ml"], numbers["volume_ref_ml"], numbers["n_ref"]) == (None, None, 16)
    assert mask_metrics(mask, mask, (5.0, 1.0, 1.0))["volume_ref_ml"] == pytest.approx(16 * 5e-3)


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


# regions, the ignore label, cases that are annotated for some classes only

REGIONS = labels_of({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
IGNORING = labels_of({"background": 0, "one": 1, "two": 2, "ignore": 3})


def test_a_region_is_measured_by_all_its_values():
    reference, predicted = np.zeros((6, 6, 6), np.int16), np.zeros((6, 6, 6), np.int16)
    reference[:3], reference[1] = 1, 2
    predicted[:4], predicted[1:3] = 1, 2
    numbers = case_metrics(predicted, reference, REGIONS, None, SPACING)
    assert list(numbers) == ["(1, 2)", "2"]
    assert numbers["(1, 2)"]["Dice"] == pytest.approx(2 * 3 / (3 + 4))
    assert numbers["2"]["Dice"] == pytest.approx(2 * 1 / (1 + 2))
    for key, values in (("(1, 2)", [1, 2]), ("2", [2])):
        assert numbers[key] == mask_metrics(np.isin(predicted, values), np.isin(reference, values), SPACING)


def test_what_is_ignored_counts_for_nothing():
    rng = np.random.default_rng(0)
    reference, predicted = rng.integers(0, 4, (8, 7, 6)), rng.integers(0, 3, (8, 7, 6))
    numbers = case_metrics(predicted, reference, IGNORING, None, SPACING)
    inside = reference != 3
    assert list(numbers) == ["1", "2"]
    for key, value in (("1", 1), ("2", 2)):
        there, here = (reference == value)[inside], (predicted == value)[inside]
        expected = {"TP": here & there, "FP": here & ~there, "FN": ~here & there, "TN": ~here & ~there}
        expected |= {"n_pred": here, "n_ref": there}
        assert {name: numbers[key][name] for name in expected} == {name: int(m.sum()) for name, m in expected.items()}
        assert numbers[key]["Dice"] == pytest.approx(2 * (here & there).sum() / (here.sum() + there.sum()))
        assert numbers[key]["volume_pred_ml"] == pytest.approx(here.sum() * 1.5e-3)
    changed = np.where(inside, predicted, rng.integers(0, 3, predicted.shape))
    assert not np.array_equal(changed, predicted)
    assert case_metrics(changed, reference, IGNORING, None, SPACING) == numbers


def test_a_case_that_nobody_annotated_has_no_dice():
    nobody, predicted = np.full((4, 4, 4), 3), np.ones((4, 4, 4), int)
    numbers = case_metrics(predicted, nobody, IGNORING, None, SPACING)["1"]
    assert (numbers["Dice"], numbers["TP"], numbers["FP"], numbers["TN"]) == (None, 0, 0, 0)


def test_a_class_that_a_case_is_not_annotated_for_has_no_number_and_no_part_in_a_mean():
    rng = np.random.default_rng(0)
    cases = [(rng.integers(0, 4, (6, 6, 6)), rng.integers(0, 4, (6, 6, 6))) for _ in range(2)]
    partly = [
        case_metrics(*pair, FOUR, annotated, SPACING) for pair, annotated in zip(cases, (["two"], None), strict=True)
    ]
    whole = [case_metrics(*pair, FOUR, None, SPACING) for pair in cases]
    assert set(partly[0]["1"]) == set(whole[0]["1"])
    assert set(partly[0]["1"].values()) == set(partly[0]["3"].values()) == {None}
    assert partly[0]["2"] == whole[0]["2"]
    assert partly[1] == whole[1]
    means = summary.tables([summary.case_row(numbers, "case", "case") for numbers in partly])["mean"]
    for name in ("Dice", "FN", "volume_pred_ml"):
        assert means["1"][name] == pytest.approx(whole[1]["1"][name])
        assert means["2"][name] == pytest.approx((whole[0]["2"][name] + whole[1]["2"][name]) / 2)


@pytest.mark.parametrize(("labels", "annotated"), [(FOUR, ["two"]), (REGIONS, None), (IGNORING, None)])
def test_the_short_form_is_the_long_one_without_distances(labels, annotated):
    rng = np.random.default_rng(0)
    reference, predicted = rng.integers(0, 4, (6, 6, 6)), rng.integers(0, 3, (6, 6, 6))
    long = case_metrics(predicted, reference, labels, annotated, SPACING)
    short = case_overlap(predicted, reference, labels, annotated)
    assert short == {key: {name: numbers[name] for name in OVERLAP} for key, numbers in long.items()}


# beside nnU-Net's metrics


def test_precision_and_recall_by_hand():
    reference = np.array([[[1, 1, 0, 0], [1, 0, 0, 0]]], bool)
    predicted = np.array([[[1, 0, 1, 0], [1, 0, 1, 0]]], bool)
    numbers = mask_metrics(predicted, reference, (2, 5, 10))
    assert (numbers["precision"], numbers["recall"]) == (2 / 4, 2 / 3)
    assert numbers["volume_difference_ml"] == pytest.approx(0.1)
    assert numbers["volume_difference_relative"] == pytest.approx(1 / 3)


def test_what_an_empty_mask_has():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    shown = ("precision", "recall", "nsd", "assd_mm", "volume_difference_relative", "lesion_f1")
    for masks, expected in (
        ((empty, empty), (None, None, None, None, None, None)),
        ((empty, full), (None, 0, 0, None, -1, 0)),
        ((full, empty), (0, None, 0, None, None, 0)),
    ):
        numbers = mask_metrics(*masks, SPACING)
        assert tuple(numbers[name] for name in shown) == expected


def test_every_row_has_every_metric_and_nothing_is_nested():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (6, 6, 6))
    numbers = case_metrics(labels, np.roll(labels, 1, 0), FOUR, ["one"], SPACING)
    assert all(tuple(of_class) == metrics.METRICS for of_class in numbers.values())
    assert all(isinstance(value, int | float | None) for value in numbers["1"].values())


def test_the_tolerance_may_differ_by_class():
    reference = np.zeros((8, 12, 12), np.int16)
    reference[1:6, 2:6, 2:6], reference[1:6, 7:11, 7:11] = 1, 2
    predicted = np.roll(reference, 1, 0)
    by_class = SETTINGS.model_copy(update={"nsd_tolerance_mm": {"one": 3.0, "two": 0.5, "three": 1.0}})
    numbers = metrics.case_metrics(predicted, reference, FOUR, None, SPACING, by_class)
    assert numbers["1"]["nsd"] == 1
    assert numbers["2"]["nsd"] < 1
    missing = SETTINGS.model_copy(update={"nsd_tolerance_mm": {"one": 3.0}})
    with pytest.raises(SegpipeError, match=r"nsd_tolerance_mm\n.*one\n.*one, two, three"):
        metrics.case_metrics(predicted, reference, FOUR, None, SPACING, missing)
