"""Rotation, scaling, cropping and mirroring: nnU-Net's geometry, and its results for the same parameters."""

from math import pi

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from tiny import DATA, held_case, held_random_case, read_patch
from torch.nn.functional import grid_sample

from segpipe.training.augment import Geometry, draw_mirror, draw_spatial
from segpipe.training.held import PADDING_LABEL, HeldCase
from segpipe.training.sampling import Box, generator

ORACLE = np.load(DATA / "augment_oracle.npz")
REACHES = [name.removeprefix("reach_") for name in ORACLE if name.startswith("reach_")]
# name: patch and box, as data/make_augment_oracle.py has them
SPATIAL = {
    "turned": ((10, 11, 12), (13, 15, 14)),
    "larger": ((10, 11, 12), (13, 15, 14)),
    "smaller": ((10, 11, 12), (13, 15, 14)),
    "flat": ((4, 14, 15), (4, 15, 14)),
    "slice": ((1, 14, 13), (1, 15, 14)),
}


class Scripted:
    """A generator that draws what it is told: everything happens, with these angles and this factor."""

    def __init__(self, angles, factor):
        self.angles, self.factor = np.array(angles), factor

    def random(self):
        return 0.0

    def uniform(self, low, high, size=None):
        return self.factor if size is None else self.angles


# ---- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REACHES)
def test_geometry_is_nnunets(name):
    patch = [int(edge) for edge in name.split("x")]
    *reach, max_angle, in_plane = ORACLE[f"reach_{name}"]
    geometry = Geometry.of(patch, None)
    flat = (1,) * (3 - len(patch))
    assert geometry.patch_size == (*flat, *patch)
    assert geometry.reach == (*flat, *(int(edge) for edge in reach))
    assert geometry.max_angle == pytest.approx(max_angle)
    assert geometry.in_plane == bool(in_plane or flat)


def test_the_known_reaches():
    """Two of the fixture's numbers, so that the fixture itself is anchored."""
    assert Geometry.of([40, 56, 40], None).reach == (73, 80, 64)
    assert Geometry.of([128, 128, 128], None).reach == (205, 205, 205)


@pytest.mark.parametrize(
    ("patch", "wanted", "mirrored"),
    [
        ([8, 8, 8], None, (0, 1, 2)),
        ([8, 8, 8], [1], (1,)),
        ([8, 8, 8], [], ()),
        ([8, 8], None, (1, 2)),
        ([8, 8], [0, 2], (2,)),
    ],
)
def test_mirror_axes_count_in_z_y_x(patch, wanted, mirrored):
    assert Geometry.of(patch, wanted).mirror_axes == mirrored


# ---- draws -----------------------------------------------------------------------------------------------------------


def matrices(geometry, n=3000):
    return [draw_spatial(generator(3, 0, step, 0), geometry) for step in range(n)]


def within(count, n, p):
    """Whether a count is a likely one: 4.5 standard deviations."""
    return abs(count - n * p) < 4.5 * np.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("patch", [(16, 16, 16), (4, 32, 32), (24, 24), (40, 20)])
def test_spatial_draws(patch):
    geometry = Geometry.of(patch, None)
    drawn = matrices(geometry)
    moved = [matrix for matrix in drawn if matrix is not None]
    assert within(len(drawn) - len(moved), len(drawn), 0.8 * 0.8)
    # the cube root of the determinant is the factor; in plane the first axis stays as it is
    power = 1 / 2 if geometry.in_plane else 1 / 3
    factors = np.array([np.linalg.det(matrix) ** power for matrix in moved])
    scaled = np.abs(factors - 1) > 1e-12
    assert within(scaled.sum(), len(drawn), 0.2)
    assert kstest(factors[scaled], "uniform", (0.7, 0.7)).pvalue > 1e-3
    turns = [m / f if not geometry.in_plane else m[1:, 1:] / f for m, f in zip(moved, factors, strict=True)]
    assert all(np.allclose(turn @ turn.T, np.eye(len(turn))) for turn in turns)
    rotated = [turn for turn in turns if not np.allclose(turn, np.eye(len(turn)))]
    assert within(len(rotated), len(drawn), 0.2)
    if geometry.in_plane:
        assert all(np.array_equal(m[0], [1, 0, 0]) and np.array_equal(m[:, 0], [1, 0, 0]) for m in moved)
        angles = [np.arctan2(turn[1, 0], turn[0, 0]) for turn in rotated]
    else:
        angles = [np.arctan2(turn[1, 0], turn[0, 0]) for turn in rotated]  # the last of three rotations
    limit = geometry.max_angle
    assert kstest(angles, "uniform", (-limit, 2 * limit)).pvalue > 1e-3


def test_every_axis_is_mirrored_half_the_time_and_on_its_own():
    n = 2000
    drawn = [draw_mirror(generator(0, 0, step, 0), (0, 2)) for step in range(n)]
    for axes in ((), (0,), (2,), (0, 2)):
        assert within(drawn.count(axes), n, 0.25)


# ---- reading ---------------------------------------------------------------------------------------------------------


def nnunet_crop(array, start, size, fill):
    """A box of an array, `fill` where it reaches beyond: pad the whole array generously, then cut."""
    around = 40
    padded = np.pad(array, around, constant_values=fill)
    return padded[tuple(slice(a + around, a + around + n) for a, n in zip(start, size, strict=True))]


@pytest.mark.parametrize("start", [(2, 3, 1), (-3, 1, 4), (9, -7, 8), (-6, -5, -6)])
@pytest.mark.parametrize(("patch", "reach"), [((8, 8, 8), (13, 13, 13)), ((7, 6, 9), (12, 9, 14)), ((24, 20, 9),) * 2])
def test_without_rotation_the_patch_is_the_exact_middle_of_its_box(start, patch, reach):
    case = held_random_case((15, 17, 16), n_channels=2)
    image, label = read_patch(case, Box(start, reach), Geometry(patch, reach, False, 1.0, ()), None)
    first = [a + n // 2 - p // 2 for a, n, p in zip(start, reach, patch, strict=True)]
    for channel, expected in zip(image.numpy(), case.image.numpy(), strict=True):
        assert np.array_equal(channel, nnunet_crop(expected, first, patch, 0))
    assert np.array_equal(label[0], nnunet_crop(case.maps[0].numpy(), first, patch, PADDING_LABEL))
    assert image.dtype == torch.float32
    assert label.dtype == torch.int16


@pytest.mark.parametrize("name", SPATIAL)
def test_rotation_and_scale_are_batchgeneratorsv2s(name):
    patch, box = SPATIAL[name]
    *angles, factor = ORACLE[f"{name}_parameters"]
    geometry = Geometry(patch, box, patch[0] == box[0], pi, ())
    case = held_case(ORACLE["image"][:, : box[0]], ORACLE["label"][: box[0]])
    matrix = draw_spatial(Scripted(angles, factor), geometry)
    image, label = read_patch(case, Box((0, 0, 0), box), geometry, matrix)
    assert np.allclose(image, ORACLE[f"{name}_image"], atol=2e-5)
    assert np.array_equal(label[0], ORACLE[f"{name}_label"])


@pytest.mark.parametrize("quarter", [1, 2, 3])
@pytest.mark.parametrize(("axes", "about"), [((1, 2), 0), ((0, 2), 1), ((0, 1), 2)])
def test_quarter_turns_are_numpys(quarter, axes, about):
    edge = 10
    case = held_random_case((edge,) * 3)
    angles = [0.0] * 3
    angles[about] = quarter * pi / 2
    geometry = Geometry((edge,) * 3, (edge,) * 3, False, pi, ())
    matrix = draw_spatial(Scripted(angles, 1.0), geometry)
    image, label = read_patch(case, Box((0, 0, 0), (edge,) * 3), geometry, matrix)
    # about Y nnU-Net counts angles the other way round
    turns = quarter if about == 1 else -quarter
    assert np.allclose(image[0], np.rot90(case.image[0], turns, axes), atol=1e-4)
    assert np.array_equal(label[0], np.rot90(case.maps[0].numpy(), turns, axes))


def test_a_factor_above_one_shrinks_the_object():
    label = np.zeros((24, 24, 24), int)
    label[8:16, 8:16, 8:16] = 1
    case = held_case(label[None], label)
    geometry = Geometry((24,) * 3, (24,) * 3, False, pi, ())
    volumes = [
        int(read_patch(case, Box((0, 0, 0), (24,) * 3), geometry, np.eye(3) * factor)[1].eq(1).sum())
        for factor in (0.7, 1.0, 1.4)
    ]
    assert volumes[0] > volumes[1] == 8**3 > volumes[2] > 0
    assert volumes[0] / volumes[1] == pytest.approx(0.7**-3, rel=0.25)


def whole_box_reference(case, reach, geometry, matrix):
    """nnU-Net's way: cut the whole box out, then sample all of it; each label's mask as an image of its own."""
    box = [nnunet_crop(channel, reach.start, reach.size, 0) for channel in case.image.numpy()]
    label = nnunet_crop(case.maps[0].numpy(), reach.start, reach.size, PADDING_LABEL)
    values = np.unique(label)
    channels = torch.from_numpy(np.stack([*box, *(label == value for value in values)]).astype(np.float32))
    lines = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in geometry.patch_size]
    points = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1) @ torch.from_numpy(matrix.T)
    grid = (points / torch.tensor(reach.size, dtype=torch.float64) * 2).flip(-1).float()
    sampled = grid_sample(channels[None], grid[None], align_corners=False)[0].numpy()
    scores = sampled[len(box) :]
    padding = 1 - scores.sum(0) + scores[values == PADDING_LABEL].sum(0)
    classes = values[values != PADDING_LABEL]
    everything = np.stack([padding, *scores[values != PADDING_LABEL]])
    clear = np.diff(np.sort(everything, 0)[-2:], axis=0)[0] > 1e-4
    return sampled[: len(box)], np.array([PADDING_LABEL, *classes])[everything.argmax(0)], clear


@pytest.mark.parametrize("patch", [(12, 10, 14), (4, 18, 16)])
def test_reading_only_what_is_needed_changes_nothing(patch):
    case, geometry = held_random_case((21, 26, 24), n_channels=2), Geometry.of(patch, None)
    drawn = [matrix for matrix in matrices(geometry, 60) if matrix is not None]
    assert len(drawn) > 12
    rng = np.random.default_rng(1)
    for matrix in drawn:
        # a rotated box may reach out of the volume; along the axis that is not rotated it lies inside
        start = rng.integers([0 if geometry.in_plane else -9, -9, -9], 10)
        reach = Box(tuple(start.tolist()), geometry.reach)
        image, label = read_patch(case, reach, geometry, matrix)
        expected_image, expected_label, clear = whole_box_reference(case, reach, geometry, matrix)
        assert np.allclose(image, expected_image, atol=5e-5)
        assert np.array_equal(label[0].numpy()[clear], expected_label[clear])
        assert clear.mean() > 0.95  # elsewhere two labels are as good as tied


def test_a_rotated_patch_reads_less_than_its_box(monkeypatch):
    read, geometry = [], Geometry.of((16, 16, 16), None)
    whole = HeldCase.read
    monkeypatch.setattr(HeldCase, "read", lambda case, box, of: read.append(box) or whole(case, box, of))
    read_patch(held_random_case((40, 40, 40)), Box((4, 4, 4), geometry.reach), geometry, np.eye(3) * 0.8)
    assert np.prod(read[0].size) < np.prod(geometry.reach) / 4


@pytest.mark.parametrize("patch", [(12, 10, 14), (4, 18, 16)])
def test_labels_are_voted_for_not_interpolated(patch):
    """Between the classes 0 and 9 there is no 4; only what is there, or padding, comes out."""
    rng = np.random.default_rng(0)
    label = np.where(np.kron(rng.integers(0, 2, (6, 6, 6)), np.ones((4, 4, 4), int)) > 0, 9, 0)
    case, geometry = held_case(rng.normal(size=(1, 24, 24, 24)), label), Geometry.of(patch, None)
    for matrix in [matrix for matrix in matrices(geometry, 40) if matrix is not None]:
        _, voted = read_patch(case, Box((-2, 3, 1), geometry.reach), geometry, matrix)
        assert set(np.unique(voted)) <= {PADDING_LABEL, 0, 9}
        assert {0, 9} <= set(np.unique(voted))
