"""Resampling: the results of skimage's and scipy's general routines, which nnU-Net calls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.transform import resize

from segpipe.prepare import resample as module
from segpipe.prepare.resample import nearest_index, resample_image, resample_label, separate_axis, spline_matrix

ORACLE = np.load(Path(__file__).parent / "data" / "prepare_oracle.npz")
ORACLES = ("isotropic", "coarse", "coarse_down", "coarse_last", "flat", "short")
SHAPES = [
    ((20, 30, 25), (29, 41, 33)),
    ((20, 30, 25), (13, 17, 11)),
    ((21, 31, 17), (21, 31, 40)),
    ((9, 64, 64), (12, 50, 77)),
    ((7, 5, 3), (14, 10, 6)),
    ((12, 16, 20), (6, 8, 10)),
    ((1, 33, 21), (1, 40, 20)),
    ((1, 2, 3), (4, 5, 6)),
    ((5, 1, 2), (9, 3, 1)),
]


def smooth(shape: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """An image with structure: smoothed noise on a ramp."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1, mode="nearest")
    return (100 + 50 * noise / max(noise.std(), 1e-6) + np.arange(shape[-1])).astype(np.float32)


def of_skimage(channel: NDArray[np.generic], shape: Sequence[int], order: int) -> NDArray[np.float64]:
    return resize(channel.astype(np.float64), shape, order, mode="edge", anti_aliasing=False)


def of_nnunet(
    channel: NDArray[np.generic], shape: Sequence[int], separate: int | None, order: int = 3
) -> NDArray[np.float64]:
    """Whole volumes by `resize`; with a coarse axis slice by slice, then nearest neighbour between the slices."""
    if separate is None:
        return of_skimage(channel, shape, order)
    in_plane = [n for axis, n in enumerate(shape) if axis != separate]
    slices = [of_skimage(slice_, in_plane, order) for slice_ in np.moveaxis(channel, separate, 0)]
    stacked = np.stack(slices, axis=separate)
    scale = stacked.shape[separate] / shape[separate]
    places = np.mgrid[tuple(slice(n) for n in shape)].astype(float)
    places[separate] = scale * (places[separate] + 0.5) - 0.5
    return map_coordinates(stacked, places, order=0, mode="nearest")


def difference(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Mean absolute difference in standard deviations."""
    return float(np.abs(found - expected).mean() / max(expected.std(), 1e-6))


@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("separate", [None, 0, 1, 2])
def test_images_are_those_of_skimage(
    old: tuple[int, ...], new: tuple[int, ...], order: int, separate: int | None
) -> None:
    image = np.stack([smooth(old, seed) for seed in (1, 2)])
    found = resample_image(image, new, separate, order)
    assert found.shape == (2, *new)
    assert found.dtype == np.float32
    for channel, result in zip(image, found, strict=True):
        expected = of_nnunet(channel, new, separate, order)
        assert difference(result, expected) < 1e-3
        np.testing.assert_allclose(result, expected, atol=2e-3 * channel.std() + 1e-3)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize(("kind", "order"), [("image", 3), ("logits", 1)])
def test_images_and_logits_are_those_of_nnunet(name: str, kind: str, order: int) -> None:
    image, expected = ORACLE[f"{name}_image"], ORACLE[f"{name}_resampled_{kind}"]
    found = resample_image(image, expected.shape[1:], separate_axis(*ORACLE[f"{name}_spacings_mm"]), order)
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("name", ORACLES)
def test_labels_are_those_of_nnunet(name: str) -> None:
    expected = ORACLE[f"{name}_resampled_label"]
    separate = separate_axis(*ORACLE[f"{name}_spacings_mm"])
    np.testing.assert_array_equal(resample_label(ORACLE[f"{name}_label"], expected.shape, separate), expected)


def test_an_edge_does_not_ring_out_of_range() -> None:
    """A spline overshoots at a step; values stay within those of the channel."""
    image = np.zeros((1, 6, 20, 20), np.float32)
    image[:, :, 10:] = 1000
    found = resample_image(image, (6, 33, 27), None)
    assert (found.min(), found.max()) == (0, 1000)
    np.testing.assert_allclose(found[0], of_skimage(image[0], (6, 33, 27), 3), atol=0.05)


def test_with_a_coarse_axis_the_range_is_that_of_each_slice() -> None:
    image = np.zeros((1, 3, 20, 20), np.float32)
    image[0, 1, 10:], image[0, 2, 10:] = 10, 1000
    found = resample_image(image, (3, 33, 27), 0)
    assert [float(slice_.max()) for slice_ in found[0]] == [0, 10, 1000]
    np.testing.assert_allclose(found[0], of_nnunet(image[0], (3, 33, 27), 0), atol=0.05)


@pytest.mark.parametrize("separate", [None, 0])
def test_nothing_to_do_returns_the_same(separate: int | None) -> None:
    image, label = smooth((4, 5, 6))[None], np.ones((4, 5, 6), np.int16)
    assert resample_image(image, (4, 5, 6), separate) is image
    assert resample_label(label, (4, 5, 6), separate) is label


def test_a_spline_matrix_keeps_constants_and_interpolates_nodes() -> None:
    for n_in, n_out in ((5, 9), (9, 5), (7, 7), (1, 4), (30, 31)):
        for order in (1, 3):
            matrix = spline_matrix(n_in, n_out, order)
            assert matrix.shape == (n_out, n_in)
            np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(spline_matrix(6, 18, 3)[1::3], np.eye(6), atol=1e-5)  # centres that coincide


@pytest.mark.parametrize(("n_in", "n_out"), [(5, 9), (9, 5), (10, 20), (20, 10), (1, 3), (3, 1), (7, 7), (30, 41)])
def test_the_nearest_slice_is_that_of_scipy(n_in: int, n_out: int) -> None:
    places = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    expected = map_coordinates(np.arange(n_in), [places], order=0, mode="nearest")
    assert nearest_index(n_in, n_out).tolist() == expected.tolist()


# labels


def blobs(shape: Sequence[int], n_classes: int = 4) -> NDArray[np.int16]:
    """Regions of several classes with smooth borders, and -1 outside."""
    fields = [gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) for seed in range(n_classes)]
    label = np.argmax(fields, axis=0).astype(np.int16)
    label[:, :2] = -1
    return label


def per_label(label: NDArray[np.int16], shape: Sequence[int], separate: int | None) -> NDArray[np.float64]:
    """(labels, Z, Y, X): each label's mask, interpolated linearly on its own."""
    values = np.unique(label)
    return np.stack([of_nnunet((label == value).astype(float), shape, separate, 1) for value in values])


@pytest.mark.parametrize(("old", "new"), SHAPES)
@pytest.mark.parametrize("separate", [None, 0, 2])
def test_the_label_with_the_largest_share_wins(
    old: tuple[int, ...], new: tuple[int, ...], separate: int | None
) -> None:
    label = blobs(old)
    found = resample_label(label, new, separate)
    assert (found.shape, found.dtype) == (new, np.int16)
    shares, values = per_label(label, new, separate), np.unique(label)
    share_of_found = np.take_along_axis(shares, np.searchsorted(values, found)[None], 0)[0]
    np.testing.assert_allclose(share_of_found, shares.max(axis=0), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), SHAPES[:6])
def test_where_nnunet_decides_the_labels_are_its_own(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """nnU-Net takes the label whose share is at least a half, and 0 where none has that much."""
    label = blobs(old)
    found, shares = resample_label(label, new, None), per_label(label, new, None)
    decided = shares.max(axis=0) > 0.5 + 1e-6
    assert decided.mean() > 0.8
    assert (found[decided] == np.unique(label)[shares.argmax(axis=0)][decided]).all()


def test_ties_go_to_the_nearest_voxel() -> None:
    for labels in ([1, 2], [2, 1]):  # half way between two voxels the later one counts as the nearest
        assert resample_label(np.array([[labels]], np.int16), (1, 1, 1), None).item() == labels[1]
    checkers = (np.indices((1, 6, 6)).sum(axis=0) % 2 + 1).astype(np.int16)
    np.testing.assert_array_equal(resample_label(checkers, (1, 18, 18), None)[:, 1::3, 1::3], checkers)


def test_a_coarse_axis_invents_no_slices_between() -> None:
    label = np.zeros((2, 8, 8), np.int16)
    label[1] = 3
    found = resample_label(label, (7, 12, 12), 0)
    assert [np.unique(slice_).tolist() for slice_ in found] == [[0]] * 3 + [[3]] * 4


@pytest.mark.parametrize("separate", [None, 0])
def test_blocks_leave_no_seams(monkeypatch: pytest.MonkeyPatch, separate: int | None) -> None:
    """One block, and blocks smaller than what a spline reaches."""
    image, label = smooth((30, 41, 37))[None], blobs((30, 41, 37), 8)
    found = []
    for size in (1000, 7):
        monkeypatch.setattr(module, "IMAGE_BLOCK", size)
        monkeypatch.setattr(module, "LABEL_BLOCK", size)
        found.append(
            [
                resample(separate)
                for resample in (
                    lambda axis: resample_image(image, (47, 36, 61), axis),
                    lambda axis: resample_label(label, (47, 36, 61), axis),
                )
            ]
        )
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_no_label_is_invented() -> None:
    label = np.array([0, 0, 5, 5, 0, 0, 9, 9], np.int16).reshape(1, 1, 8)
    assert set(np.unique(resample_label(label, (1, 1, 21), None))) == {0, 5, 9}


# which axis is coarse


@pytest.mark.parametrize(
    ("old", "new", "axis"),
    [
        ((1, 1, 1), (2, 2, 2), None),
        ((3, 1, 1), (3, 1, 1), None),
        ((3.01, 1, 1), (1, 1, 1), 0),
        ((1, 1, 5), (1, 1, 1), 2),
        ((1, 1, 1), (1, 4, 1), 1),
        ((5, 1, 1), (1, 1, 9), 0),
        ((5, 5, 1), (1, 1, 1), None),
        ((5, 5, 1), (9, 1, 1), None),
        ((999, 1, 1), (999, 2, 2), 0),
    ],
)
def test_the_old_spacing_decides_then_the_new(old: tuple[float, ...], new: tuple[float, ...], axis: int | None) -> None:
    assert separate_axis(old, new) == axis
