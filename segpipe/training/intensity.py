"""The intensity part of nnU-Net's augmentation, in `draw_*` and `apply_*` pairs.

Order and numbers of nnUNetTrainer.get_training_transforms, formulas of batchgeneratorsv2. `draw_*` returns None where
the transform does not happen, and takes as many random numbers either way. Images are (C, Z, Y, X) float32.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv3d, interpolate, pad

Generator = np.random.Generator
Tensor = torch.Tensor


def draw(rng: Generator, n_channels: int, n_axes: int) -> dict[str, Any]:
    """Parameters of all intensity transforms."""
    return {
        "noise": draw_noise(rng),
        "blur": draw_blur(rng, n_channels, n_axes),
        "brightness": draw_factors(rng, n_channels, 0.15, 0.75, 1.25),
        "contrast": draw_factors(rng, n_channels, 0.15, 0.75, 1.25),
        "low_resolution": draw_low_resolution(rng, n_channels),
        "inverted_gamma": draw_factors(rng, n_channels, 0.1, 0.7, 1.5),
        "gamma": draw_factors(rng, n_channels, 0.3, 0.7, 1.5),
    }


def apply(image: Tensor, drawn: dict[str, Any], in_plane: bool) -> Tensor:
    """Apply the transforms that were drawn, in nnU-Net's order."""
    if drawn["noise"]:
        image = apply_noise(image, drawn["noise"])
    if drawn["blur"]:
        image = apply_blur(image, drawn["blur"])
    if drawn["brightness"]:
        image = apply_brightness(image, drawn["brightness"])
    if drawn["contrast"]:
        image = apply_contrast(image, drawn["contrast"])
    if drawn["low_resolution"]:
        image = apply_low_resolution(image, drawn["low_resolution"], in_plane)
    if drawn["inverted_gamma"]:
        image = apply_gamma(image, drawn["inverted_gamma"], invert=True)
    if drawn["gamma"]:
        image = apply_gamma(image, drawn["gamma"], invert=False)
    return image


def draw_noise(rng: Generator) -> tuple[float, int] | None:
    """Gaussian noise, p 0.1: its deviation, and a seed of its own because it is drawn voxel by voxel."""
    happens, sigma, seed = rng.random() < 0.1, rng.uniform(0, 0.1), int(rng.integers(2**62))
    return (sigma, seed) if happens else None


def apply_noise(image: Tensor, noise: tuple[float, int]) -> Tensor:
    """Add the noise to all channels."""
    sigma, seed = noise
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def draw_blur(rng: Generator, n_channels: int, n_axes: int) -> list[NDArray[np.float64] | None] | None:
    """Gaussian blur, p 0.2, per channel p 0.5: a deviation in voxels per axis."""
    happens = rng.random() < 0.2
    channels = [(rng.random() < 0.5, rng.uniform(0.5, 1.0, n_axes)) for _ in range(n_channels)]
    return [sigma if chosen else None for chosen, sigma in channels] if happens else None


def apply_blur(image: Tensor, sigmas: list[NDArray[np.float64] | None]) -> Tensor:
    """Blur the chosen channels along their last axes, reflecting at the border."""
    return torch.stack([channel if s is None else _blur(channel, s) for channel, s in zip(image, sigmas, strict=True)])


def _blur(channel: Tensor, sigmas: NDArray[np.float64]) -> Tensor:
    blurred = channel[None, None]
    for axis, sigma in zip(range(5 - len(sigmas), 5), sigmas, strict=True):
        kernel = _gaussian(sigma)
        radius = len(kernel) // 2
        sides = [0] * 6
        sides[2 * (4 - axis)] = sides[2 * (4 - axis) + 1] = radius
        shape = [1] * 5
        shape[axis] = len(kernel)
        blurred = conv3d(pad(blurred, sides, mode="reflect"), kernel.view(shape))
    return blurred[0, 0]


def _gaussian(sigma: float) -> Tensor:
    """As many taps as batchgeneratorsv2 takes: the odd number nearest to 6 sigma + 0.5."""
    length = 6 * sigma + 0.5
    taps = round(length)
    if taps % 2 == 0:
        taps += 1 if length >= taps else -1
    x = torch.arange(taps) - (taps - 1) / 2
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return kernel / kernel.sum()


def draw_factors(rng: Generator, n_channels: int, p: float, low: float, high: float) -> list[float] | None:
    """One factor per channel with probability `p`, below 1 as often as above (BGContrast)."""
    happens = rng.random() < p
    factors = [rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high) for _ in range(n_channels)]
    return factors if happens else None


def apply_brightness(image: Tensor, factors: list[float]) -> Tensor:
    """Multiply each channel."""
    return image * torch.tensor(factors).view(-1, 1, 1, 1)


def apply_contrast(image: Tensor, factors: list[float]) -> Tensor:
    """Stretch each channel around its mean, within its range."""
    flat = image.flatten(1)
    mean = flat.mean(1, keepdim=True)
    low, high = flat.aminmax(dim=1, keepdim=True)
    stretched = (flat - mean) * torch.tensor(factors).view(-1, 1) + mean
    return torch.minimum(torch.maximum(stretched, low), high).view(image.shape)


def draw_low_resolution(rng: Generator, n_channels: int) -> list[float | None] | None:
    """Low resolution, p 0.25, per channel p 0.5: one factor for the axes."""
    happens = rng.random() < 0.25
    channels = [(rng.random() < 0.5, rng.uniform(0.5, 1.0)) for _ in range(n_channels)]
    return [factor if chosen else None for chosen, factor in channels] if happens else None


def apply_low_resolution(image: Tensor, factors: list[float | None], in_plane: bool) -> Tensor:
    """Down by nearest neighbour, up again linearly; along Y and X only for flat patches."""
    return torch.stack(
        [x if f is None else _low_resolution(x, f, in_plane) for x, f in zip(image, factors, strict=True)]
    )


def _low_resolution(channel: Tensor, factor: float, in_plane: bool) -> Tensor:
    shape = list(channel.shape)
    coarse = [n if in_plane and axis == 0 else round(n * factor) for axis, n in enumerate(shape)]
    down = interpolate(channel[None, None], coarse, mode="nearest-exact")
    return interpolate(down, shape, mode="trilinear")[0, 0]


def apply_gamma(image: Tensor, gammas: list[float], invert: bool) -> Tensor:
    """Raise each channel, scaled to 0..1, to a power; mean and deviation are kept."""
    flat = -image.flatten(1) if invert else image.flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    span = high - low
    bent = ((flat - low) / span.clamp_min(1e-7)) ** torch.tensor(gammas).view(-1, 1) * span + low
    scale = flat.std(1, keepdim=True) / bent.std(1, keepdim=True).clamp_min(1e-7)
    kept = (bent - bent.mean(1, keepdim=True)) * scale + flat.mean(1, keepdim=True)
    return (-kept if invert else kept).view(image.shape)
