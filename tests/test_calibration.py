"""Calibration against numbers computed by hand, by scipy and scikit-learn; temperatures that are known."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.metrics import brier_score_loss, log_loss
from tiny import labels_of

from segpipe.evaluation import calibration
from segpipe.evaluation.calibration import fit_temperature, scores, tempered, with_temperature
from segpipe.evaluation.voxel_sample import draw, joined, near, of_voxels

THREE = labels_of({"background": 0, "liver": 1, "tumour": 2})
REGIONS = labels_of({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])


def sample_of(rows, reference, labels=THREE, weight=None, annotated=None, dtype=np.float32):
    """rows : (n, heads)"""
    n = len(rows)
    weight = np.ones(n) if weight is None else np.asarray(weight, float)
    heads = np.asarray(rows).T.astype(dtype)
    return of_voxels(heads, np.asarray(reference), weight, np.ones(n, bool), labels, annotated)


def drawn_from(logits, temperature, seed=0):
    """Classes drawn from the distribution of logits / temperature, and what a network says that gives the logits."""
    honest = softmax(logits / temperature, axis=1)
    classes = (honest.cumsum(1) < np.random.default_rng(seed).random((len(logits), 1))).sum(1)
    return softmax(logits, axis=1), np.minimum(classes, logits.shape[1] - 1)


def random_logits(n, classes=3, seed=0, spread=2.0):
    return spread * np.random.default_rng(seed).normal(size=(n, classes))


# errors and scores


def test_an_error_computed_by_hand():
    """Confidence 0.9 in four voxels, three of them right; 0.6 in four, one right: (|0.9-0.75| + |0.6-0.25|) / 2."""
    rows = [[0.9, 0.1, 0]] * 4 + [[0.4, 0.6, 0]] * 4
    found = scores(sample_of(rows, [0, 0, 0, 1, 1, 0, 0, 2]), 10, ["1", "2"], has_regions=False)
    assert found["voxels"] == 8
    assert found["ece"] == pytest.approx((0.15 + 0.35) / 2)
    first, second = found["reliability"]
    assert first == pytest.approx({"lower": 0.6, "upper": 0.7, "voxels": 4, "confidence": 0.6, "accuracy": 0.25})
    assert second == pytest.approx({"lower": 0.9, "upper": 1.0, "voxels": 4, "confidence": 0.9, "accuracy": 0.75})
    # of the first class alone: 0.1 where it is one of four, 0.6 where it is one of four
    assert found["classwise_ece"]["1"] == pytest.approx((0.15 + 0.35) / 2)
    assert found["classwise_ece"]["2"] == pytest.approx(1 / 8)


def test_a_weight_is_a_number_of_voxels():
    rows, reference = [[0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.2, 0.6]], [0, 2, 2]
    weighted = scores(sample_of(rows, reference, weight=[3, 1, 2]), 15, ["1", "2"], False)
    repeated = scores(sample_of(np.repeat(rows, [3, 1, 2], 0), np.repeat(reference, [3, 1, 2])), 15, ["1", "2"], False)
    bins = zip(weighted.pop("reliability"), repeated.pop("reliability"), strict=True)
    assert all(one == pytest.approx(other) for one, other in bins)
    classes = weighted.pop("classwise_ece"), repeated.pop("classwise_ece")
    assert classes[0] == pytest.approx(classes[1])
    assert weighted == pytest.approx(repeated)


def test_likelihood_and_brier_are_scikit_learns():
    rows, reference = drawn_from(random_logits(500), 1.5)
    weight = np.random.default_rng(1).random(500)
    sample = sample_of(rows, reference, weight=weight)
    found = scores(sample, 15, ["1", "2"], False)
    assert found["nll"] == pytest.approx(log_loss(reference, rows, sample_weight=weight), abs=1e-6)
    expected = brier_score_loss(reference, rows, sample_weight=weight, labels=[0, 1, 2])
    assert found["brier"] == pytest.approx(expected, abs=1e-6)


def test_a_region_is_sure_of_one_side_or_the_other():
    """0.2 is a confidence of 0.8 that the voxel is outside."""
    sample = sample_of([[0.2, 0.9], [0.2, 0.9]], [0, 2], REGIONS)
    found = scores(sample, 10, ["(1, 2)", "2"], has_regions=True)
    assert found["voxels"] == 4
    assert found["ece"] == pytest.approx((abs(0.8 - 0.5) + abs(0.9 - 0.5)) / 2)
    assert found["classwise_ece"] == pytest.approx({"(1, 2)": 0.3, "2": 0.4})
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.2, 0.1, 0.9]).mean())


def test_what_has_no_voxel_has_no_number():
    nothing = sample_of(np.ones((2, 3)) / 3, [0, 1]).where(np.zeros(2, bool))
    assert set(scores(nothing, 15, ["1", "2"], False).values()) == {None}
    assert fit_temperature(nothing) == 1
    partly = sample_of([[0.9, 0.1]] * 2, [0, 1], REGIONS, annotated=["whole"])
    assert scores(partly, 15, ["(1, 2)", "2"], True)["classwise_ece"]["2"] is None


# the temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", [3, 8])
def test_a_known_temperature_is_found(temperature, classes):
    """A network twice as sure as it should be has the temperature 2; at it, it may be taken at its word."""
    labels = labels_of({f"class {index}" if index else "background": index for index in range(classes)})
    rows, reference = drawn_from(random_logits(60_000, classes) * temperature, temperature)
    sample = sample_of(rows, reference, labels)
    found = fit_temperature(sample)
    assert found == pytest.approx(temperature, rel=0.02)
    assert scores(tempered(sample, found), 15, [], False)["ece"] < 0.006
    if temperature != 1:
        assert scores(sample, 15, [], False)["ece"] > 0.04


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_known_temperature_of_regions_is_found(temperature):
    honest = random_logits(60_000, 2, spread=2.0)
    inside = np.random.default_rng(1).random(honest.shape) < expit(honest)
    inside[:, 0] |= inside[:, 1]  # the core lies in the whole
    values = np.where(inside[:, 1], 2, np.where(inside[:, 0], 1, 0))
    sample = sample_of(expit(honest * temperature), values, REGIONS)
    core = sample.where(sample.about[:, 1])
    assert fit_temperature(core) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_scipys():
    """The same minimum from another method, on logits that never were probabilities; with weights."""
    logits = random_logits(3000, 4, spread=3.0)
    rows, reference = drawn_from(logits, 1.7)
    weight = np.random.default_rng(2).random(3000)

    def nll(sharpness):
        return -(weight * log_softmax(sharpness * logits, axis=1)[np.arange(3000), reference]).sum()

    best = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10})
    labels = labels_of({f"class {index}" if index else "background": index for index in range(4)})
    assert fit_temperature(sample_of(rows, reference, labels, weight)) == pytest.approx(1 / best.x, rel=1e-5)


def test_half_precision_gives_the_same_temperature():
    """Also where a probability that turns out right was too small for float16."""
    rows, reference = drawn_from(2.8 * random_logits(60_000), 2.8)
    lost = np.float16(rows)[np.arange(len(rows)), reference] == 0
    assert lost.any()
    single, half = (fit_temperature(sample_of(rows, reference, dtype=dtype)) for dtype in (np.float32, np.float16))
    assert half == pytest.approx(single, rel=2e-3)
    logits = 2.2 * random_logits(60_000, 1)
    inside = np.random.default_rng(3).random(logits.shape) < expit(logits / 2.2)
    values = np.where(inside[:, 0], 2, 0)
    rows = expit(np.repeat(logits, 2, 1))
    single, half = (fit_temperature(sample_of(rows, values, REGIONS, dtype=kind)) for kind in (np.float32, np.float16))
    assert half == pytest.approx(single, rel=0.01)


def test_classes_that_are_ruled_out_change_nothing():
    """However many there are, and however hot it gets."""
    rows, reference = drawn_from(random_logits(5000) * 3, 3.0)
    more = np.concatenate([rows, np.zeros((5000, 20))], 1)
    labels = labels_of({f"class {index}" if index else "background": index for index in range(23)})
    sample, wide = sample_of(rows, reference), sample_of(more, reference, labels)
    assert fit_temperature(wide) == pytest.approx(fit_temperature(sample), rel=1e-6)
    found, expected = (scores(tempered(one, 3.0), 15, [], False)["nll"] for one in (wide, sample))
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_search_ends_at_its_bounds():
    never_wrong = sample_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [0, 1])
    assert fit_temperature(never_wrong) == calibration.COOLEST
    always_wrong = sample_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [2, 2])
    assert fit_temperature(always_wrong) == calibration.HOTTEST


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_blocks_change_nothing(monkeypatch, block):
    rows, reference = drawn_from(random_logits(300), 2.0)
    sample = sample_of(rows, reference)
    whole = fit_temperature(sample), tempered(sample, 1.3).probabilities
    monkeypatch.setattr(calibration, "BLOCK", block)
    assert fit_temperature(sample) == pytest.approx(whole[0], rel=1e-9)
    assert tempered(sample, 1.3).probabilities == pytest.approx(whole[1], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.floats(0.05, 20),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 30),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_the_most_probable_class_stays_so(temperature, seed, spread, dtype):
    probabilities = softmax(random_logits(40, 5, seed, spread), axis=1).T.reshape(5, 2, 4, 5).astype(dtype)
    best = probabilities.argmax(0)[None]
    with_temperature(probabilities, temperature, has_regions=False)
    assert (np.take_along_axis(probabilities, best, 0)[0] == probabilities.max(0)).all()
    assert probabilities.astype(float).sum(0) == pytest.approx(1, abs=5e-3 if dtype == "float16" else 1e-5)
    regions = expit(random_logits(40, 2, seed, spread)).T.reshape(2, 2, 4, 5).astype(dtype)
    side = np.sign(regions.astype(float) - 0.5)
    with_temperature(regions, temperature, has_regions=True)
    assert (np.sign(regions.astype(float) - 0.5) * side >= 0).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_probabilities_are_changed_in_place_as_their_logits_would_be(kind, temperature):
    logits = random_logits(60).T.reshape(3, 3, 4, 5)
    plain, regions = kind(softmax(logits, axis=0).astype(np.float32)), kind(expit(logits).astype(np.float32))
    with_temperature(plain, temperature, has_regions=False)
    with_temperature(regions, temperature, has_regions=True)
    assert np.asarray(plain) == pytest.approx(softmax(logits / temperature, axis=0), abs=1e-6)
    assert np.asarray(regions) == pytest.approx(expit(logits / temperature), abs=1e-6)


def test_certainty_stays_certain():
    probabilities = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 0]], np.float16)
    for temperature in (0.05, 3.0, 20.0):
        for has_regions in (False, True):
            changed = probabilities.copy()
            with_temperature(changed, temperature, has_regions)
            assert np.array_equal(changed, probabilities)


def test_many_classes_that_are_alike_stay_so():
    """1/200 to the power of 20 is nothing in float32."""
    probabilities = np.full((200, 3), 1 / 200, np.float32)
    with_temperature(probabilities, 0.05, has_regions=False)
    assert probabilities == pytest.approx(1 / 200, rel=1e-5)


def test_a_region_and_its_complement_are_two_classes():
    rows = expit(random_logits(50, 2)).astype(np.float32)
    sample = sample_of(rows, np.zeros(50, int), REGIONS)
    heads = rows.T.copy()
    with_temperature(heads, 1.8, has_regions=True)
    changed = tempered(sample, 1.8).probabilities
    assert changed[:, 1].reshape(2, 50) == pytest.approx(heads, abs=1e-6)
    assert not np.allclose(heads, rows.T, atol=0.01)


# the voxels


def test_near_is_a_box_in_mm():
    foreground = np.zeros((5, 9, 9), bool)
    foreground[2, 4, 4] = True
    box = near(foreground, (10.0, 1.0, 2.0), 3.0)
    expected = np.zeros_like(foreground)
    expected[2, 1:8, 3:6] = True
    assert np.array_equal(box, expected)
    assert np.array_equal(near(foreground, (1.0, 1.0, 1.0), 0.0), foreground)
    corner = np.zeros((3, 9, 9), bool)
    corner[0, 0, 0] = True
    assert np.argwhere(near(corner, (1.0, 1.0, 1.0), 1.0)).max(0).tolist() == [1, 1, 1]
    assert not near(np.zeros((2, 3, 4), bool), (1.0, 1.0, 1.0), 5.0).any()


def masks(seed=0, shape=(6, 7, 8)):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < 0.8, rng.random(shape) < 0.15


def test_all_voxels_are_drawn_where_there_are_enough():
    inside, close = masks()
    index, weight = draw(inside, close, 10_000, np.random.default_rng(0))
    assert np.array_equal(np.sort(index), np.flatnonzero(inside))
    assert (weight == 1).all()


def test_a_drawn_voxel_stands_for_those_that_were_not():
    inside, close = masks()
    index, weight = draw(inside, close, 40, np.random.default_rng(0))
    there = close.reshape(-1)[index]
    assert len(np.unique(index)) == len(index) == 40
    assert inside.reshape(-1)[index].all()
    assert there.sum() == 20
    assert weight[there].sum() == pytest.approx((inside & close).sum())
    assert weight[~there].sum() == pytest.approx((inside & ~close).sum())
    again = draw(inside, close, 40, np.random.default_rng(0))[0]
    assert np.array_equal(index, again)
    assert not np.array_equal(index, draw(inside, close, 40, np.random.default_rng(1))[0])


def test_sums_over_the_sample_are_unbiased():
    inside, close = masks()
    value = np.random.default_rng(5).random(inside.shape) + 3 * close
    estimates = []
    for seed in range(400):
        index, weight = draw(inside, close, 30, np.random.default_rng(seed))
        estimates.append(weight @ value.reshape(-1)[index])
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(value[inside].sum(), abs=4 * error)
    assert error < 0.01 * value[inside].sum()


def test_nothing_is_drawn_from_nothing():
    nowhere = np.zeros((2, 3, 4), bool)
    index, weight = draw(nowhere, nowhere, 10, np.random.default_rng(0))
    assert len(index) == len(weight) == 0
    index, _ = draw(~nowhere, nowhere, 10, np.random.default_rng(0))
    assert len(index) == 5


# partly labelled cases


def test_the_background_takes_in_what_was_not_annotated():
    """A voxel of the background may be a tumour, and a predicted tumour is no mistake."""
    sample = sample_of([[0.2, 0.1, 0.7], [0.1, 0.8, 0.1]], [0, 1], annotated=["liver"])
    assert sample.probabilities == pytest.approx(np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]))
    assert sample.about.tolist() == [[True, False]] * 2
    found = scores(sample, 10, ["1", "2"], False)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.8]).mean())
    assert found["classwise_ece"]["2"] is None
    # together with a case that has all annotations, that case alone speaks of the tumour
    both = joined([sample, sample_of([[0.6, 0.0, 0.4]], [2])])
    assert scores(both, 10, ["1", "2"], False)["classwise_ece"]["2"] == pytest.approx(0.6)


def test_a_region_without_annotations_has_no_rows():
    rows = [[0.7, 0.4], [0.1, 0.2]]
    sample = sample_of(rows, [1, 0], REGIONS, annotated=["core"])
    assert sample.probabilities == pytest.approx(np.array([[0.6, 0.4], [0.8, 0.2]]))
    assert sample.reference.tolist() == [0, 0]
    assert sample.about.tolist() == [[False, True]] * 2
    assert len(sample_of(rows, [1, 0], REGIONS, annotated=[]).reference) == 0


def test_no_reference_is_impossible():
    """What float16 left of a small probability; the logit of the other side of 1 is known less well."""
    plain = sample_of([[1.0, 0.0, 0.0]] * 2, [0, 1], dtype=np.float16)
    assert plain.probabilities[:, 1].tolist() == [0, 2**-24]
    regions = sample_of([[1.0, 0.0]] * 2, [0, 2], REGIONS, dtype=np.float16)
    assert regions.probabilities.tolist() == [[2**-12, 1], [0, 1], [1, 0], [1, 2**-24]]


def test_rows_stay_together():
    one, two = sample_of([[0.9, 0.1, 0.0]], [1], weight=[3]), sample_of([[0.2, 0.8, 0.0]], [2], weight=[4])
    both = joined([one, two])
    second = both.where(np.array([False, True]))
    for field in dataclasses.fields(second):
        assert np.array_equal(getattr(second, field.name), getattr(two, field.name))


def test_the_logit_behind_a_probability_is_halved():
    probability = np.array([[0.9]], np.float32)
    with_temperature(probability, 2.0, has_regions=True)
    assert logit(probability[0, 0]) == pytest.approx(logit(0.9) / 2, abs=1e-5)
