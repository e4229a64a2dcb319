"""The intensity part of nnU-Net's augmentation, of whole batches.

Order and numbers of nnUNetTrainer.get_training_transforms, formulas of batchgeneratorsv2. `draw_*` returns None where
the transform does not happen, and takes as many random numbers either way. What happens to a channel is one function of
its voxels and of small tensors: on the host it runs on the channels that were drawn, elsewhere on all channels of the
batch at once, so that nothing there depends on what was drawn but the numbers.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from segpipe.training.held import sent

Generator = np.random.Generator
Tensor = torch.Tensor
Array = NDArray[Any]


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


def draw_noise(rng: Generator) -> tuple[float, int] | None:
    """Gaussian noise, p 0.1: its deviation, and a seed of its own because it is drawn voxel by voxel."""
    happens, sigma, seed = rng.random() < 0.1, rng.uniform(0, 0.1), int(rng.integers(2**62))
    return (sigma, seed) if happens else None


def draw_blur(rng: Generator, n_channels: int, n_axes: int) -> list[NDArray[np.float64] | None] | None:
    """Gaussian blur, p 0.2, per channel p 0.5: a deviation in voxels per axis."""
    happens = rng.random() < 0.2
    channels = [(rng.random() < 0.5, rng.uniform(0.5, 1.0, n_axes)) for _ in range(n_channels)]
    return [sigma if chosen else None for chosen, sigma in channels] if happens else None


def draw_factors(rng: Generator, n_channels: int, p: float, low: float, high: float) -> list[float] | None:
    """One factor per channel with probability `p`, below 1 as often as above (BGContrast)."""
    happens = rng.random() < p
    factors = [rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high) for _ in range(n_channels)]
    return factors if happens else None


def draw_low_resolution(rng: Generator, n_channels: int) -> list[float | None] | None:
    """Low resolution, p 0.25, per channel p 0.5: one factor for the axes."""
    happens = rng.random() < 0.25
    channels = [(rng.random() < 0.5, rng.uniform(0.5, 1.0)) for _ in range(n_channels)]
    return [factor if chosen else None for chosen, factor in channels] if happens else None


def apply(images: Tensor, drawn: Sequence[dict[str, Any]], in_plane: bool) -> Tensor:
    """Apply what was drawn for each sample, in nnU-Net's order; `images` (B, C, Z, Y, X) float32 may be changed."""
    add_noise(images, [one["noise"] for one in drawn])
    steps = []
    for name, transform in TRANSFORMS.items():
        values = [value for one in drawn for value in one[name] or [None] * images.shape[1]]
        if any(value is not None for value in values):
            steps.append((transform, values))
    change = change_drawn if images.device.type == "cpu" else change_all
    return change(images.flatten(0, 1), steps, in_plane).view(images.shape)


def add_noise(images: Tensor, noise: Sequence[tuple[float, int] | None]) -> None:
    """Add noise of a deviation and seed to all channels of a sample, where it has any."""
    for image, one in zip(images, noise, strict=True):
        if one is not None:
            sigma, seed = one
            generator = torch.Generator(images.device).manual_seed(seed)
            image.add_(torch.empty_like(image).normal_(generator=generator), alpha=sigma)


class Transform(NamedTuple):
    """What happens to channels.

    parameters : of a value for each channel, a channel's shape and whether resolution is lost in plane only: arrays
        (channels, numbers)
    change : of channels (R, Z, Y, X), which it may change in place, and the parameters: the new channels
    neutral : a value that keeps a channel as it is, but for rounding
    """

    parameters: Callable[[Sequence[Any], tuple[int, ...], bool], list[Array]]
    change: Callable[..., Tensor]
    neutral: Any


Step = tuple[Transform, Sequence[Any]]  # a value, or None, for each channel


def change_drawn(channels: Tensor, steps: Sequence[Step], in_plane: bool) -> Tensor:
    """Change (R, Z, Y, X) in place, each channel on its own where a value is drawn for it."""
    shape = tuple(channels.shape[1:])
    for transform, values in steps:
        for channel, value in zip(channels.split(1), values, strict=True):
            if value is not None:
                changed = transform.change(
                    channel, *map(torch.from_numpy, transform.parameters([value], shape, in_plane))
                )
                if changed is not channel:
                    channel.copy_(changed)
    return channels


def change_all(channels: Tensor, steps: Sequence[Step], in_plane: bool) -> Tensor:
    """The same of all channels at once, with what is neutral where nothing is drawn; the argument stays as it is."""
    shape = tuple(channels.shape[1:])
    parameters = [_of_all(transform, values, shape, in_plane) for transform, values in steps]
    there = iter(sent([one for several in parameters for one in several], channels.device))
    for (transform, _), several in zip(steps, parameters, strict=True):
        chosen, *own = islice(there, len(several))
        channels = torch.where(_per_channel(chosen), transform.change(channels.clone(), *own), channels)
    return channels


def _of_all(transform: Transform, values: Sequence[Any], shape: tuple[int, ...], in_plane: bool) -> list[Array]:
    """Which channels a transform is drawn for, (R,) bool, and its parameters."""
    chosen = np.array([value is not None for value in values])
    filled = [transform.neutral if value is None else value for value in values]
    return [chosen, *transform.parameters(filled, shape, in_plane)]


def _per_channel(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1)


# ---- the parameters and functions of each transform ------------------------------------------------------------------


def factor(values: Sequence[float], _shape: tuple[int, ...], _in_plane: bool) -> list[Array]:
    """One number."""
    return [np.array(values, np.float32)[:, None]]


def brightness(channels: Tensor, factors: Tensor) -> Tensor:
    """Multiply each channel."""
    return channels.mul_(_per_channel(factors))


def contrast(channels: Tensor, factors: Tensor) -> Tensor:
    """Stretch each channel around its mean, within its range."""
    mean, low, high = (reduce(channels, (1, 2, 3), keepdim=True) for reduce in (torch.mean, torch.amin, torch.amax))
    channels.sub_(mean).mul_(_per_channel(factors)).add_(mean)
    torch.maximum(channels, low, out=channels)
    return torch.minimum(channels, high, out=channels)


def gamma(channels: Tensor, exponents: Tensor, invert: bool) -> Tensor:
    """Raise each channel, scaled to 0..1 (from above where inverted), to a power; mean and deviation are kept."""
    mean, low, high = (reduce(channels, (1, 2, 3), keepdim=True) for reduce in (torch.mean, torch.amin, torch.amax))
    span = (high - low).clamp_min(1e-7)
    start, scale = (high, -span) if invert else (low, span)
    bent = channels.sub_(start).div_(scale)
    deviation = _size(bent - (mean - start) / scale)
    bent.log2_().mul_(_per_channel(exponents)).exp2_()  # x^g, twice as fast
    bent.sub_(bent.mean((1, 2, 3), keepdim=True))
    return bent.mul_(scale * deviation / _size(bent).clamp_min(1e-7)).add_(mean)


def _size(channels: Tensor) -> Tensor:
    """Root of the sum of squares: of centred numbers the deviation, but for a factor."""
    return _per_channel(torch.linalg.vector_norm(channels.flatten(1), dim=1))


def kernels(values: Sequence[Array | None], shape: tuple[int, ...], _in_plane: bool) -> list[Array]:
    """Half a Gaussian for each axis, the middle first; a value has deviations of the last axes, None does not blur."""
    sigmas = np.zeros((len(values), 3))
    for own, value in zip(sigmas, values, strict=True):
        if value is not None:
            own[3 - len(value) :] = value
    return [_half_gaussians(along, edge) for along, edge in zip(sigmas.T, shape, strict=True)]


def _half_gaussians(sigmas: Array, edge: int) -> Array:
    """As many taps as batchgeneratorsv2 takes, the odd number nearest to 6 sigma + 0.5, and as a border can reflect."""
    length = 6 * sigmas + 0.5
    nearest = np.rint(length)
    taps = nearest + (nearest % 2 == 0) * np.where(length >= nearest, 1, -1)
    places = np.arange(min(int(taps.max()) // 2 + 1, edge), dtype=np.float32)
    exponents = -0.5 * (places / np.maximum(sigmas, 1e-7).astype(np.float32)[:, None]) ** 2
    half = torch.exp(torch.from_numpy(exponents)).numpy() * (places <= taps[:, None] // 2)
    return half / (2 * half.sum(1) - half[:, 0])[:, None]


def blur(channels: Tensor, *kernels: Tensor) -> Tensor:
    """Blur along each axis, reflecting at the border."""
    for axis, kernel in enumerate(kernels, 1):
        if kernel.shape[1] > 1:
            channels = _blur(channels, axis, kernel)
    return channels


def _blur(channels: Tensor, axis: int, kernel: Tensor) -> Tensor:
    n, blurred = channels.shape[axis], channels * _per_channel(kernel[:, 0])
    far = kernel.shape[1] - 1
    # what lies beyond the borders is what lies before them, in reverse
    before, behind = channels.narrow(axis, 1, far).flip(axis), channels.narrow(axis, n - 1 - far, far).flip(axis)
    for i in range(1, far + 1):
        weight = _per_channel(kernel[:, i])
        blurred.narrow(axis, 0, n - i).addcmul_(channels.narrow(axis, i, n - i), weight)
        blurred.narrow(axis, i, n - i).addcmul_(channels.narrow(axis, 0, n - i), weight)
        blurred.narrow(axis, 0, i).addcmul_(before.narrow(axis, far - i, i), weight)
        blurred.narrow(axis, n - i, i).addcmul_(behind.narrow(axis, 0, i), weight)
    return blurred


def sources(values: Sequence[float], shape: tuple[int, ...], in_plane: bool) -> list[Array]:
    """The two voxels that each voxel lies between after the loss, and how far it is from the first.

    One axis after the other, (channels, sum of the edges).
    """
    found = []
    for value in values:
        kept = [n if in_plane and axis == 0 else round(n * value) for axis, n in enumerate(shape)]
        axes = zip(*map(_sources, shape, kept), strict=True)
        found.append([np.concatenate(parts) for parts in axes])
    return [np.stack(several) for several in zip(*found, strict=True)]


@cache
def _sources(n: int, coarse: int) -> tuple[Array, Array, Array]:
    """Of n voxels in a row, of which `coarse` stay.

    Down by nearest neighbour and up again linearly, as torch.nn.functional.interpolate has them.
    """
    kept = interpolate(torch.arange(n).float().view(1, 1, n), coarse, mode="nearest-exact").view(-1).long()
    place = ((torch.arange(n) + 0.5) * (coarse / n) - 0.5).clamp_(0, coarse - 1)
    first = place.long()
    return kept[first].numpy(), kept[(first + 1).clamp_max(coarse - 1)].numpy(), (place - first).numpy()


def low_resolution(channels: Tensor, *sources: Tensor) -> Tensor:
    """Voxels between those that are left."""
    edges = channels.shape[1:]
    for axis, of_axis in enumerate(zip(*(one.split(edges, 1) for one in sources), strict=True)):
        sides = [-1, *(channels.shape[axis + 1] if one == axis else 1 for one in range(3))]
        first, second, fraction = (one.view(sides) for one in of_axis)
        channels = torch.lerp(_taken(channels, axis + 1, first), _taken(channels, axis + 1, second), fraction)
    return channels


def _taken(channels: Tensor, axis: int, index: Tensor) -> Tensor:
    if len(channels) == 1 and axis < 3:  # copies whole lines, five times as fast
        return channels.index_select(axis, index.flatten())
    return channels.gather(axis, index.expand(channels.shape))


TRANSFORMS = {
    "blur": Transform(kernels, blur, None),
    "brightness": Transform(factor, brightness, 1.0),
    "contrast": Transform(factor, contrast, 1.0),
    "low_resolution": Transform(sources, low_resolution, 1.0),
    "inverted_gamma": Transform(factor, partial(gamma, invert=True), 1.0),
    "gamma": Transform(factor, partial(gamma, invert=False), 1.0),
}
