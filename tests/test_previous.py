"""What a cascade's training does to the segmentation of the stage before: how often, what, and never more than that."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from segpipe.training import previous
from segpipe.training.previous import LARGEST_SHARE, OPERATORS, Drawn, apply, draw
from segpipe.training.sampling import generator


def drawn(n, n_classes=3):
    return [draw(generator(0, 0, step, 0), n_classes) for step in range(n)]


def within(count, n, p):
    """Whether a count is a likely one: 4.5 standard deviations."""
    return abs(count - n * p) < 4.5 * np.sqrt(n * p * (1 - p))


def blobs(seed=0, shape=(18, 20, 16), n_classes=3):
    """Disjoint masks of random structures and single voxels."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 2) * 12 + 0.1 * noise
    label = np.clip(np.round(smooth), 0, n_classes)
    return torch.from_numpy((label == np.arange(1, n_classes + 1).reshape(-1, 1, 1, 1)).astype(np.float32))


# draws


def test_a_draw_is_a_function_of_its_generator():
    assert drawn(50) == drawn(50)
    assert len({str(one) for one in drawn(50)}) > 10


@pytest.mark.parametrize("n_classes", [1, 3])
def test_how_often_what_happens(n_classes):
    """Morphology with p 0.4 and a loss with p 0.2, and then to each class with p 0.5."""
    n = 4000
    found = drawn(n, n_classes)
    for kind, p in (("morphology", 0.4), ("losses", 0.2)):
        of_kind = [getattr(one, kind) for one in found]
        assert within(sum(bool(one) for one in of_kind), n, p * (1 - 0.5**n_classes))
        for index in range(n_classes):
            assert within(sum(index in [change[0] for change in one] for one in of_kind), n, p / 2)
        assert all(len({change[0] for change in one}) == len(one) for one in of_kind)
    both = sum(bool(one.morphology and one.losses) for one in found)
    assert within(both, n, 0.08 * (1 - 0.5**n_classes) ** 2)


def test_operators_radii_and_orders_are_drawn_evenly():
    changes = [change for one in drawn(6000) for change in one.morphology]
    for operator in OPERATORS:
        assert within(sum(change[1] == operator for change in changes), len(changes), 1 / 4)
    radii = np.array([change[2] for change in changes])
    assert 1 <= radii.min() < 1.1
    assert 7.9 < radii.max() <= 8
    assert within((radii < 4.5).sum(), len(radii), 1 / 2)
    orders = [[change[0] for change in one.morphology] for one in drawn(6000) if len(one.morphology) == 2]
    assert within(sum(a < b for a, b in orders), len(orders), 1 / 2)
    shares = np.array([share for one in drawn(6000) for _, share in one.losses])
    assert shares.min() >= 0
    assert shares.max() < 1
    assert within((shares < 0.5).sum(), len(shares), 1 / 2)


# what is done


def test_masks_stay_disjoint_zeros_and_ones():
    n_changed = 0
    for step, one in enumerate(drawn(60)):
        masks = blobs(step)
        before = masks.clone()
        result = apply(masks, one)
        assert torch.equal(masks, before)  # the argument stays as it was
        assert result.dtype == torch.float32
        assert result.shape == masks.shape
        assert set(result.unique().tolist()) <= {0, 1}
        assert result.sum(0).max() <= 1
        n_changed += not torch.equal(result, masks)
        assert torch.equal(apply(masks, one), result)
    assert n_changed > 15


def test_where_nothing_is_drawn_nothing_changes():
    masks = blobs()
    assert torch.equal(apply(masks, Drawn([], [])), masks)


def ball(radius):
    edge = int(radius)
    grid = np.indices([2 * edge + 1] * 3) - edge
    return (grid**2).sum(0) <= radius**2


def two_corners():
    """A small part of a patch: what is far from a mask need not be looked at."""
    mask = np.zeros((30, 28, 34), bool)
    mask[12:17, 13:20, 15:22] = mask[15:20, 10:15, 22:25] = True
    mask[18, 14, 24] = False
    return mask


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.3, 4.0])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("shape", ["everywhere", "small"])
def test_operators_are_scipys_with_a_ball(operator, radius, shape):
    """Beyond the patch is neither the class nor its absence, so that the patch's edge changes nothing."""
    mask = blobs(n_classes=1)[0].numpy() > 0 if shape == "everywhere" else two_corners()
    structure = ball(radius)

    def dilated(array):
        return ndimage.binary_dilation(array, structure)

    def eroded(array):
        return ndimage.binary_erosion(array, structure, border_value=1)

    expected = {
        "dilate": dilated(mask),
        "erode": eroded(mask),
        "close": eroded(dilated(mask)),
        "open": dilated(eroded(mask)),
    }[operator]
    result = apply(torch.from_numpy(mask[None].astype(np.float32)), Drawn([(0, operator, radius)], []))[0].numpy() > 0
    assert np.array_equal(result, expected)
    if shape == "everywhere":
        assert result.any()
        assert not np.array_equal(result, mask)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("full", [False, True])
def test_an_empty_and_a_full_mask_stay_what_they_are(operator, full):
    masks = torch.full((1, 6, 6, 6), float(full))
    assert torch.equal(apply(masks, Drawn([(0, operator, 2.0)], [])), masks)


def test_what_a_class_gains_the_others_lose():
    masks = blobs()
    result = apply(masks, Drawn([(1, "dilate", 2.0)], []))
    gained = (result[1] > masks[1]).bool()
    assert (masks[[0, 2]].sum(0)[gained] > 0).any()
    assert not result[[0, 2]][:, gained].any()
    assert torch.equal(result[[0, 2]][:, ~gained], masks[[0, 2]][:, ~gained])


def test_one_component_is_lost():
    masks = blobs(3)
    components, n = ndimage.label(masks[0], np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    small = [i + 1 for i in range(n) if sizes[i] < LARGEST_SHARE * components.size]
    assert 1 < len(small) < n
    lost = set()
    for share in np.linspace(0, 1, 50, endpoint=False):
        result = apply(masks, Drawn([], [(0, float(share))]))
        gone = np.unique(components[(masks[0] > result[0]).numpy()])
        assert len(gone) == 1
        assert (components == gone[0]).sum() == int((masks[0] - result[0]).sum())  # the whole of it
        assert torch.equal(result[1:], masks[1:])
        lost.add(int(gone[0]))
    assert lost == set(small)


def test_neighbours_across_a_corner_are_one_component():
    masks = torch.zeros(1, 6, 6, 6)
    masks[0, 1, 1, 1] = masks[0, 2, 2, 2] = 1
    assert not apply(masks, Drawn([], [(0, 0.9)])).any()


@pytest.mark.parametrize(("n_voxels", "kept"), [(150, True), (149, False), (600, True)])
def test_a_component_of_fifteen_percent_or_more_is_never_lost(n_voxels, kept):
    masks = torch.zeros(1, 10, 10, 10)
    masks.view(-1)[:n_voxels] = 1
    for share in (0.0, 0.5, 0.99):
        assert bool(apply(masks, Drawn([], [(0, share)])).any()) == kept


def test_of_an_absent_class_nothing_is_lost():
    masks = torch.zeros(2, 4, 4, 4)
    assert torch.equal(apply(masks, Drawn([], [(1, 0.3)])), masks)


def test_the_numbers_are_nnunets():
    assert (previous.RADIUS, previous.LARGEST_SHARE) == ((1.0, 8.0), 0.15)


def test_masks_of_a_device_are_changed_on_the_host_and_go_back(monkeypatch):
    moved = []
    to_host, to = torch.Tensor.cpu, torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append("host") or to_host(self))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: moved.append(args) or to(self, *args))
    masks = torch.zeros(1, 8, 8, 8)
    masks[0, 3:5, 3:5, 3:5] = 1
    changed = previous.apply(masks, previous.Drawn([(0, "dilate", 1.0)], []))
    assert moved == ["host", (masks.device,)]
    assert changed.sum() > masks.sum()
