"""Rotated patches: votes as interpolated masks give them, wherever and however many of them are taken."""

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from segpipe.training import warp as module
from segpipe.training.augment import Geometry, draw_spatial
from segpipe.training.held import PADDING_LABEL
from segpipe.training.sampling import generator
from segpipe.training.warp import warp


def blocks(rng, shape, values, edge=3):
    """A map of blocks of random values."""
    coarse = rng.choice(values, [-(-n // edge) for n in shape])
    return torch.from_numpy(np.kron(coarse, np.ones((edge,) * 3, int))[tuple(map(slice, shape))].astype(np.int16))


def matrices(patch, n):
    geometry = Geometry.of(patch, None)
    drawn = [draw_spatial(generator(7, 0, step, 0), geometry) for step in range(4 * n)]
    return geometry, [matrix for matrix in drawn if matrix is not None][:n]


def by_masks(image, label, patch, matrix, centre):
    """Each label's mask interpolated on its own, padding beyond the box: the label's score, (values, Z, Y, X)."""
    shape = label.shape
    lines = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch]
    points = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1) @ torch.from_numpy(matrix.T) + torch.tensor(centre)
    grid = ((2 * points + 1) / torch.tensor(shape) - 1).flip(-1)[None]
    values = torch.unique(torch.cat([label.flatten(), torch.tensor([PADDING_LABEL], dtype=torch.int16)]))
    masks = torch.stack([(label == value).double() - float(value == PADDING_LABEL) for value in values])
    scores = grid_sample(masks[None], grid, align_corners=False)[0]
    scores[values == PADDING_LABEL] += 1
    return grid_sample(image.double()[None], grid, align_corners=False)[0], values, scores


@pytest.mark.parametrize(
    "values", [[0, 1], [0, 1, 2], [-1, 0, 5, 9], list(range(40)), [-1, 0, 32765, 32766], [3]], ids=len
)
@pytest.mark.parametrize("inside", [True, False])
def test_the_label_with_the_highest_score_wins(values, inside):
    rng = np.random.default_rng(len(values))
    patch, box = (11, 12, 10), (24, 25, 26) if inside else (10, 13, 9)
    image, label = torch.from_numpy(rng.normal(size=(2, *box)).astype(np.float32)), blocks(rng, box, values)
    for matrix in matrices(patch, 8)[1]:
        centre = (np.array(box) - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
        sampled, (voted,) = warp(image, label[None], patch, matrix, centre, in_plane=False)
        expected, found, scores = by_masks(image, label, patch, matrix, centre)
        assert torch.allclose(sampled.double(), expected, atol=5e-5)
        own = scores[torch.searchsorted(found, voted).flatten(), *torch.cartesian_prod(*map(torch.arange, patch)).T]
        assert (scores.amax(0).flatten() - own).max() < 6e-4  # ties are those of float16


@pytest.mark.parametrize("patch", [(9, 12, 10), (2, 14, 12), (11, 13)])
@pytest.mark.parametrize("n_maps", [1, 2])
def test_votes_of_all_voxels_are_those_of_the_few(patch, n_maps, monkeypatch):
    """What runs on a device gives the same as what runs on the host, in whatever pieces."""
    monkeypatch.setattr(module, "CHUNK", 100)
    rng = np.random.default_rng(0)
    geometry, drawn = matrices(patch, 6)
    box = geometry.reach
    image = torch.from_numpy(rng.normal(size=(2, *box)).astype(np.float32))
    maps = torch.stack([blocks(rng, box, [-1, 0, 1, 2, 7], 2) for _ in range(n_maps)])
    for matrix in drawn:
        given = (image, maps, geometry.patch_size, matrix, (np.array(box) - 1) / 2, geometry.in_plane)
        few = warp(*given)
        with monkeypatch.context() as patched:
            patched.setattr(module, "_few_votes", module._all_votes)
            every = warp(*given)
        assert torch.allclose(few[0], every[0], atol=1e-6)
        assert torch.equal(few[1], every[1])
        assert few[1].shape == (n_maps, *geometry.patch_size)
        assert few[1].dtype == torch.int16


def test_a_tie_goes_to_the_nearest_voxel():
    """Halfway between slices two labels weigh the same, but for rounding; nnU-Net takes the nearer voxel's."""
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    label[:, 4:] = 1
    for shift, expected in ((1e-5, 1), (-1e-5, 0)):
        centre = np.array([3.5 + shift, 3.5, 3.5])
        _, voted = warp(torch.zeros(1, 8, 8, 8), label, (1, 4, 4), np.eye(3) * 0.9, centre, in_plane=False)
        assert (voted == expected).all()


def test_the_arguments_are_left_alone():
    rng = np.random.default_rng(0)
    image, maps = torch.randn(1, 12, 12, 12), blocks(rng, (12,) * 3, [0, 1, 2])[None]
    before = image.clone(), maps.clone()
    warp(image, maps, (10, 10, 10), np.eye(3) * 1.3, np.full(3, 5.5), in_plane=False)
    assert torch.equal(image, before[0])
    assert torch.equal(maps, before[1])
