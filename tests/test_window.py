"""Sliding-window prediction: nnU-Net's tiles and weights, exact blending, mirroring, several networks."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from predicted import whole_logits
from tiny import DATA, params, planned, wave
from torch import nn

from segpipe.inference import tiles as tiles_module
from segpipe.inference.tiles import Tiles, importance, mirrorings, tile_starts
from segpipe.inference.window import Seen
from segpipe.training.network import build

ORACLE = np.load(DATA / "core_oracle.npz")
STARTS = [name.removeprefix("starts_") for name in ORACLE if name.startswith("starts_")]


class Same(nn.Module):
    """Returns its input."""

    def forward(self, x):
        return x


class Weighted(nn.Module):
    """The input times one number per voxel of the tile: no symmetry, so that tiles and mirrors differ."""

    def __init__(self, patch, seed=0):
        super().__init__()
        self.factors = torch.rand(patch, generator=torch.Generator().manual_seed(seed)) + 0.5

    def forward(self, x):
        return x * self.factors


def predict(networks, image, patch, mirror=(), step=0.5, dtype=torch.float32):
    return whole_logits(networks, image, patch, mirror, step, dtype)


# ---- tiles and weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STARTS)
def test_tiles_are_nnunets(name):
    size, edge, step = name.split("_")
    assert tile_starts(int(size), int(edge), float(step)) == ORACLE[f"starts_{name}"].tolist()


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
def test_tiles_cover_everything_and_stay_inside(step):
    for edge in (1, 4, 7, 16):
        for size in range(edge, 50):
            starts = tile_starts(size, edge, step)
            assert starts[0] == 0
            assert starts[-1] == size - edge
            assert all(0 < b - a <= np.ceil(edge * step) for a, b in pairwise(starts))


def test_weights_are_nnunets_gaussian():
    weights = importance((8, 12, 16)).numpy()
    assert np.allclose(weights[3:6], ORACLE["gaussian"], rtol=1e-6)
    assert np.unravel_index(weights.argmax(), weights.shape) == (4, 6, 8)
    assert weights.max() == 1


@pytest.mark.parametrize("patch", [(128, 128, 128), (1, 512, 512), (20, 320, 256), (4, 4, 4)])
def test_no_weight_is_zero(patch):
    weights = importance(patch)
    assert weights.min() > 0
    assert (1 / weights).isfinite().all()


def test_mirrorings_are_all_combinations():
    assert mirrorings(()) == [()]
    assert set(mirrorings((0, 1, 2))) == {(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert len(mirrorings((0, 1, 2))) == 8
    assert mirrorings((0, 1)) == [(), (0,), (1,), (0, 1)]


# ---- blending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 8), (21, 13, 8), (5, 30, 3), (1, 1, 1), (9, 8, 17)])
@pytest.mark.parametrize("mirror", [(), (0, 1, 2), (1,)])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_a_network_that_returns_its_input_gives_the_image_back(shape, mirror, step):
    image = wave(2, *shape)
    assert torch.allclose(predict([Same()], image, (8, 8, 8), mirror, step), image, atol=1e-5)


def plain(network, image, patch, step):
    """Tile by tile in float64, the weights from the definition; the case is padded evenly, more at the end."""
    missing = [max(p - n, 0) for n, p in zip(image.shape[1:], patch, strict=True)]
    before = [m // 2 for m in missing]
    padded = np.pad(image.numpy(), [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))])
    distances = np.meshgrid(*[((np.arange(p) - p // 2) / (p / 8)) ** 2 for p in patch], indexing="ij")
    weights = np.exp(-sum(distances) / 2)
    total, norm = np.zeros(padded.shape), np.zeros(padded.shape)
    starts = [tile_starts(n, p, step) for n, p in zip(padded.shape[1:], patch, strict=True)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                tile = np.s_[:, z : z + patch[0], y : y + patch[1], x : x + patch[2]]
                total[tile] += weights * network(torch.from_numpy(padded[tile])[None])[0].numpy()
                norm[tile] += weights
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (total / norm)[:, *inside]


@pytest.mark.parametrize("shape", [(8, 12, 10), (19, 12, 25), (5, 17, 4)])
@pytest.mark.parametrize("step", [0.5, 0.75])
def test_tiles_are_blended_as_written_down_plainly(shape, step):
    patch = (8, 12, 10)
    network, image = Weighted(patch), wave(2, *shape)
    assert np.allclose(predict([network], image, patch, (), step), plain(network, image, patch, step), atol=1e-5)


def test_mirrored_versions_are_averaged_after_turning_back():
    patch = (8, 8, 8)
    network, image = Weighted(patch), wave(1, *patch)
    for mirror in ((0,), (2,), (0, 1), (0, 1, 2)):
        versions = [
            network(image[None].flip([axis + 2 for axis in flip]))[0].flip([axis + 1 for axis in flip])
            for flip in mirrorings(mirror)
        ]
        expected = torch.stack(versions).mean(0)
        assert torch.allclose(predict([network], image, patch, mirror), expected, atol=1e-5)
        assert not torch.allclose(predict([network], image, patch), expected, atol=1e-2)


def test_several_networks_are_averaged():
    patch, image = (8, 8, 8), wave(1, 13, 9, 20)
    first, second = Weighted(patch, 1), Weighted(patch, 2)
    alone = [predict([network], image, patch, (0, 1)) for network in (first, second)]
    assert torch.allclose(predict([first, second], image, patch, (0, 1)), (alone[0] + alone[1]) / 2, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


@pytest.mark.parametrize("budget", [1, 8**3 * 3, 2**30])
def test_how_many_tiles_go_together_changes_nothing(monkeypatch, budget):
    network, image = build(1, 3, planned(), params().train).eval(), wave(1, 13, 9, 20)
    expected = predict([network], image, (8, 8, 8), (0, 2))
    monkeypatch.setattr(tiles_module, "VOXELS_PER_FORWARD", {"cpu": budget})
    assert torch.allclose(predict([network], image, (8, 8, 8), (0, 2)), expected, atol=1e-5)


@pytest.mark.parametrize(("most", "at_once"), [(1, 1), (3, 2), (4, 4), (7, 4), (100, 16)])
def test_the_networks_see_few_shapes(monkeypatch, most, at_once):
    """cuDNN looks for the fastest algorithm of each."""
    monkeypatch.setattr(tiles_module, "VOXELS_PER_FORWARD", {"cpu": 20 * 8**3})
    seen = []

    class Counting(Same):
        def forward(self, x):
            seen.append(len(x))
            return x

    for length in range(8, 80, 4):
        tiles = Tiles([Counting()], 1, (8, 8, 8), False, (), 0.5, torch.float32, most=most)
        sweep = Seen(tiles, torch.rand(1, length, 8, 8)).column(slice(0, 8), slice(0, 8))
        sweep.planes(0, length, sweep.depth([(0, length)]))
    assert {*seen} == {2**n for n in range(5) if 2**n <= at_once}


# ---- 2d --------------------------------------------------------------------------------------------------------------


def test_a_2d_network_predicts_slice_by_slice():
    plan = planned([8, 12])
    network = build(2, 3, plan, params().train).eval()
    image = wave(2, 5, 11, 20)
    together = predict([network], image, plan.patch_size, (0, 1))
    assert together.shape == (3, 5, 11, 20)
    for z in range(5):
        alone = predict([network], image[:, z : z + 1], plan.patch_size, (0, 1))
        assert torch.allclose(together[:, z : z + 1], alone, atol=1e-5)
    with torch.no_grad():
        one_tile = predict([network], image[:, 2:3, :8, :12], plan.patch_size)
        assert torch.allclose(one_tile[:, 0], network(image[None, :, 2, :8, :12])[0], atol=1e-5)


def test_2d_mirrors_rows_and_columns():
    patch = (6, 8)
    network, image = Weighted(patch), wave(1, 1, *patch)
    rows, columns = ((network(image[:, 0].flip(axis)).flip(axis) + network(image[:, 0])) / 2 for axis in (1, 2))
    assert torch.allclose(predict([network], image, patch, (0,))[:, 0], rows, atol=1e-5)
    assert torch.allclose(predict([network], image, patch, (1,))[:, 0], columns, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 5), (4, 6, 9), (2, 30, 8)])
def test_2d_gives_the_image_back_too(shape):
    image = wave(1, *shape)
    assert torch.allclose(predict([Same()], image, (8, 8), (0, 1)), image, atol=1e-5)


# ---- precision -------------------------------------------------------------------------------------------------------


def test_bf16_is_computed_and_summed_in_float32():
    network, image = build(1, 3, planned(), params().train).eval(), wave(1, 12, 12, 12)
    full = predict([network], image, (8, 8, 8), (0,))
    half = predict([network], image, (8, 8, 8), (0,), dtype=torch.bfloat16)
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert float((full - half).abs().mean()) < 0.02


# ---- plane by plane --------------------------------------------------------------------------------------------------

PATCH = (8, 12, 10)


def tiles(networks, patch=PATCH, mirror=(), step=0.5, **changes):
    return Tiles(networks, 2, patch, False, mirror, step, torch.float32, **changes)


@pytest.mark.parametrize("shape", [(19, 12, 25), (5, 17, 4), (40, 30, 11)])
@pytest.mark.parametrize("mirror", [(), (0, 2)])
@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_parts_of_a_case_are_those_of_the_whole(monkeypatch, shape, mirror, at_once):
    """Ranges of planes that overlap, leave some out, or are the rest; of some rows and columns."""
    monkeypatch.setattr(tiles_module, "VOXELS_PER_FORWARD", {"cpu": at_once * 8 * 12 * 10})
    network, image = Weighted(PATCH), wave(2, *shape)
    expected = predict([network], image, PATCH, mirror)
    n, rows, columns = shape[0], slice(shape[1] // 3, shape[1] - 1), slice(1, shape[2] // 2 + 1)
    for needs in ([(0, n)], [(0, 3), (2, 4), (4, n)], [(n // 2, n // 2 + 1), (n - 1, n)]):
        sweep = Seen(tiles([network], mirror=mirror), image).column(rows, columns)
        depth = sweep.depth(needs)
        for start, stop in needs:
            found = sweep.planes(start, stop, depth)
            assert torch.allclose(found, expected[:, start:stop, rows, columns], atol=1e-5)
        assert sweep.buffer.shape[1] == depth


def test_a_long_case_takes_no_deeper_buffer_than_a_short_one():
    depths = [
        Seen(tiles([Same()]), torch.zeros(2, length, 20, 20))
        .column(slice(0, 20), slice(0, 20))
        .depth([(start, start + 4) for start in range(0, length, 4)])
        for length in (40, 400)
    ]
    assert depths[0] == depths[1] <= PATCH[0] + 4


def test_only_tiles_that_reach_into_the_column_are_computed():
    seen = []

    class Counting(Same):
        def forward(self, x):
            seen.extend(x)
            return x

    image = wave(2, 8, 60, 10)
    sweep = Seen(tiles([Counting()]), image).column(slice(0, 6), slice(0, 10))
    sweep.planes(0, 8, sweep.depth([(0, 8)]))
    assert len(seen) == 1
    assert torch.equal(seen[0], image[:, :8, :12, :10])


@pytest.mark.parametrize("mirror", [(), (1,)])
def test_tiles_of_one_value_are_computed_once_and_as_any_other(mirror):
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Weighted(PATCH)

        def forward(self, x):
            calls.extend(x)
            return self.inner(x) + 1

    image = torch.full((2, 48, 24, 10), -1.5)
    image[1] = 0.25
    image[:, 30:] = wave(2, 18, 24, 10)
    found = predict([Counting()], image, PATCH, mirror)
    n_tiles = 11 * 3
    uniform = 6 * 3  # those that end before plane 30
    assert len(calls) == (n_tiles - uniform) * (1 + len(mirror)) + 1 + 1  # one for all uniform ones, one example
    n_calls = len(calls)
    noisy = image + 1e-7 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found, predict([Counting()], noisy, PATCH, mirror), atol=1e-5)
    assert len(calls) - n_calls == n_tiles * (1 + len(mirror)) + 1


def test_networks_may_be_kept_apart():
    image, networks = wave(2, 13, 12, 20), [Weighted(PATCH, seed) for seed in (1, 2, 3)]
    sweep = Seen(tiles(networks, mirror=(0,), apart=True), image).column(slice(0, 12), slice(0, 20))
    together = sweep.planes(0, 13, sweep.depth([(0, 13)])).unflatten(0, (3, 2))
    for network, logits in zip(networks, together, strict=True):
        assert torch.allclose(logits, predict([network], image, PATCH, (0,)), atol=1e-5)


def test_tiles_of_many_classes_go_through_in_smaller_groups(monkeypatch):
    monkeypatch.setattr(tiles_module, "VALUES_PER_FORWARD", {"cpu": 2 * 8 * 12 * 10 * 2})
    assert tiles([Same()]).at_once("cpu") == 2
    assert tiles([Same(), Same()]).at_once("cpu") == 1


def test_of_the_stage_before_the_networks_see_a_channel_per_value():
    """As if its channels had been made for the whole case; also where only the image is uniform."""
    image = wave(1, 25, 14, 11)
    image[:, :17] = 0.5
    previous = (torch.arange(25 * 14 * 11).reshape(1, 25, 14, 11) // 700 % 4).to(torch.int16)
    previous[:, 10:] = 0
    channels = torch.cat([previous == value for value in (1, 2, 3)]).float()
    network = Weighted((4, *PATCH))
    expected = Seen(Tiles([network], 4, PATCH, False, (1,), 0.5, torch.float32), torch.cat([image, channels]))
    found = Seen(Tiles([network], 4, PATCH, False, (1,), 0.5, torch.float32), image, previous, 4)
    both = []
    for seen in (expected, found):
        sweep = seen.column(slice(0, 14), slice(0, 11))
        both.append(sweep.planes(0, 25, sweep.depth([(0, 25)])))
    assert torch.allclose(*both, atol=1e-6)
    assert found.is_uniform((12, 0, 0)) is False


def test_networks_go_one_after_the_other_without_changing_what_they_return():
    image, network = wave(2, 8, 12, 10), Same()
    before = image.clone()
    together = predict([network, network, network], image, PATCH)
    assert torch.allclose(together, before, atol=1e-6)
    assert torch.equal(image, before)
