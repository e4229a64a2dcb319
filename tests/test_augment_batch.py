"""Whole batches: read, changed, mirrored, masked, each sample as if it were alone, and nothing waits for a device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import held_random_case, planned, read_patch

from segpipe.training import augment, intensity
from segpipe.training.augment import Drawn, Geometry, draw_mirror, draw_spatial
from segpipe.training.sampling import Box, draw_box, generator


def augmented_patch(rng, case, box, geometry):
    """A batch of one."""
    drawn = augment.draw(rng, len(case.image), geometry)
    image, maps = read_patch(case, box, geometry, drawn.matrix)
    images, maps = augment.apply(image[None].clone(), maps[None].clone(), [drawn], geometry, [False] * len(image))
    return images[0], maps[0]


def test_a_sample_is_read_then_changed_then_mirrored(monkeypatch):
    case, geometry, box = (
        held_random_case((20, 20, 20), 2),
        Geometry.of((8, 8, 8), [0, 2]),
        Box((1, 2, 3), (14, 14, 14)),
    )
    seen = []
    monkeypatch.setattr(intensity, "apply", lambda images, *_: seen.append(images[0]) or images + 100)
    cases_seen = set()
    for step in range(40):
        rng = generator(0, 0, step, 0)
        image, label = augmented_patch(rng, case, box, geometry)
        rng = generator(0, 0, step, 0)
        matrix = draw_spatial(rng, geometry)
        intensity.draw(rng, 2, 3)
        axes = draw_mirror(rng, geometry.mirror_axes)
        plain, plain_label = read_patch(case, box, geometry, matrix)
        assert torch.equal(seen[-1], plain)
        assert torch.equal(image, (plain + 100).flip([axis + 1 for axis in axes]))
        assert torch.equal(label[0], plain_label[0].flip(axes))
        cases_seen.add((matrix is None, axes))
    assert len(cases_seen) > 5  # rotated and not, all mirrorings


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 50, 5), (9, 1, 40)])
@pytest.mark.parametrize("patch", [(8, 8, 8), (4, 16, 16), (8, 8)])
def test_volumes_of_any_size_can_be_read(shape, patch):
    case, geometry = held_random_case(shape), Geometry.of(patch, None)
    margin = [outer - inner for outer, inner in zip(geometry.reach, geometry.patch_size, strict=True)]
    for step in range(150):
        rng = generator(0, 0, step, 0)
        image, label = augmented_patch(rng, case, draw_box(rng, case, geometry.reach, margin, step % 2 > 0), geometry)
        assert image.shape == (1, *geometry.patch_size)
        assert label.shape == (1, *geometry.patch_size)
        assert image.isfinite().all()


def test_2d_patches_have_one_slice():
    geometry = Geometry.of(planned([8, 10]).patch_size, None)
    case = held_random_case((5, 20, 20))
    for step in range(10):
        image, label = augmented_patch(generator(0, 0, step, 0), case, Box((2, 1, 1), geometry.reach), geometry)
        assert image.shape == (1, 1, 8, 10)
        assert label.shape == (1, 1, 8, 10)


def batch(geometry, n=6, n_channels=2):
    """Samples as they are read, and what was drawn for them."""
    case, drawn, read = held_random_case((24, 26, 22), n_channels), [], []
    for step in range(n):
        drawn.append(augment.draw(generator(5, 0, step, 0), n_channels, geometry))
        read.append(read_patch(case, Box((2, 1, -3), geometry.reach), geometry, drawn[-1].matrix))
    return torch.stack([image for image, _ in read]), torch.stack([maps for _, maps in read]), drawn


@pytest.mark.parametrize("patch", [(12, 10, 14), (4, 18, 16), (12, 10)])
def test_a_sample_does_not_depend_on_its_batch(patch):
    geometry = Geometry.of(patch, None)
    images, maps, drawn = batch(geometry, 12)
    together = augment.apply(images.clone(), maps.clone(), drawn, geometry, [True, False])
    assert len({one.mirror for one in drawn}) > 3
    for i, one in enumerate(drawn):
        alone = augment.apply(images[i : i + 1].clone(), maps[i : i + 1].clone(), [one], geometry, [True, False])
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


def test_masked_channels_are_zero_outside_the_mask_whatever_was_drawn():
    geometry = Geometry.of((12, 10, 14), None)
    images, maps, drawn = batch(geometry)
    changed, turned = augment.apply(images.clone(), maps.clone(), drawn, geometry, [False, True])
    outside = turned[:, 0] < 0
    assert outside.any(dim=(1, 2, 3)).all()
    assert (changed[:, 1][outside] == 0).all()
    assert (changed[:, 1][~outside] != 0).float().mean() > 0.99
    assert (changed[:, 0][outside] != 0).float().mean() > 0.5


@pytest.mark.parametrize("patch", [(12, 10, 14), (4, 18, 16), (12, 10)])
def test_nothing_waits_for_a_device(patch):
    """Tensors without values: whatever asks for one, and whatever mixes devices, raises."""
    geometry = Geometry.of(patch, None)
    case = held_random_case((24, 26, 22), 2)
    place = replace(case.place, voxels=torch.device("meta"), patches=torch.device("meta"))
    far = replace(case, image=case.image.to("meta"), maps=(case.maps[0].to("meta"),), place=place)
    matrix = np.diag([1, 1.2, 1.2])
    boxes = [augment.read_box(far, Box((2, 1, z), geometry.reach), geometry, matrix) for z in (-3, 4)]
    (image, maps), _ = augment.patches(boxes, geometry)
    values = {name: [transform.neutral, None] for name, transform in intensity.TRANSFORMS.items()}
    values |= {"blur": [None, np.full(3, 0.7)], "noise": None}
    drawn = [Drawn(matrix, values, (1, 2)), Drawn(matrix, dict.fromkeys(values), ())]
    images, maps = augment.apply(torch.stack([image] * 2), torch.stack([maps] * 2), drawn, geometry, [True, False])
    assert (images.shape, images.dtype) == ((2, 2, *geometry.patch_size), torch.float32)
    assert (maps.shape, maps.dtype) == ((2, 1, *geometry.patch_size), torch.int16)
    assert {images.device.type, maps.device.type} == {"meta"}
    with pytest.raises(RuntimeError):
        (images > 0).any().item()
