"""From logits to the file's grid: nnU-Net's results, crop and transposition undone, what is saved."""

import numpy as np
import pytest
import torch
from predicted import on_file_grid
from skimage.transform import resize
from tiny import DATA, labels_of, wave

from segpipe.inference import export, softmax_file
from segpipe.prepare.preprocess import Grid

ORACLE = np.load(DATA / "core_oracle.npz")
THREE = labels_of({"background": 0, "one": 1, "two": 2})
# file shape, crop in the plan's order, file spacing, network's spacing, transposition: as data/make_core_oracle.py
EXPORTS = {
    "isotropic": ((9, 12, 10), ((1, 9), (2, 11), (0, 10)), (2.0, 1.0, 1.5), (1.4, 1.4, 1.4), (0, 1, 2)),
    "coarse": ((6, 12, 10), ((1, 6), (0, 12), (1, 10)), (6.0, 1.0, 1.2), (5.0, 1.3, 1.3), (0, 1, 2)),
    "turned": ((10, 12, 6), ((0, 5), (1, 10), (2, 12)), (1.2, 1.0, 6.0), (5.0, 1.3, 1.3), (2, 0, 1)),
}


def grid_of(shape, crop, spacing, target, forward):
    turned = [tuple(values[axis] for axis in forward) for values in (shape, spacing)]
    return Grid(turned[0], crop, turned[1], target, tuple(int(axis) for axis in np.argsort(forward)))


def logits_of(grid, n_classes=3):
    sizes = zip(grid.cropped_shape, grid.spacing_mm, grid.target_mm, strict=True)
    return 3 * wave(n_classes, *(round(n * a / b) for n, a, b in sizes), seed=0.37).numpy()


@pytest.mark.parametrize("name", EXPORTS)
def test_probabilities_and_segmentation_are_nnunets(name):
    grid = grid_of(*EXPORTS[name])
    probabilities = on_file_grid(logits_of(grid), grid, THREE)
    expected = ORACLE[f"export_{name}_probabilities"]
    assert probabilities.shape == expected.shape == (3, *EXPORTS[name][0])
    assert np.allclose(probabilities, expected, atol=2e-6)
    assert np.array_equal(export.segmentation(probabilities, THREE), ORACLE[f"export_{name}_segmentation"])


def test_against_skimage_where_all_axes_are_alike():
    grid = grid_of(*EXPORTS["isotropic"])
    logits = logits_of(grid)
    inside = [resize(one.astype(float), grid.cropped_shape, 1, mode="edge", anti_aliasing=False) for one in logits]
    powers = np.exp(np.stack(inside))
    crop = tuple(slice(*side) for side in grid.crop)
    assert np.allclose(on_file_grid(logits, grid, THREE)[:, *crop], powers / powers.sum(0), atol=1e-5)


@pytest.mark.parametrize("name", EXPORTS)
def test_constant_logits_fill_the_crop_and_nothing_else(name):
    grid = grid_of(*EXPORTS[name])
    logits = np.zeros_like(logits_of(grid))
    logits[2] = 9
    result = export.segmentation(on_file_grid(logits, grid, THREE), THREE)
    expected = np.zeros(grid.shape, int)
    expected[tuple(slice(*side) for side in grid.crop)] = 2
    assert np.array_equal(result, expected.transpose(grid.transpose_backward))
    assert result.dtype == np.int16


def test_outside_the_crop_the_background_is_certain():
    grid = grid_of(*EXPORTS["turned"])
    probabilities = on_file_grid(logits_of(grid), grid, THREE)
    outside = np.ones(grid.shape, bool)
    outside[tuple(slice(*side) for side in grid.crop)] = False
    outside = outside.transpose(grid.transpose_backward)
    assert (probabilities[0][outside] == 1).all()
    assert not probabilities[1:, outside].any()
    assert np.allclose(probabilities.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("forward", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_every_voxel_returns_to_its_place(forward):
    """Without resampling: a different class at every corner of an asymmetric volume."""
    file_label = np.random.default_rng(0).integers(0, 3, (4, 5, 6))
    turned = file_label.transpose(forward)
    logits = 20 * (turned == np.arange(3).reshape(-1, 1, 1, 1)).astype(np.float32)
    backward = tuple(int(axis) for axis in np.argsort(forward))
    grid = Grid(turned.shape, tuple((0, n) for n in turned.shape), (1.0,) * 3, (1.0,) * 3, backward)
    assert np.array_equal(export.segmentation(on_file_grid(logits, grid, THREE), THREE), file_label)


def test_softmax_of_huge_logits_is_finite():
    logits = np.array([1e4, -1e4, 1e4, 0], np.float32).reshape(4, 1, 1, 1)
    assert export.activated(torch.from_numpy(logits), labels_of({"a": 0, "b": 1, "c": 2, "d": 3})).ravel().tolist() == (
        pytest.approx([0.5, 0, 0.5, 0])
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_saved_softmax_is_what_numpy_and_nnunet_read(tmp_path, dtype):
    grid = grid_of(*EXPORTS["coarse"])
    probabilities = on_file_grid(logits_of(grid), grid, THREE)
    path = tmp_path / "softmax/case.npz"
    softmax_file.save(path, probabilities, dtype)
    with np.load(path, allow_pickle=False) as content:
        assert list(content) == ["probabilities"]
        stored = content["probabilities"]
    assert stored.dtype == dtype
    assert stored.shape == (3, *EXPORTS["coarse"][0])
    assert np.allclose(stored.astype(np.float32), probabilities, atol=1e-3 if dtype == "float16" else 0)
    assert np.allclose(stored.astype(np.float32).sum(0), 1, atol=2e-3)
    assert np.array_equal(softmax_file.load(path), stored)
    # the order is kept: half precision rounds, but never turns two classes round
    top = np.sort(probabilities, 0)
    clear = top[-1] - top[-2] > 1e-3
    assert np.array_equal(export.segmentation(stored, THREE)[clear], export.segmentation(probabilities, THREE)[clear])
    assert [file.name for file in path.parent.iterdir()] == ["case.npz"]


# regions

REGIONS = labels_of({"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3]}, [1, 3, 2])
# what nnU-Net 2.8.1's LabelManager.convert_probabilities_to_segmentation makes of `regional`
NNUNETS = [3, 2, 2, 3, 2, 3, 3, 1, 1, 2, 3, 0, 1, 3, 3, 2, 3, 2, 3, 2, 0, 3, 2, 2]


def regional():
    return np.round(np.random.default_rng(0).random((3, 2, 3, 4)), 2).astype(np.float32)


def test_regions_are_painted_as_nnunet_paints_them():
    in_order = labels_of({"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3]}, [1, 2, 3])
    result = export.segmentation(regional(), in_order)
    assert result.dtype == np.int16
    assert result.shape == (2, 3, 4)
    expected = np.array(NNUNETS)
    swapped = np.where(expected > 1, 5 - expected, expected)
    assert np.array_equal(result.ravel(), swapped)
    assert np.array_equal(export.segmentation(regional(), REGIONS).ravel(), expected)


def test_of_regions_the_last_one_painted_wins_and_one_half_is_not_enough():
    probabilities = np.array([[0.9, 0.9, 0.5, 0.2], [0.51, 0.2, 0.5, 0.9], [0.2, 0.9, 0.5, 0.4]])
    assert export.segmentation(probabilities.reshape(3, 1, 1, 4), REGIONS).ravel().tolist() == [3, 2, 0, 3]


@pytest.mark.parametrize("name", EXPORTS)
def test_probabilities_of_regions_are_sigmoids_and_zero_outside_the_crop(name):
    grid = grid_of(*EXPORTS[name])
    logits = logits_of(grid)
    probabilities = on_file_grid(logits, grid, REGIONS)
    plain = on_file_grid(logits, grid, THREE)
    assert probabilities.dtype == np.float32
    outside = plain[0] == 1
    crop = tuple(slice(*side) for side in grid.crop)
    turned = np.zeros(grid.shape, bool)
    turned[crop] = True
    inside = turned.transpose(grid.transpose_backward)
    assert not probabilities[:, ~inside].any()
    assert outside[~inside].all()
    # a softmax knows the differences of the logits, a sigmoid the logits themselves
    back = np.log(probabilities[:, inside].astype(float) / (1 - probabilities[:, inside].astype(float)))
    powers = np.exp(back - back.max(0))
    assert np.allclose(powers / powers.sum(0), plain[:, inside], atol=1e-4)
    one = on_file_grid(np.full_like(logits, 1.5), grid, REGIONS)[:, inside]
    assert np.allclose(one, 1 / (1 + np.exp(-1.5)), atol=1e-6)


def test_sigmoid_of_huge_logits_is_finite():
    assert export.activated(torch.tensor([1e4, -1e4, 0]), REGIONS).tolist() == [1, 0, 0.5]
