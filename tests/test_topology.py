"""The stages of the U-Net: what is pooled when, and what it costs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.prepare.presets import PRESETS
from segpipe.prepare.topology import MIN_EDGE, Layers, feature_map_size, features_per_stage, topology

EDGES = st.integers(1, 300)
SPACINGS = st.floats(0.2, 8)


def test_an_isotropic_patch_is_halved_down_to_four_voxels() -> None:
    stages = topology([1, 1, 1], [64, 64, 64])
    assert stages.strides == ((1, 1, 1), *[(2, 2, 2)] * 4)
    assert set(stages.kernel_sizes) == {(3, 3, 3)}
    assert stages.patch_size == (64, 64, 64)


def test_coarse_axes_wait_until_the_others_have_caught_up() -> None:
    stages = topology([4, 1, 1], [16, 64, 64])
    assert stages.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert stages.kernel_sizes == ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def test_a_factor_of_two_is_too_coarse_and_less_is_not() -> None:
    assert topology([2, 1, 1], [32, 32, 32]).strides[1] == (1, 2, 2)
    assert topology([1.99, 1, 1], [32, 32, 32]).strides[1] == (2, 2, 2)


def test_a_single_axis_is_pooled_only_while_it_is_long() -> None:
    assert topology([1, 1], [4, 11]).strides == ((1, 1),)
    assert topology([1, 1], [4, 12]).strides == ((1, 1), (1, 2))


def test_short_axes_are_not_pooled_and_the_patch_is_padded() -> None:
    stages = topology([1, 1, 1], [7, 33, 50])
    assert [stride[0] for stride in stages.strides] == [1] * len(stages.strides)
    assert stages.patch_size == (7, 40, 56)
    assert stages.divisible_by == (1, 8, 8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 3).flatmap(lambda n: st.tuples(*[st.tuples(*[kind] * n) for kind in (SPACINGS, EDGES)])))
def test_any_topology_fits_its_patch(spacing_and_patch: tuple[tuple[float, ...], tuple[int, ...]]) -> None:
    spacing_mm, patch = spacing_and_patch
    stages = topology(spacing_mm, patch)
    assert len(stages.strides) == len(stages.kernel_sizes)
    for axis, edge in enumerate(patch):
        total = math.prod(stride[axis] for stride in stages.strides)
        assert stages.divisible_by[axis] == total
        assert stages.patch_size[axis] % total == 0
        assert edge <= stages.patch_size[axis] < edge + total
        assert stages.patch_size[axis] // total >= min(MIN_EDGE, edge)
    assert set(stages.strides[0]) == {1}
    for before, after in zip(stages.kernel_sizes, stages.kernel_sizes[1:], strict=False):
        assert all(x <= y for x, y in zip(before, after, strict=True))  # once 3, always 3
    assert set(stages.kernel_sizes[-1]) == {3}


def test_features_double_up_to_a_limit() -> None:
    assert features_per_stage(6, 32, 3) == (32, 64, 128, 256, 320, 320)
    assert features_per_stage(6, 32, 2) == (32, 64, 128, 256, 512, 512)
    assert features_per_stage(2, 600, 3) == (320, 320)


def test_feature_maps_are_counted_by_hand() -> None:
    """Two stages of 4 and 8 channels on 8 x 8: encoder 2*4*64 + 2*8*16, decoder 3*4*64, head 3*64."""
    layers = Layers([4, 8], [2, 2], [2], residual=False)
    assert feature_map_size([8, 8], [(1, 1), (2, 2)], layers, 3) == 512 + 256 + 768 + 192


def test_feature_maps_of_residual_blocks_are_counted_by_hand() -> None:
    """Stem 4*64; 1 block without a skip's convolution 2*4*64, 3 blocks (6 + 1)*8*16; decoder 2*4*64, head 3*64."""
    layers = Layers([4, 8], [1, 3], [1], residual=True)
    assert feature_map_size([8, 8], [(1, 1), (2, 2)], layers, 3) == 256 + 512 + 896 + 512 + 192


def test_depths_of_the_decoder_count_from_the_coarsest_stage() -> None:
    strides = [(1, 1), (2, 2), (2, 2)]
    found = [
        feature_map_size([8, 8], strides, Layers([4, 4, 4], [1] * 3, depths, False), 1) for depths in ([1, 2], [2, 1])
    ]
    assert found[0] - found[1] == 4 * 64 - 4 * 16


FINE = [(1, 1, 1), *[(2, 2, 2)] * 5]
COARSE = [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
FEATURES = [32, 64, 128, 256, 320, 320]


@pytest.mark.parametrize(
    ("preset", "patch", "strides", "features", "n_classes", "expected"),
    [
        ("plain", [128, 128, 128], FINE, FEATURES, 8, 463_282_176),
        ("plain", [10, 256, 224], COARSE, FEATURES, 4, 170_562_560),
        ("plain", [56, 40], [(1, 1), *[(2, 2)] * 3], [32, 64, 128, 256], 3, 651_840),
        ("ResEncM", [128, 128, 128], FINE, FEATURES, 8, 567_906_304),
        ("ResEncL", [10, 256, 224], COARSE, FEATURES, 4, 250_826_240),
        ("ResEncXL", [56, 40], [(1, 1), *[(2, 2)] * 3], [32, 64, 128, 256], 3, 1_001_280),
    ],
)
def test_feature_maps_are_counted_as_by_the_network_itself(
    preset: str, patch: list[int], strides: list[tuple[int, ...]], features: list[int], n_classes: int, expected: int
) -> None:
    """Expected: compute_conv_feature_map_size of dynamic_network_architectures 0.4.4's networks."""
    assert feature_map_size(patch, strides, PRESETS[preset].layers(features), n_classes) == expected
