"""Rotated patches: votes as interpolated masks give them, wherever and however many of them are taken."""

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample, pad

from segpipe.training import warp as module
from segpipe.training.augment import Geometry, draw_spatial
from segpipe.training.held import PADDING_LABEL
from segpipe.training.sampling import generator
from segpipe.training.warp import Boxed, at_once, warp


def blocks(rng, shape, values, edge=3):
    """A map of blocks of random values."""
    coarse = rng.choice(values, [-(-n // edge) for n in shape])
    return torch.from_numpy(np.kron(coarse, np.ones((edge,) * 3, int))[tuple(map(slice, shape))].astype(np.int16))


def matrices(patch, n):
    geometry = Geometry.of(patch, None)
    drawn = [draw_spatial(generator(7, 0, step, 0), geometry) for step in range(4 * n)]
    return geometry, [matrix for matrix in drawn if matrix is not None][:n]


def bordered(image, maps, matrix, centre, in_plane=False, width=9):
    """With so much padding around that a patch lies inside."""
    sides = (width,) * 4 + (0 if in_plane else width,) * 2
    border = np.array(sides[::-2])
    return Boxed(pad(image, sides), pad(maps, sides, value=PADDING_LABEL), matrix, centre + border)


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
        ((sampled, (voted,)),) = warp([bordered(image, label[None], matrix, centre)], patch, in_plane=False)
        expected, found, scores = by_masks(image, label, patch, matrix, centre)
        assert torch.allclose(sampled.double(), expected, atol=5e-5)
        own = scores[torch.searchsorted(found, voted).flatten(), *torch.cartesian_prod(*map(torch.arange, patch)).T]
        assert (scores.amax(0).flatten() - own).max() < 6e-4  # ties are those of float16


@pytest.mark.parametrize("scores", [0, 3000, 2**20])
@pytest.mark.parametrize("patch", [(9, 12, 10), (2, 14, 12), (11, 13)])
@pytest.mark.parametrize("n_maps", [1, 2])
def test_votes_of_all_voxels_are_those_of_the_few(patch, n_maps, scores, monkeypatch):
    """What runs on a device gives the same as what runs on the host, in whatever pieces, of several boxes at once."""
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "SCORES", scores)
    rng = np.random.default_rng(0)
    geometry, drawn = matrices(patch, 6)
    boxes = []
    for i, matrix in enumerate(drawn):
        box = np.array(geometry.reach) - [0, i, 2 * i % 3]
        image = torch.from_numpy(rng.normal(size=(2, *box)).astype(np.float32))
        maps = torch.stack([blocks(rng, box, [-1, 0, 1, 2, 7], 2) for _ in range(n_maps)])
        boxes.append(bordered(image, maps, matrix, (box - 1) / 2, geometry.in_plane))
    few = warp(boxes, geometry.patch_size, geometry.in_plane)
    axes = slice(1, 3) if geometry.in_plane else slice(0, 3)
    every = module._all_votes([module._flat(one, geometry.patch_size[axes], axes) for one in boxes])
    assert len(few) == len(every) == len(boxes)
    for (image, maps), (same_image, same_maps) in zip(few, every, strict=True):
        assert torch.allclose(image, same_image.view(image.shape), atol=1e-6)
        assert torch.equal(maps, same_maps.view(maps.shape))
        assert maps.shape == (n_maps, *geometry.patch_size)
        assert maps.dtype == torch.int16


def test_on_a_device_small_patches_are_sampled_together_and_large_ones_alone():
    """On the host each alone: what is computed of it stays in the cache."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [at_once(patch, cuda) for patch in ((40, 56, 40), (128, 128, 128), (1, 512, 512))] == [11, 1, 4]
    assert at_once((40, 56, 40), cpu) == 1


def test_a_tie_goes_to_the_nearest_voxel():
    """Halfway between slices two labels weigh the same, but for rounding; nnU-Net takes the nearer voxel's."""
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    label[:, 4:] = 1
    for shift, expected in ((1e-5, 1), (-1e-5, 0)):
        centre = np.array([3.5 + shift, 3.5, 3.5])
        boxed = Boxed(torch.zeros(1, 8, 8, 8), label, np.eye(3) * 0.9, centre)
        ((_, voted),) = warp([boxed], (1, 4, 4), in_plane=False)
        assert (voted == expected).all()


def test_the_arguments_are_left_alone():
    rng = np.random.default_rng(0)
    image, maps = torch.randn(1, 16, 16, 16), blocks(rng, (16,) * 3, [0, 1, 2])[None]
    before = image.clone(), maps.clone()
    warp([Boxed(image, maps, np.eye(3) * 1.3, np.full(3, 7.5))], (10, 10, 10), in_plane=False)
    assert torch.equal(image, before[0])
    assert torch.equal(maps, before[1])
