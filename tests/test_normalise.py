"""Intensity normalisation: the formulas of the five schemes, and their degenerate cases."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segpipe.errors import SegpipeError
from segpipe.prepare import normalise as module
from segpipe.prepare.normalise import ct, moments, normalise, rescale_to_0_1, rgb_to_0_1, zscore

INTENSITIES = {"mean": 40.0, "std": 20.0, "percentile_00_5": -10.0, "percentile_99_5": 90.0}
ORACLE = np.load(Path(__file__).parent / "data" / "prepare_oracle.npz")
INTENSITIES_OF_ORACLE = ("mean", "std", "percentile_00_5", "percentile_99_5")
SCHEMES = ["ct", "zscore", "none", "rescale_to_0_1", "rgb_to_0_1"]


@pytest.fixture
def channel() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(100, 30, (6, 7, 8)).clip(0, 255).astype(np.float32)


@pytest.mark.parametrize("name", [*SCHEMES, "zscore_inside"])
def test_each_scheme_gives_what_nnunet_gives(name: str) -> None:
    inside = ORACLE["inside"] if name == "zscore_inside" else None
    intensities = dict(zip(INTENSITIES_OF_ORACLE, ORACLE["intensities"].tolist(), strict=True))
    result = normalise(name.removesuffix("_inside"), ORACLE["channel"], inside, intensities)
    np.testing.assert_allclose(result, ORACLE[f"normalised_{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_a_view_with_turned_axes_is_normalised_alike(channel: NDArray[np.float32], masked: bool) -> None:
    inside = channel > 90 if masked else None
    found = zscore(channel.transpose(2, 0, 1), None if inside is None else inside.transpose(2, 0, 1))
    np.testing.assert_allclose(found, zscore(channel, inside).transpose(2, 0, 1), atol=1e-6)


def test_large_channels_are_summed_in_pieces(channel: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", 60)
    mean, std = moments(channel)
    assert mean == pytest.approx(channel.astype(np.float64).mean(), rel=1e-12)
    assert std == pytest.approx(channel.astype(np.float64).std(), rel=1e-12)
    assert moments(channel.ravel()) == pytest.approx((mean, std), rel=1e-12)


def test_zscore_has_mean_0_and_variance_1(channel: NDArray[np.float32]) -> None:
    result = zscore(channel, None)
    assert (result.mean(), result.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    np.testing.assert_allclose(result, (channel - channel.mean()) / channel.std(), atol=1e-4)


def test_zscore_is_exact_far_from_zero(channel: NDArray[np.float32]) -> None:
    """Sums in single precision would lose the deviation of an image of a million."""
    far = (channel + 1e6).astype(np.float32)
    expected = (far - far.astype(np.float64).mean()) / far.astype(np.float64).std()
    np.testing.assert_allclose(zscore(far, None), expected, atol=1e-4)


def test_zscore_inside_a_mask_leaves_the_outside(channel: NDArray[np.float32]) -> None:
    inside = np.zeros(channel.shape, bool)
    inside[1:5, 2:6, 3:7] = True
    result = zscore(channel, inside)
    assert result[inside].mean() == pytest.approx(0, abs=1e-5)
    assert result[inside].std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(result[~inside], channel[~inside])


@pytest.mark.filterwarnings("error")
def test_an_empty_mask_leaves_the_image_as_it_is(channel: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(zscore(channel, np.zeros(channel.shape, bool)), channel)


def test_a_constant_image_becomes_zero_not_nan() -> None:
    constant = np.full((3, 4, 5), 7, np.float32)
    assert not zscore(constant, None).any()
    assert not rescale_to_0_1(constant).any()
    assert not ct(constant, {**INTENSITIES, "mean": 7, "std": 0}).any()


def test_ct_clips_to_the_datasets_percentiles_then_scales() -> None:
    channel = np.float32([[[-1000, -10, 40, 90, 3000]]])
    np.testing.assert_allclose(ct(channel, INTENSITIES), [[[-2.5, -2.5, 0, 2.5, 2.5]]])


def test_rescaling_spans_0_to_1(channel: NDArray[np.float32]) -> None:
    result = rescale_to_0_1(channel - 500)
    assert (result.min(), result.max()) == (0, 1)
    np.testing.assert_allclose(result, (channel - channel.min()) / np.ptp(channel), atol=1e-5)


def test_rgb_is_divided_by_255() -> None:
    np.testing.assert_allclose(rgb_to_0_1(np.float32([[[0, 51, 255]]])), [[[0, 0.2, 1]]])


@pytest.mark.parametrize("value", [-1, 256])
def test_rgb_outside_8_bits_is_refused(value: float) -> None:
    with pytest.raises(SegpipeError, match="0 to 255"):
        rgb_to_0_1(np.float32([[[0, value]]]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_chosen_by_its_name(channel: NDArray[np.float32], scheme: str) -> None:
    expected = {
        "ct": ct(channel, INTENSITIES),
        "zscore": zscore(channel, None),
        "none": channel,
        "rescale_to_0_1": rescale_to_0_1(channel),
        "rgb_to_0_1": rgb_to_0_1(channel),
    }
    np.testing.assert_array_equal(normalise(scheme, channel, None, INTENSITIES), expected[scheme])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_input_stays_as_it_is_and_the_result_is_float32(channel: NDArray[np.float32], scheme: str) -> None:
    before = channel.copy()
    inside = channel > 90 if scheme == "zscore" else None
    result = normalise(scheme, channel, inside, INTENSITIES)
    assert result.dtype == np.float32
    assert not np.shares_memory(result, channel)
    np.testing.assert_array_equal(channel, before)
