"""Batches: pure functions of their number, the same for any number of threads, and what is in them."""

import contextlib
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory import Cases, Store, feed, feed_of, run, training, weights
from tiny import FOUR, labels_of, params, planned, random_case, stored_case

from segpipe.training import augment, intensity, previous, tiers
from segpipe.training.feed import Feed, ahead, arriving
from segpipe.training.held import HeldCase, Place

pytest_plugins = ["phantom_fixtures"]


def same(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.sources == other.sources


# ahead of time


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_batches_do_not_depend_on_the_threads_that_make_them(kind):
    ways = [(4, 0), (4, 1), (1, 3), (3, 3), (9, 2)]  # batches ahead, threads
    batches = [list(ahead(getattr(feed(), kind), range(3, 9), depth, threads)) for depth, threads in ways]
    assert [len(several) for several in batches] == [6] * len(ways)
    for several in batches[1:]:
        assert all(same(one, other) for one, other in zip(several, batches[0], strict=True))
    assert not same(batches[0][0], batches[0][1])


def test_batches_are_made_by_as_many_threads_as_asked_for():
    def made_by(threads):
        barrier = threading.Barrier(threads or 1, timeout=20)  # passed only by so many at the same time
        names = []

        def make(number):
            barrier.wait()
            names.append(threading.current_thread().name)
            return number

        assert list(ahead(make, range(6), 4, threads)) == list(range(6))
        return set(names)

    main = threading.current_thread().name
    assert made_by(0) == {main}
    for threads in (1, 2, 3):
        assert len(made_by(threads)) == threads
        assert main not in made_by(threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_more_than_depth_batches_are_never_prepared_ahead(threads):
    made = []
    batches = ahead(lambda number: made.append(number) or number, range(20), 3, threads)
    assert made == []
    assert next(batches) == 0
    assert max(made) <= 3
    assert [next(batches), next(batches)] == [1, 2]
    assert max(made) <= 5
    assert list(batches) == list(range(3, 20))


def test_without_threads_a_batch_is_made_when_it_is_due():
    made = []
    batches = ahead(lambda number: made.append(number) or number, range(20), 3, 0)
    assert [next(batches), next(batches)] == [0, 1]
    assert made == [0, 1]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_while_making_a_batch_reaches_the_training(threads):
    def fails_at_two(number):
        if number == 2:
            raise OSError("disk")
        return number

    batches = ahead(fails_at_two, range(9), 4, threads)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(batches)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_that_nobody_waits_for_any_more_are_not_made(threads):
    """A training that stops early neither hangs nor makes what was ordered."""
    gate, made = threading.Event(), []

    def make(number):
        if number > 0:
            gate.wait(20)
        made.append(number)
        return number

    batches = ahead(make, range(10**9), 50, threads)
    before = threading.active_count()
    gate_opens = threading.Timer(0.2, gate.set)
    making = threading.Thread(target=lambda: next(batches))
    making.start()
    making.join()
    gate_opens.start()
    batches.close()
    gate_opens.join()
    assert threading.active_count() == before
    assert len(made) <= 1 + threads


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_says_which_case_and_where_in_it(monkeypatch, threads):
    one, whole = feed(train__augment=False), HeldCase.read
    bad = one.held.cases["c2"]
    monkeypatch.setattr(HeldCase, "read", lambda case, box, *of: whole(case, box if case is not bad else None))
    with pytest.raises(AttributeError) as error:
        list(ahead(one.training, range(20), 3, threads))
    (note,) = error.value.__notes__
    found = re.fullmatch(r"in a batch of case c2, voxels \[(.+), (.+), (.+)\] to \[(.+), (.+), (.+)\]", note)
    numbers = [int(number) for number in found.groups()]
    assert [end - start for start, end in zip(numbers[:3], numbers[3:], strict=True)] == [8, 8, 8]
    assert "read_box" in [entry.name for entry in error.traceback]


def test_an_error_with_all_samples_names_all(monkeypatch):
    monkeypatch.setattr(augment, "apply", lambda *_: 1 / 0)
    one = feed()
    with pytest.raises(ZeroDivisionError) as error:
        one.training(5)
    names = re.findall(r"case (c\d), voxels", error.value.__notes__[0])
    assert len(names) == 2


# on a device: made on a stream of their own, which nothing waits for on the host


class Streams:
    """Stands for the streams of a device: what is asked of them, in order."""

    def __init__(self, monkeypatch):
        self.log, self.entered = [], []
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, "training"))
        kept = lambda tensor, stream: self.log.append(("kept", tensor.shape, stream.name))  # noqa: E731
        monkeypatch.setattr(torch.Tensor, "record_stream", kept)

    @contextlib.contextmanager
    def stream(self, stream):
        self.entered.append(stream.name)
        yield
        self.entered.pop()


class Stream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def record_event(self):
        event = Event(self.streams, (self.name, len(self.streams.log)))
        self.streams.log.append(("event", event.name, tuple(self.streams.entered)))
        return event

    def wait_event(self, event):
        self.streams.log.append(("waits", self.name, event.name))


class Event:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def synchronize(self):
        self.streams.log.append(("host waits", self.name))


def test_a_batch_is_made_on_the_stream_beside_and_ends_with_an_event(monkeypatch):
    streams = Streams(monkeypatch)
    one = replace(feed(), stream=Stream(streams, "beside"))
    read = HeldCase.read
    monkeypatch.setattr(HeldCase, "read", lambda *given: streams.log.append("read") or read(*given))
    whole = torch.Tensor.long
    monkeypatch.setattr(torch.Tensor, "long", lambda given: streams.log.append(list(streams.entered)) or whole(given))
    batch = one.training(0)
    *before, last = streams.log
    assert before.count("read") == 2
    assert [entry for entry in before if entry != "read"] == [["beside"]] * (len(before) - 2)
    assert before[-1] == ["beside"]  # the label's type comes last
    assert last == ("event", batch.made.name, ("beside",))
    assert same(batch, feed().training(0))


def test_what_uses_a_batch_waits_for_it_on_its_stream_and_keeps_its_memory(monkeypatch):
    streams = Streams(monkeypatch)
    one = feed()
    one.store.cases.partly = {"c0": ["two"]}
    batch = replace(one, stream=Stream(streams, "beside")).training(0)
    before = len(streams.log)
    assert batch.on(torch.device("cuda")) is batch
    waits, *kept = streams.log[before:]
    assert waits == ("waits", "training", batch.made.name)
    assert kept == [("kept", part.shape, "training") for part in (batch.image, batch.label, batch.known)]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_host_is_at_most_so_many_steps_ahead_of_the_device(monkeypatch, depth):
    streams = Streams(monkeypatch)
    one, step_of = replace(feed(), stream=Stream(streams, "beside")), {}
    for step, batch in enumerate(arriving(ahead(one.training, range(8), depth, 0), torch.device("cuda"), depth)):
        assert streams.log[-2][:2] == ("kept", batch.image.shape)
        streams.log.append(("step", step))
    begun = {entry[1]: streams.log[i - 1] for i, entry in enumerate(streams.log) if entry[0] == "event"}
    for entry in streams.log:
        if entry[0] == "step":
            step_of["now"] = entry[1]
        if entry[0] == "host waits":
            step_of[begun[entry[1]][1]] = step_of["now"]
    assert {before: now for before, now in step_of.items() if before != "now"} == {
        i: i + depth for i in range(8 - depth)
    }


@pytest.mark.parametrize("threads", [0, 2])
def test_a_training_waits_for_each_batch_before_it_uses_it(monkeypatch, threads):
    """Training batches, those of a validation, and the same bits as without streams."""
    plain = run(training(train__epochs=2))
    streams, one = Streams(monkeypatch), training(train__epochs=2, runtime__feed_threads=threads)
    forward = one.forward
    one.feed = replace(one.feed, stream=Stream(streams, "beside"))
    one.forward = lambda *given: streams.log.append("forward") or forward(*given)
    assert run(one).rows == plain.rows
    assert torch.equal(weights(one.network), weights(plain.network))
    own = [entry[0] for entry in streams.log if entry == "forward" or entry[0] in ("waits", "kept")]
    assert own == ["waits", "kept", "kept", "f"] * (2 * (3 + 2))


def test_nothing_about_a_batch_on_a_device_asks_the_device(monkeypatch):
    """`meta` tensors have no values: what would wait for one fails, and so does what mixes devices."""
    meta = torch.device("meta")
    place = Place(meta, torch.int8, meta, pin=False)
    monkeypatch.setattr(intensity, "add_noise", lambda *_: None)  # there is no generator of numbers on `meta`
    for plan in (planned(use_mask_for_norm=[True]), planned([8, 12])):
        one = feed(plan)
        cases = {name: HeldCase.of(one.store.open(name), place) for name in one.held.cases}
        one = replace(one, held=replace(one.held, cases=cases, place=place))
        one.store.cases.partly = {"c0": ["two"]}
        expected = feed(plan).training(0)
        for batch in [*map(one.training, range(8)), one.validation(0)]:
            for part, like in ((batch.image, expected.image), (batch.label, expected.label)):
                assert (part.device, part.shape, part.dtype) == (meta, like.shape, like.dtype)
            assert batch.known.device == meta


# what a batch is


def test_a_batch_is_decided_by_its_step_and_the_seed():
    one = feed()
    late = one.training(700)
    for step in (3, 0, 701):
        one.training(step)
    assert same(late, one.training(700))
    assert same(late, feed().training(700))
    assert not same(late, feed(train__seed=1).training(700))
    assert not same(one.training(0), one.validation(0))


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


# which cases


def cases_of(one, numbers):
    return [name for number in numbers for name, _ in one.training(number).sources]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_without_replacement_each_case_is_seen_once_per_pass(accumulate):
    """Four cases in batches of two; whatever a step takes, batch after batch goes on where the last one ended."""
    one = feed(train__replacement=False, train__accumulate=accumulate)
    passes = [cases_of(one, [2 * i, 2 * i + 1]) for i in range(12)]
    assert all(sorted(names) == ["c0", "c1", "c2", "c3"] for names in passes)
    assert len({tuple(names) for names in passes}) > 4  # every pass in an order of its own
    assert passes != [cases_of(feed(train__replacement=False, train__seed=1), [2 * i, 2 * i + 1]) for i in range(12)]
    assert [cases_of(one, [2 * i, 2 * i + 1]) for i in reversed(range(12))] == passes[::-1]


def test_passes_need_not_be_whole_batches():
    one = feed(replace(planned(), batch_size=3), train__replacement=False)
    names = cases_of(one, range(8))
    assert [sorted(names[i : i + 4]) for i in range(0, 24, 4)] == [["c0", "c1", "c2", "c3"]] * 6
    late = feed(replace(planned(), batch_size=3), train__replacement=False)  # as after a resume
    assert cases_of(late, range(5, 8)) == names[15:]


def test_with_replacement_a_case_may_come_twice_in_a_pass():
    names = cases_of(feed(train__accumulate=2), range(40))
    assert not all(len(set(names[i : i + 4])) == 4 for i in range(0, 80, 4))


# accumulation


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("share", [0.33, 0.6])
def test_accumulated_batches_are_the_parts_of_the_large_one(replacement, share):
    changes = {"train__replacement": replacement, "train__oversample_foreground": share}
    large = feed(replace(planned(), batch_size=8), **changes)
    small = feed(train__accumulate=4, **changes)
    for step in (0, 3):
        parts, whole = [small.training(4 * step + i) for i in range(4)], large.training(step)
        assert torch.equal(torch.cat([part.image for part in parts]), whole.image)
        assert torch.equal(torch.cat([part.label for part in parts]), whole.label)
        assert [source for part in parts for source in part.sources] == whole.sources


@pytest.mark.parametrize(("accumulate", "forced"), [(1, 1), (3, 2), (4, 3)])
def test_the_share_of_foreground_is_that_of_the_large_batch(monkeypatch, accumulate, forced):
    """A third of 2, 6 and 8, in the last samples; not one of each pair."""
    drawn = []
    monkeypatch.setattr("segpipe.training.feed.draw_box", lambda rng, case, size, margin, force: drawn.append(force))
    monkeypatch.setattr(Feed, "geometry", feed().geometry)
    monkeypatch.setattr(augment, "read_box", lambda *_: torch.zeros(2, 1, 8, 8, 8))
    one = feed(train__accumulate=accumulate, train__augment=False)
    for number in range(accumulate):
        one.training(5 * accumulate + number)
    assert drawn == [False] * (2 * accumulate - forced) + [True] * forced
    drawn.clear()
    one.validation(0)
    assert drawn == [False, True]  # validation batches are not accumulated


def test_validation_patches_do_not_depend_on_how_is_trained():
    changed = feed(train__accumulate=4, train__replacement=False, train__augment=False, train__epochs=7)
    assert same(changed.validation(3), feed().validation(3))


# what is in a batch


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
def test_channels_normalised_inside_the_mask_are_zero_outside(mask, monkeypatch):
    plans = [
        replace(planned(), use_mask_for_norm=wanted, normalisation=["zscore"] * 2) for wanted in (mask, [False, False])
    ]
    one, plain = (feed(plan) for plan in plans)
    seen = []
    whole = augment.apply
    monkeypatch.setattr(augment, "apply", lambda *given: seen.append(whole(*given)) or seen[-1])
    for step in range(12):
        masked, unmasked = one.training(step).image, plain.training(step).image
        outside = seen[-1][1][:, 0] < 0
        for channel in range(2):
            image, expected = masked[:, channel], unmasked[:, channel]
            assert torch.equal(image[~outside], expected[~outside])
            assert (image[outside] == (0 if mask[channel] else expected[outside])).all()
    assert any((maps[:, 0] < 0).any() for _, maps in seen)


def test_batches_of_a_real_store(prepared):
    settings = params()
    cases = prepared.cases.training
    held = tiers.hold(prepared.store, cases, settings, torch.device("cpu"))
    batch = Feed(prepared.store, cases[:3], cases[3:], settings.train, held).training(0)
    assert batch.image.shape == (2, 1, 16, 16, 16)
    assert set(batch.label.unique().tolist()) <= {0, 1, 2, 3}
    assert {name for name, _ in batch.sources} <= set(cases[:3])


# a cascade: what the stage before segmented


def cascade(labels=FOUR, segmented=lambda case: case.label, **changes):
    """A feed whose cases have a segmentation of the stage before; by default the label itself."""
    plan = planned([8, 8, 8], previous_stage="3d_lowres")
    cases = [random_case((20, 20, 20), 2, seed, labels) for seed in range(6)]
    content = {f"c{i}": replace(case, previous=segmented(case).astype(np.int16)) for i, case in enumerate(cases)}
    cases = Cases(labels=labels, channel_names=["a", "b"], partly={})
    return feed_of(Store(content=content, planned=plan, cases=cases), **changes)


def without_change(monkeypatch):
    monkeypatch.setattr(previous, "draw", lambda rng, n: previous.Drawn([], []))


def masks_of(label, n):
    return (label[:, None] == torch.arange(1, n + 1).view(1, -1, 1, 1, 1)).float()


def test_each_class_of_the_stage_before_is_an_input(monkeypatch):
    """It goes the same way as the label: equal before, equal after every rotation, scale and mirroring."""
    without_change(monkeypatch)
    one = cascade()
    for step in range(30):
        batch = one.training(step)
        assert batch.image.shape == (2, 2 + 3, 8, 8, 8)
        assert batch.image.dtype == torch.float32
        assert torch.equal(batch.image[:, 2:], masks_of(batch.label, 3))
    assert batch.image[:, 2:].any()


def test_the_image_and_the_label_are_those_of_a_training_without_a_stage_before():
    one = cascade()
    content = {name: replace(case, previous=None) for name, case in one.store.content.items()}
    plain = feed_of(Store(content=content, planned=one.store.planned, cases=one.store.cases))
    for step in range(20):
        batch, expected = one.training(step), plain.training(step)
        assert torch.equal(batch.image[:, :2], expected.image)
        assert torch.equal(batch.label, expected.label)
        assert batch.sources == expected.sources


def test_the_stage_before_is_made_worse_in_training_only():
    one, n_changed = cascade(), 0
    for step in range(30):
        batch = one.training(step)
        n_changed += not torch.equal(batch.image[:, 2:], masks_of(batch.label, 3))
        assert set(batch.image[:, 2:].unique().tolist()) <= {0, 1}
        assert batch.image[:, 2:].sum(1).max() <= 1
        valid = one.validation(step)
        assert torch.equal(valid.image[:, 2:], masks_of(valid.label, 3))
        assert same(one.training(step), batch)
    assert 5 < n_changed < 28
    still = cascade(train__augment=False)
    for step in range(20):
        batch = still.training(step)
        assert torch.equal(batch.image[:, 2:], masks_of(batch.label, 3))


def test_beyond_the_volume_the_stage_before_has_nothing(monkeypatch):
    without_change(monkeypatch)
    one = cascade(segmented=lambda case: np.full_like(case.label, 2))
    seen = set()
    for step in range(20):
        batch = one.training(step)
        assert not batch.image[:, [2, 4]].any()
        outside = batch.image[:, 3] == 0
        assert not batch.label[outside].any()
        seen.add(bool(outside.any()))
    assert seen == {True, False}


def test_regions_and_ignored_voxels_of_the_stage_before_are_values():
    """One input per value that a segmentation may have, whatever the outputs of the network."""
    labels = labels_of({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    one = cascade(labels, segmented=lambda case: np.minimum(case.label, 2), train__augment=False)
    batch = one.training(0)
    assert batch.image.shape[1] == 2 + 2
    assert torch.equal(batch.image[:, 2:], masks_of(batch.label.clamp_max(2), 2))
    assert (batch.label == 3).any()


# the ignore label, cases that are annotated for some classes only


def test_the_ignore_label_stays_in_the_label():
    labels = labels_of({"background": 0, "one": 1, "two": 2, "ignore": 3})
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 4, (5, 5, 5)), np.ones((4, 4, 4), int))
    one = feed()
    one.store.cases.labels = labels
    for name in one.store.content:
        one.store.content[name] = stored_case(rng.normal(size=(1, 20, 20, 20)), label, labels)
    one = feed_of(one.store)
    found = torch.cat([one.training(step).label for step in range(5)])
    assert set(found.unique().tolist()) == {0, 1, 2, 3}


def test_what_a_case_is_annotated_for_comes_with_its_samples():
    one = feed()
    assert one.training(0).known is None
    one = feed()
    one.store.cases.partly |= {"c1": ["two"], "c2": ["one", "three"]}
    expected = {"c1": [True, False, True, False], "c2": [True, True, False, True]}
    seen = set()
    for step in range(8):
        for batch in (one.training(step), one.validation(step)):
            assert batch.known.dtype == torch.bool
            names = [name for name, _ in batch.sources]
            assert batch.known.tolist() == [expected.get(name, [True] * 4) for name in names]
            seen |= set(names)
    assert {"c0", "c1", "c2", "c4"} <= seen
    plain = feed()
    assert same(one.training(3), plain.training(3))


def test_of_regions_no_output_is_the_background():
    one = feed()
    one.store.cases.labels = labels_of({"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, [1, 2])
    one.store.cases.partly |= {name: ["core"] for name in one.store.content}
    assert one.training(0).known.tolist() == [[False, True]] * 2
