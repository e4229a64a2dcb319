"""Boxes of a case: the same voxels wherever they are held."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import random_case

from segpipe.training.held import IN_FILES, PADDING_LABEL, TYPES, HeldCase, Place, sent
from segpipe.training.sampling import Box

CPU = torch.device("cpu")
MEMORY = Place(CPU, torch.int16, CPU, pin=False)
SMALL = Place(CPU, torch.int8, CPU, pin=False)
SHAPE = (9, 12, 10)

BOXES = {
    "inside": Box((2, 3, 1), (4, 5, 6)),
    "all of it": Box((0, 0, 0), SHAPE),
    "larger": Box((-2, -1, -3), (14, 15, 16)),
    "over one side": Box((2, 3, 6), (4, 5, 6)),
    "over a corner": Box((-2, 9, -4), (5, 6, 7)),
    "touching from before": Box((-4, 2, 2), (4, 5, 5)),
    "touching from behind": Box((2, 12, 2), (4, 5, 5)),
    "before": Box((2, 2, -7), (4, 5, 5)),
    "far before": Box((2, 2, -20), (4, 5, 5)),
    "far behind": Box((40, 2, 2), (4, 5, 5)),
    "one slice": Box((3, -2, -2), (1, 16, 14)),
}


def stored(n_channels=2):
    case = random_case(SHAPE, n_channels, seed=3)
    return replace(case, previous=np.roll(case.label, 2, axis=1))


def cut(array, box, value):
    """As simple as can be: far more padding than any box needs, then one slice."""
    wide = np.pad(array, 50, constant_values=value)
    return wide[tuple(slice(a + 50, a + 50 + n) for a, n in zip(box.start, box.size, strict=True))]


@pytest.mark.parametrize("place", [IN_FILES, MEMORY, SMALL], ids=["files", "memory", "int8"])
@pytest.mark.parametrize("name", BOXES)
def test_a_box_is_what_lies_in_it_and_padding_around(name, place):
    case, box = stored(), BOXES[name]
    image, maps = HeldCase.of(case, place).read(box)
    assert (image.dtype, maps.dtype) == (torch.float32, torch.int16)
    assert (image.shape, maps.shape) == ((2, *box.size), (2, *box.size))
    for channel, expected in zip(image, case.image, strict=True):
        assert np.array_equal(channel, cut(expected, box, 0))
    for one, expected in zip(maps, (case.label, case.previous), strict=True):
        assert np.array_equal(one, cut(expected, box, PADDING_LABEL))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("of", [Box((3, 2, 2), (3, 8, 4)), Box((-3, 4, -3), (7, 20, 6)), Box((20, 2, 2), (3, 3, 3))])
def test_of_a_box_no_voxel_beyond_another_is_read(name, of):
    case, box = stored(), BOXES[name]
    seen = np.zeros(SHAPE, bool)
    seen[tuple(slice(max(a, 0), max(a + n, 0)) for a, n in zip(of.start, of.size, strict=True))] = True
    image, maps = HeldCase.of(case, MEMORY).read(box, of)
    assert np.array_equal(image[1], cut(np.where(seen, case.image[1], 0), box, 0))
    for one, whole in zip(maps, (case.label, case.previous), strict=True):
        assert np.array_equal(one, cut(np.where(seen, whole, PADDING_LABEL), box, PADDING_LABEL))


@pytest.mark.parametrize("place", [IN_FILES, MEMORY], ids=["files", "memory"])
@pytest.mark.parametrize("name", ["inside", "all of it"])
def test_what_is_read_may_be_changed_without_changing_the_case(name, place):
    case = HeldCase.of(stored(), place)
    before = [part.clone() for part in case.read(BOXES[name])]
    for part in case.read(BOXES[name]):
        part.fill_(7)
    assert all(torch.equal(*pair) for pair in zip(before, case.read(BOXES[name]), strict=True))


def test_what_is_held_in_memory_is_no_longer_the_file():
    """Nor does anything of it stay mapped: the files may lie on a disk that is slow or gone."""
    case = stored()
    mapped, held = HeldCase.of(case), HeldCase.of(case, MEMORY)
    case.image[:], case.label[:], case.previous[:] = 5, 2, 1
    image, maps = mapped.read(BOXES["inside"])
    assert (image == 5).all() and (maps[0] == 2).all() and (maps[1] == 1).all()
    image, maps = held.read(BOXES["inside"])
    assert not (image == 5).any() and not (maps[0] == 2).all() and not (maps[1] == 1).all()


def test_small_label_maps_take_a_byte_per_voxel():
    held = HeldCase.of(stored(), SMALL)
    assert [one.dtype for one in held.maps] == [torch.int8] * 2
    assert held.image.dtype == torch.float32
    assert held.maps[0].min() == -1


@pytest.mark.parametrize(("pin", "patches", "pinned"), [(True, "meta", 2), (False, "meta", 0), (True, "cpu", 0)])
@pytest.mark.parametrize("voxels", [None, CPU])
def test_patches_are_page_locked_on_their_way_to_another_device_alone(monkeypatch, pin, patches, pinned, voxels):
    asked, empty = [], torch.empty

    def noted(*args, pin_memory, **named):
        asked.append(pin_memory)
        return empty(*args, **named)

    monkeypatch.setattr(torch, "empty", noted)
    held = HeldCase.of(stored(), Place(voxels, torch.int16, torch.device(patches), pin))
    image, maps = held.read(BOXES["over a corner"])
    assert sum(asked) == pinned
    assert image.device.type == maps.device.type == patches


def test_a_place_on_the_batches_device_reads_there():
    """Memory is taken where the voxels lie: nothing goes through the host."""
    meta = torch.device("meta")
    held = HeldCase.of(stored(), Place(meta, torch.int8, meta, pin=True))
    image, maps = held.read(BOXES["over a corner"])
    assert image.device == maps.device == meta
    assert held.shape == SHAPE


@pytest.mark.parametrize("to", ["cpu", "meta"])
def test_small_arrays_are_sent_in_one_copy(monkeypatch, to):
    """Of any type and length: what follows an odd number of bytes begins where its type may."""
    rng, copies, whole = np.random.default_rng(0), [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda given, *args, **named: copies.append(args) or whole(given, *args))
    shapes = [(3,), (2, 1, 5), (1,), (4, 4)]
    arrays = [
        rng.integers(0, 2, shape).astype(name) * 3 for shape in shapes for name in TYPES if name != np.dtype(bool)
    ]
    arrays = [*arrays, *(rng.random(n) < 0.5 for n in (1, 5)), *arrays[::-1], rng.random((4, 3)).astype(np.float32).T]
    found = sent(arrays, torch.device(to))
    assert copies == [(torch.device(to),)]
    for one, expected in zip(found, arrays, strict=True):
        assert (one.device.type, tuple(one.shape), one.dtype) == (to, expected.shape, TYPES[expected.dtype])
        assert to == "meta" or np.array_equal(one, expected)
