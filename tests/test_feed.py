"""Batches: pure functions of the step, the same for any number of threads, and what is in them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import params, planned, random_case

from segpipe.training.feed import Feed, ahead

pytest_plugins = ["phantom_fixtures"]


class Cases(SimpleNamespace):
    """A store of cases in memory: what a feed asks of it."""

    def open(self, case):
        return self.content[case]


def feed(plan=None, shape=(20, 20, 20), n_channels=1, **changes):
    content = {f"c{i}": random_case(shape, n_channels, seed=i) for i in range(6)}
    store = Cases(content=content, planned=plan or planned())
    return Feed(store, ["c0", "c1", "c2", "c3"], ["c4", "c5"], params(**changes).train)


def same(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.sources == other.sources


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_batches_do_not_depend_on_the_threads_that_make_them(kind):
    batches = [list(ahead(getattr(feed(), kind), range(3, 9), depth)) for depth in (0, 1, 3)]
    assert [len(several) for several in batches] == [6, 6, 6]
    for several in batches[1:]:
        assert all(same(one, other) for one, other in zip(several, batches[0], strict=True))
    assert not same(batches[0][0], batches[0][1])


def test_a_batch_is_decided_by_its_step_and_the_seed():
    one = feed()
    late = one.training(700)
    for step in (3, 0, 701):
        one.training(step)
    assert same(late, one.training(700))
    assert same(late, feed().training(700))
    assert not same(late, feed(train__seed=1).training(700))
    assert not same(one.training(0), one.validation(0))


def test_more_than_depth_batches_are_never_prepared_ahead():
    made = []
    batches = ahead(lambda step: made.append(step) or step, range(20), 3)
    assert made == []
    assert next(batches) == 0
    assert max(made) <= 3
    assert list(batches) == list(range(1, 20))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_while_making_a_batch_reaches_the_training(depth):
    def fails_at_two(step):
        if step == 2:
            raise OSError("disk")
        return step

    batches = ahead(fails_at_two, range(9), depth)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(batches)


@pytest.mark.parametrize(
    ("patch", "image", "label"),
    [([8, 8, 8], (2, 1, 8, 8, 8), (2, 8, 8, 8)), ([8, 12], (2, 1, 8, 12), (2, 8, 12))],
)
def test_shapes_and_types(patch, image, label):
    for batch in (feed(planned(patch)).training(0), feed(planned(patch)).validation(0)):
        assert batch.image.shape == image
        assert batch.image.dtype == torch.float32
        assert batch.label.shape == label
        assert batch.label.dtype == torch.int64
        assert batch.label.min() >= 0  # the padding label is background
        assert len(batch.sources) == 2


def test_training_and_validation_see_their_own_cases_evenly():
    one = feed()
    seen = {
        kind: [name for step in range(150) for name, _ in getattr(one, kind)(step).sources]
        for kind in ("training", "validation")
    }
    assert {kind: set(names) for kind, names in seen.items()} == {
        "training": {"c0", "c1", "c2", "c3"},
        "validation": {"c4", "c5"},
    }
    counts = [seen["training"].count(name) for name in ("c0", "c1", "c2", "c3")]
    assert min(counts) > 75 - 4 * np.sqrt(75)


def test_the_last_sample_of_a_pair_contains_foreground():
    """The other sample need not; without augmentation nothing turns it out of the patch."""
    one = feed(train__augment=False)
    for content in one.store.content.values():
        content.label[:] = 0
        content.label[9, 9, 9] = 2
        content.foreground.clear()
        content.foreground[2] = np.array([np.ravel_multi_index((9, 9, 9), content.label.shape)])
    labels = [one.training(step).label for step in range(40)]
    assert all((label[1] == 2).any() for label in labels)
    assert not all((label[0] == 2).any() for label in labels)


def test_validation_patches_are_plain_crops():
    """Nothing is masked in them either: whole cases are predicted as they are."""
    one = feed(replace(planned(), use_mask_for_norm=[True]))
    for step in range(10):
        batch = one.validation(step)
        for image, label, (name, box) in zip(batch.image, batch.label, batch.sources, strict=True):
            case = one.store.content[name]
            where = tuple(slice(a, a + n) for a, n in zip(box.start, box.size, strict=True))
            assert box.size == (8, 8, 8)
            inside = case.label[where]
            corner = tuple(slice(0, n) for n in inside.shape)
            assert np.array_equal(image[0][corner], case.image[0][where])
            assert np.array_equal(label[corner], np.maximum(inside, 0))


def test_augmentation_can_be_switched_off():
    plain, rich = feed(train__augment=False), feed()
    assert plain.training(0).sources[0][1].size == (8, 8, 8)
    assert rich.training(0).sources[0][1].size == rich.geometry.reach
    assert rich.geometry.reach[0] > 8


@pytest.mark.parametrize("mask", [[True, False], [False, True], [True, True], [False, False]])
def test_channels_normalised_inside_the_mask_are_zero_outside(mask):
    plans = [
        replace(planned(), use_mask_for_norm=wanted, normalisation=["zscore"] * 2) for wanted in (mask, [False, False])
    ]
    one, plain = (feed(plan, n_channels=2) for plan in plans)
    for step in range(12):
        for sample in range(2):
            image, label, _ = one._sample(0, step, sample, one.train_cases, True)
            unmasked, _, _ = plain._sample(0, step, sample, plain.train_cases, True)
            outside = label < 0
            assert torch.equal(image[:, ~outside], unmasked[:, ~outside])
            for channel in range(2):
                expected = torch.zeros(()) if mask[channel] else unmasked[channel][outside]
                assert (image[channel][outside] == expected).all()
            assert torch.equal(one.training(step).image[sample], image)


def test_batches_of_a_real_store(prepared):
    settings = params().train
    cases = prepared.cases.training
    batch = Feed(prepared.store, cases[:3], cases[3:], settings).training(0)
    assert batch.image.shape == (2, 1, 16, 16, 16)
    assert set(batch.label.unique().tolist()) <= {0, 1, 2, 3}
    assert {name for name, _ in batch.sources} <= set(cases[:3])
