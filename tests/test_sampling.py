"""Which case and which box: pure draws with nnU-Net's distribution."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import held_case, labels_of

from segpipe.training.sampling import (
    ORDER,
    TRAINING,
    VALIDATION,
    case_in_pass,
    draw_box,
    forced_foreground,
    generator,
)


def blank(*shape: int):
    return held_case(np.zeros((1, *shape)), np.zeros(shape, int))


def test_numbers_depend_on_seed_stream_step_and_sample_and_on_nothing_else():
    keys = [(7, TRAINING, step, sample) for step in (0, 1, 250) for sample in (0, 1)]
    keys += [(8, TRAINING, 0, 0), (7, VALIDATION, 0, 0), (7, ORDER, 0, 0)]
    forwards = {key: generator(*key).random(100).tolist() for key in keys}
    backwards = {key: generator(*key).random(100).tolist() for key in reversed(keys)}
    assert forwards == backwards
    assert len({tuple(numbers) for numbers in forwards.values()}) == len(keys)


def test_samples_never_share_numbers():
    """Neighbouring counters are so far apart that no sample runs into the numbers of the next one."""
    n = 50_000
    streams = [generator(0, TRAINING, step, sample).random(n) for step in (0, 1) for sample in (0, 1)]
    assert len(np.unique(np.concatenate(streams))) == 4 * n


@pytest.mark.parametrize("n_cases", [1, 2, 7])
def test_each_pass_has_every_case_once_in_an_order_of_its_own(n_cases):
    passes = [[case_in_pass(3, i * n_cases + j, n_cases) for j in range(n_cases)] for i in range(40)]
    assert all(sorted(one) == list(range(n_cases)) for one in passes)
    assert len({tuple(one) for one in passes}) == {1: 1, 2: 2, 7: 40}[n_cases]
    assert case_in_pass(3, 5 * n_cases, n_cases) == passes[5][0]  # whatever was asked before


def test_every_place_of_a_pass_is_given_to_all_cases_evenly():
    for place in (0, 4):
        counts = Counter(case_in_pass(0, 5 * i + place, 5) for i in range(1000))
        assert chisquare([counts[case] for case in range(5)]).pvalue > 1e-3


def test_another_seed_is_another_order():
    orders = {tuple(case_in_pass(seed, number, 7) for number in range(14)) for seed in range(5)}
    assert len(orders) == 5


def nnunet_range(shape: int, size: int, margin: int) -> tuple[int, int]:
    """First and last possible start of a box (nnUNetDataLoader.get_bbox, written down again)."""
    pad = margin
    if shape + pad < size:
        pad = size - shape
    return int(np.floor(-pad / 2)), shape + pad // 2 + pad % 2 - size


@pytest.mark.parametrize(
    ("shape", "size", "margin"),
    [
        ((20, 30, 25), (8, 10, 9), (0, 0, 0)),  # validation: patches inside the volume
        ((20, 30, 25), (13, 16, 14), (5, 6, 5)),  # training: the box reaches out, the patch hardly
        ((5, 8, 6), (13, 8, 9), (0, 0, 0)),  # smaller than the patch, evenly and oddly
        ((5, 8, 6), (14, 13, 12), (4, 5, 3)),
        ((1, 12, 12), (1, 8, 8), (0, 3, 4)),  # a slice
    ],
)
def test_starts_are_nnunets(shape, size, margin):
    draws, case = 6000, blank(*shape)
    rng = generator(0, TRAINING, 0, 0)
    starts = np.array([draw_box(rng, case, size, margin, force=False).start for _ in range(draws)])
    for axis in range(3):
        low, high = nnunet_range(shape[axis], size[axis], margin[axis])
        counts = Counter(starts[:, axis].tolist())
        assert set(counts) == set(range(low, high + 1))
        assert chisquare([counts[start] for start in range(low, high + 1)]).pvalue > 1e-3 or high == low


@pytest.mark.parametrize(
    ("batch", "share", "forced"), [(2, 0.33, 1), (12, 0.33, 4), (3, 0.33, 1), (4, 0, 0), (4, 1, 4)]
)
def test_the_last_third_of_a_batch_is_forced(batch, share, forced):
    expected = [False] * (batch - forced) + [True] * forced
    assert [forced_foreground(sample, batch, share) for sample in range(batch)] == expected


def organ_case():
    """Class 1 fills a tenth of the volume, class 2 is one voxel at the border, class 3 a small block; 4 is absent."""
    label = np.zeros((18, 20, 22), int)
    label[:8, 3:18, 4:18] = 1
    label[17, 0, 21] = 2
    label[10:13, 10:12, 10:12] = 3
    return held_case(np.zeros((1, *label.shape)), label)


def test_a_forced_box_is_centred_on_a_voxel_of_a_class_drawn_evenly():
    case, size = organ_case(), (6, 7, 8)
    # the box may start no lower than the volume, but may reach beyond its end
    starts = {
        value: np.maximum(np.stack(np.unravel_index(voxels, case.shape), 1) - np.array(size) // 2, 0)
        for value, voxels in case.foreground.items()
    }
    rng, seen = generator(0, TRAINING, 0, 0), Counter()
    for _ in range(1500):
        box = draw_box(rng, case, size, (0, 0, 0), force=True)
        centred = [value for value, possible in starts.items() if (possible == box.start).all(1).any()]
        assert centred
        inside = case.maps[0].numpy()[tuple(slice(a, a + n) for a, n in zip(box.start, size, strict=True))]
        assert all((inside == value).any() for value in centred)
        seen.update(centred)
    counts = [seen[value] for value in (1, 2, 3)]
    assert chisquare(counts).pvalue > 1e-3  # large classes are not drawn more often


def test_a_forced_box_of_a_case_without_foreground_is_anywhere():
    case, size = blank(20, 20, 20), (8, 8, 8)
    free = [draw_box(generator(0, 0, step, 0), case, size, (0, 0, 0), force=False) for step in range(20)]
    forced = [draw_box(generator(0, 0, step, 0), case, size, (0, 0, 0), force=True) for step in range(20)]
    assert free == forced
    assert len(set(forced)) > 10


# the ignore label, regions


def scribbled():
    """Annotated in a slab only; within it class 1 is a tenth and class 2 two voxels."""
    labels = labels_of({"background": 0, "one": 1, "two": 2, "ignore": 3})
    label = np.full((16, 18, 20), 3)
    label[9:12] = 0
    label[10, 3:8, 3:15] = 1
    label[11, 17, 18:] = 2
    return held_case(np.zeros((1, *label.shape)), label, labels)


def centres(case, size, force, n=400):
    """The voxel at the middle of each box; boxes that the volume pushed up at its start are left out."""
    drawn = [draw_box(generator(0, 0, step, 0), case, size, (0, 0, 0), force) for step in range(n)]
    middles = np.array([box.start for box in drawn]) + np.array(size) // 2
    return [tuple(middle) for middle in middles if (middle > np.array(size) // 2).all()]


def test_of_a_partly_annotated_case_any_box_is_centred_on_what_is_annotated():
    case = scribbled()
    assert np.array_equal(np.sort(case.annotated), np.flatnonzero(case.maps[0].numpy() != 3))
    found = Counter(int(case.maps[0].numpy()[voxel]) for voxel in centres(case, (4, 4, 4), False))
    assert set(found) <= {0, 1, 2}
    assert found[0] > 10 * found[1] > 0  # evenly over the voxels, not over the classes


def test_a_forced_box_of_a_partly_annotated_case_is_centred_on_foreground():
    found = Counter(int(scribbled().maps[0][voxel]) for voxel in centres(scribbled(), (4, 4, 4), True))
    assert set(found) == {1, 2}
    assert 0.5 < found[1] / found[2] < 2


def test_a_forced_box_without_foreground_is_centred_on_what_is_annotated():
    case = scribbled()
    case.foreground.clear()
    assert centres(case, (4, 4, 4), True) == centres(case, (4, 4, 4), False)


def test_a_case_that_nobody_annotated_is_cut_anywhere():
    labels = labels_of({"background": 0, "one": 1, "ignore": 2})
    case, plain = held_case(np.zeros((1, 9, 9, 9)), np.full((9, 9, 9), 2), labels), blank(9, 9, 9)
    for force in (False, True):
        assert centres(case, (4, 4, 4), force) == centres(plain, (4, 4, 4), force)


def test_regions_are_drawn_evenly_however_they_overlap():
    """whole has a hundred times the voxels of active, of which it consists in part."""
    labels = labels_of({"background": 0, "whole": [1, 2], "active": 2, "none": 3}, [1, 2, 3])
    label = np.zeros((20, 20, 20), int)
    label[5:15, 5:15, 5:15] = 1
    label[9, 9, 5:15] = 2
    case = held_case(np.zeros((1, *label.shape)), label, labels)
    assert {index: len(voxels) for index, voxels in case.foreground.items()} == {1: 1000, 2: 10}
    found = Counter(int(case.maps[0].numpy()[voxel]) for voxel in centres(case, (4, 4, 4), True, 1500))
    # active itself, and a hundredth of whole
    assert chisquare([found[1], found[2]], [1500 * 0.495, 1500 * 0.505]).pvalue > 1e-3
