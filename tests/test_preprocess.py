"""One case to the network's grid and back: transposition, crop, mask, normalisation, spacing."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import OUTSIDE, Grid, preprocess
from segpipe.prepare.resample import resample_image, resample_label

SHAPE = (14, 12, 16)  # of the file, (Z, Y, X)
SPACING_MM = (1.0, 2.0, 1.5)
BOX = (slice(2, 12), slice(1, 11), slice(4, 15))  # the nonzero region
FORWARD = [1, 0, 2]


def configuration(spacing_mm: list[float], scheme: str = "none", use_mask: bool = False) -> Configuration:
    n_axes = len(spacing_mm)
    return Configuration(
        architecture="plain",
        spacing_mm=spacing_mm,
        patch_size=[8] * n_axes,
        batch_size=2,
        median_shape=[12.0] * n_axes,
        features_per_stage=[4],
        kernel_sizes=[[3] * n_axes],
        strides=[[1] * n_axes],
        n_conv_per_stage=[2],
        n_conv_per_stage_decoder=[],
        normalisation=[scheme] * 2,
        use_mask_for_norm=[use_mask] * 2,
        batch_dice=False,
        previous_stage=None,
        reasons=[],
    )


def plan(forward: list[int]) -> dict[str, Any]:
    intensities = {"mean": 3.0, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 5.0}
    return {
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "intensities": {"0": intensities, "1": intensities},
    }


@pytest.fixture
def image() -> NDArray[np.float32]:
    """Two channels, zero outside the box, with a hole inside."""
    array = np.zeros((2, *SHAPE), np.float32)
    array[:, *BOX] = np.random.default_rng(0).uniform(1, 9, (2, 10, 10, 11))
    array[:, 6:8, 5:7, 8:10] = 0
    return array


@pytest.fixture
def label() -> NDArray[np.int16]:
    array = np.zeros(SHAPE, np.int16)
    array[4:9, 3:9, 6:12] = 1
    array[6:8, 5:8, 7:10] = 2
    return array


# there


def test_at_the_same_spacing_a_case_is_only_cropped(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    prepared = preprocess(image, label, SPACING_MM, plan([0, 1, 2]), configuration(list(SPACING_MM)))
    np.testing.assert_array_equal(prepared.image, image[:, *BOX])
    np.testing.assert_array_equal(prepared.label, label[BOX])
    assert prepared.grid.crop == ((2, 12), (1, 11), (4, 15))
    assert (prepared.image.dtype, prepared.label.dtype) == (np.float32, np.int16)


def test_axes_come_in_the_plans_order(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    prepared = preprocess(image, label, SPACING_MM, plan(FORWARD), configuration([2.0, 1.0, 1.5]))
    np.testing.assert_array_equal(prepared.image, image[:, *BOX].transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(prepared.label, label[BOX].transpose(1, 0, 2))
    assert prepared.grid.spacing_mm == (2.0, 1.0, 1.5)
    assert prepared.image.flags.c_contiguous


def test_spacing_decides_the_shape(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    prepared = preprocess(image, label, SPACING_MM, plan(FORWARD), configuration([1.0, 2.0, 1.5]))
    assert prepared.image.shape == (2, 20, 5, 11)
    assert prepared.label is not None
    assert prepared.label.shape == (20, 5, 11)
    cropped = image[:, *BOX].transpose(0, 2, 1, 3)
    np.testing.assert_allclose(prepared.image, resample_image(cropped, (20, 5, 11), None), atol=1e-5)
    np.testing.assert_array_equal(prepared.label, resample_label(label[BOX].transpose(1, 0, 2), (20, 5, 11), None))


def test_slices_of_2d_keep_their_distance(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    prepared = preprocess(image, label, SPACING_MM, plan(FORWARD), configuration([0.5, 0.75]))
    assert prepared.image.shape == (2, 10, 20, 22)
    assert prepared.grid.target_mm == (2.0, 0.5, 0.75)


def test_a_coarse_axis_is_resampled_on_its_own(image: NDArray[np.float32]) -> None:
    prepared = preprocess(image, None, (4.0, 1.0, 1.0), plan([0, 1, 2]), configuration([2.0, 0.5, 0.5]))
    np.testing.assert_allclose(prepared.image, resample_image(image[:, *BOX], (20, 20, 22), 0), atol=1e-5)
    np.testing.assert_array_equal(prepared.image[:, 0::2], prepared.image[:, 1::2])


def test_outside_the_body_the_label_is_minus_one(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    image[:, 2:5, 1:5, 4:15] = 0  # a corner of the box that is open to the outside
    label[2, 1, 4] = 1  # labelled although the image is empty there
    prepared = preprocess(image, label, SPACING_MM, plan([0, 1, 2]), configuration(list(SPACING_MM)))
    assert prepared.label is not None
    outside = np.zeros((10, 10, 11), bool)
    outside[:3, :4] = True
    outside &= label[BOX] == 0
    np.testing.assert_array_equal(prepared.label, np.where(outside, OUTSIDE, label[BOX]))
    assert OUTSIDE == -1
    assert prepared.label[0, 0, 0] == 1
    assert not (prepared.label[4:6, 4:6, 4:6] == OUTSIDE).any()  # the hole is inside


@pytest.mark.parametrize("use_mask", [False, True])
def test_statistics_are_of_the_body_where_the_plan_says_so(image: NDArray[np.float32], use_mask: bool) -> None:
    image[:, 2:5, 1:5, 4:15] = 0
    found = preprocess(image, None, SPACING_MM, plan([0, 1, 2]), configuration(list(SPACING_MM), "zscore", use_mask))
    inside = np.ones((10, 10, 11), bool)
    if use_mask:
        inside[:3, :4] = False
    for channel, result in zip(image[:, *BOX], found.image, strict=True):
        expected = (channel - channel[inside].mean()) / channel[inside].std()
        np.testing.assert_allclose(result[inside], expected[inside], atol=1e-4)
        assert (result[~inside] == 0).all()


def test_the_label_widens_the_mask_of_the_statistics(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    image[:, 2:5, 1:5, 4:15] = 0
    label[2:5, 1:5, 4:15] = 1
    planned = configuration(list(SPACING_MM), "zscore", True)
    with_label = preprocess(image, label, SPACING_MM, plan([0, 1, 2]), planned)
    full = preprocess(image, None, SPACING_MM, plan([0, 1, 2]), configuration(list(SPACING_MM), "zscore"))
    np.testing.assert_allclose(with_label.image, full.image, atol=1e-4)


def test_ct_takes_the_datasets_statistics_of_its_channel(image: NDArray[np.float32]) -> None:
    planned = plan([0, 1, 2])
    planned["intensities"]["1"] = {"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}
    found = preprocess(image, None, SPACING_MM, planned, configuration(list(SPACING_MM), "ct")).image
    np.testing.assert_allclose(found[0], (image[0][BOX].clip(1, 5) - 3) / 2, atol=1e-6)
    np.testing.assert_allclose(found[1], image[1][BOX].clip(0, 2), atol=1e-6)


def test_normalisation_comes_before_resampling(image: NDArray[np.float32]) -> None:
    found = preprocess(image, None, SPACING_MM, plan([0, 1, 2]), configuration([0.7, 1.1, 1.3], "zscore")).image
    box = image[:, *BOX].astype(np.float64)
    normalised = (box - box.mean((1, 2, 3), keepdims=True)) / box.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, resample_image(normalised.astype(np.float32), found.shape[1:], None), atol=1e-4)


@pytest.mark.parametrize("value", [0, 7])
def test_an_empty_or_full_image_is_kept_whole(value: float) -> None:
    image = np.full((2, 5, 6, 7), value, np.float32)
    prepared = preprocess(image, None, (1, 1, 1), plan([0, 1, 2]), configuration([1.0] * 3, "zscore", True))
    assert prepared.image.shape == (2, 5, 6, 7)
    assert np.isfinite(prepared.image).all()


def test_a_thin_case_keeps_a_slice() -> None:
    image = np.ones((2, 1, 40, 40), np.float32)
    label = np.ones((1, 40, 40), np.int16)
    prepared = preprocess(image, label, (1.0, 1.0, 1.0), plan([0, 1, 2]), configuration([5.0, 2.0, 2.0]))
    assert prepared.image.shape == (2, 1, 20, 20)
    assert prepared.label is not None
    assert (prepared.label == 1).all()


def test_the_inputs_stay_as_they_are(image: NDArray[np.float32], label: NDArray[np.int16]) -> None:
    image_before, label_before = image.copy(), label.copy()
    preprocess(image, label, SPACING_MM, plan(FORWARD), configuration([1.0, 1.0, 1.0], "zscore", True))
    np.testing.assert_array_equal(image, image_before)
    np.testing.assert_array_equal(label, label_before)


# and back


@pytest.mark.parametrize("forward", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
@pytest.mark.parametrize("spacing_mm", [[1.0, 1.3, 2.1], [0.6, 0.6, 0.6], [0.9, 1.1]])
def test_the_grid_leads_back_to_the_file(
    image: NDArray[np.float32], label: NDArray[np.int16], forward: list[int], spacing_mm: list[float]
) -> None:
    grid = preprocess(image, label, SPACING_MM, plan(forward), configuration(spacing_mm)).grid
    assert grid.shape == tuple(SHAPE[axis] for axis in forward)
    assert grid.cropped_shape == tuple((10, 10, 11)[axis] for axis in forward)
    whole = np.zeros(grid.shape, np.int16)
    whole[tuple(slice(*edge) for edge in grid.crop)] = label[BOX].transpose(forward)
    np.testing.assert_array_equal(whole.transpose(grid.transpose_backward), label)
    assert tuple(np.array(grid.spacing_mm)[list(grid.transpose_backward)]) == SPACING_MM


@pytest.mark.parametrize("forward", [[0, 1, 2], [2, 0, 1]])
def test_a_label_comes_back_through_a_finer_grid(label: NDArray[np.int16], forward: list[int]) -> None:
    """There and back at twice the resolution: every voxel as before."""
    image = np.ones((2, *SHAPE), np.float32)
    spacing_mm = [SPACING_MM[axis] / 2 for axis in forward]
    prepared = preprocess(image, label, SPACING_MM, plan(forward), configuration(spacing_mm))
    assert prepared.label is not None
    assert prepared.label.shape == tuple(2 * SHAPE[axis] for axis in forward)
    back = resample_label(prepared.label, prepared.grid.cropped_shape, prepared.grid.separate)
    np.testing.assert_array_equal(back.transpose(prepared.grid.transpose_backward), label)


def test_a_grid_survives_json(image: NDArray[np.float32]) -> None:
    grid = preprocess(image, None, SPACING_MM, plan(FORWARD), configuration([1.0, 1.0, 1.0])).grid
    assert Grid.from_json(json.loads(json.dumps(asdict(grid)))) == grid


def test_the_way_back_has_its_own_coarse_axis() -> None:
    grid = Grid((4, 20, 20), ((0, 4), (0, 20), (0, 20)), (1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (0, 1, 2))
    assert grid.separate == 1
    assert Grid(grid.shape, grid.crop, (4.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0, 1, 2)).separate == 0
    assert Grid(grid.shape, grid.crop, (4.0, 1.0, 1.0), (1.0, 5.0, 1.0), (0, 1, 2)).separate == 1
    assert Grid(grid.shape, grid.crop, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0, 1, 2)).separate is None
