"""Intensity transforms: batchgeneratorsv2's results for the same parameters, and nnU-Net's probabilities."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest
from tiny import DATA

from segpipe.training import intensity
from segpipe.training.intensity import TRANSFORMS
from segpipe.training.sampling import generator

ORACLE = np.load(DATA / "augment_oracle.npz")
PATCH = torch.from_numpy(ORACLE["patch"])

# the parameters of data/make_augment_oracle.py: transform, a value for each channel, whether flat
APPLIED = {
    "blur": ("blur", [None, np.array([0.55, 0.75, 0.97])], False),
    "blur_2d": ("blur", [None, np.array([0.62, 0.91])], False),
    "brightness": ("brightness", [0.8, 1.2], False),
    "contrast": ("contrast", [0.78, 1.24], False),
    "low_resolution": ("low_resolution", [None, 0.57], False),
    "low_resolution_in_plane": ("low_resolution", [None, 0.57], True),
    "gamma": ("gamma", [0.72, 1.43], False),
    "gamma_inverted": ("inverted_gamma", [0.72, 1.43], False),
}


def on_host(name, image, values, in_plane=False):
    """One sample, as it is done on the CPU: channel by channel where something is drawn."""
    return intensity.change_drawn(image.clone(), [(TRANSFORMS[name], values)], in_plane)


def on_device(name, image, values, in_plane=False):
    """One sample, as it is done elsewhere: all channels at once."""
    return intensity.change_all(image, [(TRANSFORMS[name], values)], in_plane)


BOTH = pytest.mark.parametrize("changed", [on_host, on_device])


@BOTH
@pytest.mark.parametrize("name", APPLIED)
def test_results_are_batchgeneratorsv2s(name, changed):
    image = PATCH[:, : len(ORACLE[name][0])].clone()
    result = changed(APPLIED[name][0], image, *APPLIED[name][1:])
    assert np.allclose(result, ORACLE[name], atol=2e-6)
    assert not np.allclose(result[1], image[1], atol=1e-2)
    assert torch.equal(image, PATCH[:, : len(image[0])])  # of all channels at once nothing is changed in place


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("shape", [(2, 12, 13, 9), (2, 1, 17, 8), (2, 2, 9, 11), (2, 3, 3, 4)])
def test_all_channels_at_once_are_as_one_by_one(name, shape):
    """Also where a patch is too small to reflect a blur's whole width, and channels that were not drawn stay."""
    name, values, in_plane = APPLIED[name]
    image = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    alone, together = on_host(name, image, values, in_plane), on_device(name, image, values, in_plane)
    assert torch.allclose(alone, together, atol=1e-6)
    assert alone.isfinite().all()
    for channel, value in enumerate(values):
        assert torch.equal(together[channel], image[channel]) == (value is None)
        assert torch.equal(alone[channel], image[channel]) == (value is None)


@pytest.mark.parametrize("sigma", [0.5, 0.66, 0.67, 0.75, 0.99])
def test_blur_is_a_gaussian_that_keeps_the_sum(sigma):
    image = torch.zeros(1, 15, 15, 15)
    image[0, 7, 7, 7] = 1
    blurred = on_host("blur", image, [np.full(3, sigma)])
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(blurred[0], gaussian_filter(image[0].numpy(), sigma, truncate=6), atol=0.01)
    # as many taps as nnU-Net takes: 3 to 7
    assert int((blurred[0, 7, 7] > 0).sum()) == {0.5: 3, 0.66: 5, 0.67: 5, 0.75: 5, 0.99: 7}[sigma]


def test_channels_are_blurred_by_as_many_taps_as_each_has():
    image, sigmas = torch.zeros(3, 15, 15, 15), [np.full(3, 0.99), np.array([0.5, 0.99, 0.66]), np.array([0.5, 0.7])]
    image[:, 7, 7, 7] = 1
    together = on_device("blur", image, sigmas)
    assert torch.allclose(together, on_host("blur", image, sigmas), atol=1e-7)
    assert [[int((one.sum(axes) > 0).sum()) for axes in ((1, 2), (0, 2), (0, 1))] for one in together] == [
        [7, 7, 7],
        [3, 7, 5],
        [1, 3, 5],
    ]


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("gammas", [[0.7, 1.5], [1.0, 0.9]])
def test_gamma_keeps_mean_and_deviation(invert, gammas):
    bent = on_host("inverted_gamma" if invert else "gamma", PATCH, gammas)
    assert torch.allclose(bent.mean((1, 2, 3)), PATCH.mean((1, 2, 3)), atol=1e-5)
    assert torch.allclose(bent.std((1, 2, 3)), PATCH.std((1, 2, 3)), atol=1e-5)
    # a monotonous curve
    assert torch.equal(bent[0].flatten().argsort(), PATCH[0].flatten().argsort())


def test_gamma_above_one_darkens_the_middle_and_inverted_brightens_it():
    ramp = torch.linspace(0, 1, 101).view(1, 101, 1, 1)
    middle = [float(on_host(name, ramp, [1.5])[0, 50]) for name in ("gamma", "inverted_gamma")]
    assert middle[0] < 0.5 - 0.02
    assert middle[1] > 0.5 + 0.02


def test_factor_one_changes_nothing():
    for name in set(TRANSFORMS) - {"blur"}:
        assert torch.allclose(on_host(name, PATCH, [1.0, 1.0]), PATCH, atol=1e-5)


def test_contrast_stays_within_the_channels_range():
    stretched = on_host("contrast", PATCH, [1.25, 1.25])
    assert torch.equal(stretched.amin((1, 2, 3)), PATCH.amin((1, 2, 3)))
    assert torch.equal(stretched.amax((1, 2, 3)), PATCH.amax((1, 2, 3)))
    assert (stretched.std((1, 2, 3)) > PATCH.std((1, 2, 3))).all()


@BOTH
@pytest.mark.parametrize("name", ["contrast", "gamma", "inverted_gamma"])
def test_a_constant_channel_stays_as_it_is(name, changed):
    constant = torch.full((1, 8, 8, 8), 3.0)
    assert torch.allclose(changed(name, constant, [1.4]), constant)


def test_noise_has_its_deviation_and_is_decided_by_its_seed():
    image = torch.zeros(2, 40, 40, 40)

    def with_noise(seed):
        images = torch.stack([image, image])
        intensity.add_noise(images, [None, (0.07, seed)])
        assert torch.equal(images[0], image)
        return images[1]

    noisy = with_noise(5)
    torch.manual_seed(99)
    assert torch.equal(noisy, with_noise(5))
    assert not torch.equal(noisy, with_noise(6))
    assert noisy.std() == pytest.approx(0.07, rel=0.02)
    assert abs(float(noisy.mean())) < 0.001
    assert not torch.equal(noisy[0], noisy[1])


# ---- draws -----------------------------------------------------------------------------------------------------------

N = 4000
DRAWN = [intensity.draw(generator(11, 0, step, 0), 2, 3) for step in range(N)]
PROBABILITIES = {
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
}


def likely(count, n, p):
    return abs(count - n * p) < 4.5 * np.sqrt(n * p * (1 - p))


def values(name):
    return [drawn[name] for drawn in DRAWN if drawn[name] is not None]


def test_every_transform_has_nnunets_probability():
    assert set(DRAWN[0]) == set(PROBABILITIES)
    for name, p in PROBABILITIES.items():
        assert likely(len(values(name)), N, p), name


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5), ("inverted_gamma", 0.7, 1.5)],
)
def test_factors_are_below_one_as_often_as_above(name, low, high):
    factors = np.array(values(name))
    assert factors.shape[1] == 2
    assert (factors[:, 0] != factors[:, 1]).all()  # each channel has its own
    below = factors[factors < 1]
    assert likely(len(below), factors.size, 0.5)
    assert kstest(below, "uniform", (low, 1 - low)).pvalue > 1e-3
    assert kstest(factors[factors >= 1], "uniform", (1, high - 1)).pvalue > 1e-3


def test_noise_blur_and_low_resolution_draws():
    assert kstest([sigma for sigma, _ in values("noise")], "uniform", (0, 0.1)).pvalue > 1e-3
    assert len({seed for _, seed in values("noise")}) == len(values("noise"))
    channels = [channel for drawn in values("blur") for channel in drawn]
    chosen = [channel for channel in channels if channel is not None]
    assert likely(len(chosen), len(channels), 0.5)
    assert all(channel.shape == (3,) for channel in chosen)
    assert kstest(np.concatenate(chosen), "uniform", (0.5, 0.5)).pvalue > 1e-3
    channels = [channel for drawn in values("low_resolution") for channel in drawn]
    factors = [channel for channel in channels if channel is not None]
    assert likely(len(factors), len(channels), 0.5)
    assert kstest(factors, "uniform", (0.5, 0.5)).pvalue > 1e-3


def test_transforms_happen_independently_of_each_other():
    happened = {name: np.array([drawn[name] is not None for drawn in DRAWN]) for name in PROBABILITIES}
    names = list(PROBABILITIES)
    for i, first in enumerate(names):
        for second in names[:i]:
            both = happened[first] & happened[second]
            assert likely(both.sum(), N, PROBABILITIES[first] * PROBABILITIES[second]), (first, second)


def test_what_happens_does_not_shift_later_numbers():
    """As many random numbers are taken either way: a transform that is left out changes no other."""
    counts = set()
    for step in range(50):
        rng, numbers = generator(1, 0, step, 0), generator(1, 0, step, 0)
        intensity.draw(rng, 2, 3)
        after = rng.random()
        counts.add(next(n for n in range(100) if numbers.random() == after))
    assert len(counts) == 1


# ---- order -----------------------------------------------------------------------------------------------------------


def drawn_of(**values):
    return {**dict.fromkeys(PROBABILITIES), **values}


def test_transforms_are_applied_in_nnunets_order(monkeypatch):
    order, named = [], {id(transform): name for name, transform in TRANSFORMS.items()}
    monkeypatch.setattr(intensity, "add_noise", lambda *_: order.append("noise"))
    for way in ("change_drawn", "change_all"):
        monkeypatch.setattr(
            intensity, way, lambda images, steps, _: order.extend(named[id(one)] for one, _ in steps) or images
        )
    for image in (PATCH, PATCH.to("meta")):
        intensity.apply(image[None], [drawn_of(**{name: [1.0, 1.0] for name in TRANSFORMS})], in_plane=False)
        assert order == ["noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma"]
        order.clear()


def test_transforms_follow_each_other_alike_on_all_channels_at_once():
    image = torch.randn((3, 9, 8, 10), generator=torch.Generator().manual_seed(3))
    steps = [(TRANSFORMS[APPLIED[name][0]], [*APPLIED[name][1], None]) for name in APPLIED if "2d" not in name]
    alone, together = intensity.change_drawn(image.clone(), steps, True), intensity.change_all(image, steps, True)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.equal(together[2], image[2])


def test_every_sample_and_channel_gets_what_was_drawn_for_it():
    batch = torch.stack([PATCH, PATCH + 1, PATCH * 2])
    drawn = [drawn_of(brightness=[0.8, 1.2]), drawn_of(), drawn_of(gamma=[0.9, 1.3], low_resolution=[None, 0.7])]
    result = intensity.apply(batch.clone(), drawn, in_plane=False)
    assert torch.equal(result[0], on_host("brightness", batch[0], [0.8, 1.2]))
    assert torch.equal(result[1], batch[1])
    assert torch.equal(result[2], on_host("gamma", on_host("low_resolution", batch[2], [None, 0.7]), [0.9, 1.3]))
