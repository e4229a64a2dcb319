"""From which memory a training is fed: what decides it, what is said of it, and that nothing else depends on it."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory import feed_of, run, store, training, weights
from tiny import labels_of, params, planned, random_case

from segpipe import gpus, lease, machine
from segpipe.errors import SegpipeError
from segpipe.training import tiers
from segpipe.training.held import HeldCase, Place
from segpipe.training.tiers import Room, choose

GB = 10**9


def room(dataset, planned=8, device_free=None, host_free=64, gpus=1):
    return Room(dataset * GB, planned * GB, None if device_free is None else device_free * GB, host_free * GB, gpus)


@pytest.mark.parametrize(
    ("on", "there", "tier"),
    [
        ("cuda", room(10, device_free=140), "device"),
        ("cuda", room(66, device_free=140, host_free=900), "device"),  # half of what the training leaves
        ("cuda", room(67, device_free=140, host_free=900), "host"),
        ("cuda", room(10, planned=24, device_free=40, host_free=20), "host"),
        ("cuda", room(10, planned=24, device_free=40, host_free=19), "file"),
        ("cuda", room(10, planned=24, device_free=40, host_free=80, gpus=8), "host"),  # each may train a fold
        ("cuda", room(10, planned=24, device_free=40, host_free=79, gpus=8), "file"),
        ("cuda", room(1, device_free=8), "host"),  # planned for all that there is
        ("cuda", room(1, planned=24, device_free=8), "host"),  # for more than there is
        ("cuda", room(1, planned=24, device_free=8, host_free=0), "file"),
        ("mps", room(10), "host"),
        ("mps", room(33), "file"),
        ("cpu", room(0), "file"),
    ],
)
def test_auto_takes_the_fastest_tier_with_room_for_two(on, there, tier):
    assert choose("auto", on, there).tier == tier


def test_the_reason_has_the_numbers():
    assert choose("auto", "cuda", room(10, device_free=140)).reason == (
        "140 GB are free on the GPU, 8 of them planned for the training"
    )
    reason = choose("auto", "cuda", room(70, device_free=140, host_free=100)).reason
    assert reason == "140 GB are free on the GPU, 8 of them planned for the training; 100 GB are free in memory"
    assert "page cache" in choose("auto", "cpu", room(1)).reason
    assert choose("host", "cuda", room(1, device_free=1)).reason == "runtime.feeding: host"


@pytest.mark.parametrize("wanted", ["device", "host", "file"])
@pytest.mark.parametrize(("on", "device_free"), [("cuda", 11), ("cpu", None)])
def test_what_is_asked_for_is_taken_where_it_fits_at_all(wanted, on, device_free):
    assert choose(wanted, on, room(10, device_free=device_free, host_free=11)).tier == wanted


@pytest.mark.parametrize(
    ("wanted", "on", "there", "found", "expected"),
    [
        ("device", "cuda", room(12, device_free=11), "12 GB", "11 GB"),
        ("device", "cpu", room(12, host_free=11), "12 GB", "11 GB"),
        ("device", "mps", room(1), "the device is mps", "cuda or cpu"),
        ("host", "cuda", room(12, device_free=99, host_free=11), "12 GB", "11 GB"),
    ],
)
def test_what_is_asked_for_and_does_not_fit_is_refused(wanted, on, there, found, expected):
    with pytest.raises(SegpipeError) as error:
        choose(wanted, on, there)
    _, where, *rest = str(error.value).splitlines()
    assert where.endswith(f"params.yaml: runtime.feeding: {wanted}")
    assert [found in rest[0], expected in rest[1]] == [True, True]
    assert "runtime.feeding: auto" in rest[2]


# what is measured


@pytest.mark.parametrize(("n_values", "n_bytes"), [(4, 1), (128, 1), (129, 2)])
@pytest.mark.parametrize("previous", [False, True])
def test_the_dataset_is_counted_as_it_is_held(n_values, n_bytes, previous, monkeypatch):
    """Images of four bytes, label maps of one where the labels allow."""
    content = store(n_cases=6, shape=(14, 15, 16))
    content.cases.labels = labels_of({"background": 0, **{f"class {i}": i for i in range(1, n_values)}})
    if previous:
        content.content = {name: replace(case, previous=case.label) for name, case in content.content.items()}
    held = tiers.hold(content, ["c0", "c1", "c4", "c1"], params(runtime__feeding="host"), torch.device("cpu"))
    assert held.room.dataset == 3 * 14 * 15 * 16 * (4 + n_bytes * (1 + previous))
    memory = [one for case in held.cases.values() for one in (case.image, *case.maps)]
    assert sum(one.nbytes for one in memory) == held.room.dataset
    assert list(held.cases) == ["c0", "c1", "c4"]


@pytest.mark.parametrize(
    ("changes", "planned_gb"), [({}, 8), ({"plan__preset": "ResEncL"}, 24), ({"plan__gpu_memory_gb": 11.0}, 11)]
)
def test_the_training_takes_what_the_plan_says(changes, planned_gb):
    held = tiers.hold(store(), ["c0"], params(**changes), torch.device("cpu"))
    assert held.room.planned == planned_gb * GB


def test_what_was_chosen_is_said_in_one_line_and_recorded(monkeypatch, caplog):
    monkeypatch.setattr(machine, "available_bytes", lambda: 64 * GB)
    caplog.set_level("INFO")
    held = training(runtime__feeding="host").feed.held
    lines = [record.message for record in caplog.records if "feeding" in record.message]
    assert lines == ["feeding from tier host: cases of 5.49e-05 GB (runtime.feeding: host)"]
    assert held.facts() == {
        "tier": "host",
        "reason": "runtime.feeding: host",
        "dataset_bytes": 4 * 14**3 * 5,
        "planned_bytes": 8 * GB,
        "device_free_bytes": None,
        "host_free_bytes": 64 * GB,
        "gpus": len(gpus.installed()),
    }


# nothing depends on it


def cascade_store():
    """Partly annotated, with two channels and what a stage before segmented."""
    content = store(planned(normalisation=["zscore"] * 2, use_mask_for_norm=[True, False]), 6, (20, 18, 22))
    content.content = {
        name: replace(random_case((20, 18, 22), 2, seed), previous=np.maximum(case.label, 0))
        for seed, (name, case) in enumerate(content.content.items())
    }
    content.cases.partly = {"c1": ["two"]}
    return content


@pytest.mark.parametrize("content", [store(n_cases=6, shape=(20, 20, 20)), cascade_store()], ids=["plain", "cascade"])
def test_batches_are_the_same_bit_by_bit(content):
    feeds = [feed_of(content, runtime__feeding=tier) for tier in ("file", "host", "device")]
    assert [one.held.choice.tier for one in feeds] == ["file", "host", "device"]
    for kind in ("training", "validation"):
        for number in range(12):
            one, *others = (getattr(feed, kind)(number) for feed in feeds)
            for other in others:
                assert torch.equal(one.image, other.image)
                assert torch.equal(one.label, other.label)
                assert one.sources == other.sources
                assert one.known is None or torch.equal(one.known, other.known)


def test_trainings_are_the_same_bit_by_bit():
    one, *others = (
        run(training(runtime__feeding=tier, runtime__feed_threads=threads, train__epochs=2))
        for tier, threads in (("file", 0), ("host", 2), ("device", 1))
    )
    for other in others:
        assert one.rows == other.rows
        assert torch.equal(weights(one.network), weights(other.network))


# loading


@pytest.fixture
def full_after(monkeypatch):
    """Lets the device be full after so many cases. There is none: the host stands for it until it is left."""

    def make(n):
        got, of, off_device = [], HeldCase.of, tiers.off_device

        def counted(stored, place):
            got.append(place)
            if n < len(got) < 100:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return of(stored, place)

        def left(*given):
            got.extend([None] * 100)
            return off_device(*given)

        monkeypatch.setattr(HeldCase, "of", counted)
        monkeypatch.setattr(tiers, "off_device", left)

    monkeypatch.setattr(tiers, "choose", lambda wanted, on, there: tiers.Choice("device", "as it seemed"))
    return make


@pytest.mark.parametrize(("host_free", "tier"), [(64 * GB, "host"), (1000, "file")])
def test_a_device_that_is_full_after_all_is_left_for_the_next_tier(full_after, monkeypatch, caplog, host_free, tier):
    monkeypatch.setattr(machine, "available_bytes", lambda: host_free)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    emptied, promised = [], []
    monkeypatch.setattr(lease, "promise", promised.append)
    caplog.set_level("INFO")
    full_after(3)
    held = tiers.hold(store(n_cases=6), [f"c{i}" for i in range(6)], params(), torch.device("cpu"))
    assert promised == [8 * GB + held.room.dataset, 8 * GB]  # to those who share the device
    assert held.choice.tier == tier
    assert "the GPU was full before all cases were there" in caplog.records[-1].message
    assert len(held.cases) == 6
    assert emptied == [1]


def test_a_device_that_was_asked_for_and_is_full_after_all_is_refused(full_after):
    full_after(3)
    with pytest.raises(SegpipeError, match=r"runtime\.feeding: device\n.*GPU was full before all of them were there"):
        tiers.hold(store(n_cases=6), ["c0", "c1", "c2", "c3"], params(runtime__feeding="device"), torch.device("cpu"))


def test_an_error_while_loading_ends_it(monkeypatch):
    asked = []

    def fails(stored, place):
        asked.append(1)
        raise OSError("disk")

    monkeypatch.setattr(HeldCase, "of", fails)
    monkeypatch.setattr(tiers, "LOADING_THREADS", 1)
    before, many = threading.active_count(), store(n_cases=2)
    many.content = {f"c{i}": many.content["c0"] for i in range(1000)}
    with pytest.raises(OSError, match="disk"):
        tiers.hold(many, many.content, params(runtime__feeding="host"), torch.device("cpu"))
    assert threading.active_count() == before
    assert len(asked) < len(many.content)


def test_a_device_has_all_cases_before_a_stream_reads_them(monkeypatch):
    done, cuda = [], torch.device("cuda")
    monkeypatch.setattr(HeldCase, "of", lambda stored, place: done.append(stored) or stored)
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    tiers._bring({"a": 1, "b": 2, "c": 3}, Place(cuda, torch.int8, cuda, pin=True))
    assert sorted(done[:3]) == [1, 2, 3]
    assert done[3:] == [cuda]


def test_a_long_load_says_how_far_it_is(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(tiers, "LINE_EVERY_S", -1.0)
    tiers.hold(store(), ["c0", "c1", "c2"], params(runtime__feeding="host"), torch.device("cpu"))
    assert [record.message for record in caplog.records][1:] == [f"{i} of 3 cases are there" for i in (1, 2, 3)]
