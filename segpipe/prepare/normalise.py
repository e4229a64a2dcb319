"""Intensity normalisation of one channel (nnunetv2/preprocessing/normalization/default_normalization_schemes.py)."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SegpipeError, problem

EPSILON = 1e-8
CHUNK_VALUES = 1 << 20  # in double precision at a time

Channel = NDArray[np.float32]
Mask = NDArray[np.bool_]


def normalise(scheme: str, channel: Channel, inside: Mask | None, intensities: Mapping[str, float]) -> Channel:
    """Normalise one channel.

    channel : (Z, Y, X) float32
    inside : (Z, Y, X), z-score only: statistics and result are confined to it, the outside keeps its values
    intensities : the fingerprint's statistics of the channel, ct only
    """
    if scheme == "ct":
        return ct(channel, intensities)
    if scheme == "zscore":
        return zscore(channel, inside)
    if scheme == "rescale_to_0_1":
        return rescale_to_0_1(channel)
    if scheme == "rgb_to_0_1":
        return rgb_to_0_1(channel)
    assert scheme == "none", scheme
    return channel.copy()


def moments(values: Channel) -> tuple[float, float]:
    """Mean and standard deviation in double precision, without a copy of all values in it."""
    mean = float(values.mean(dtype=np.float64))
    pieces = np.array_split(values, min(values.size // CHUNK_VALUES + 1, len(values)))
    squares = (np.square(np.subtract(piece, mean, dtype=np.float64)).sum() for piece in pieces)
    return mean, math.sqrt(math.fsum(squares) / values.size)


def zscore(channel: Channel, inside: Mask | None) -> Channel:
    """Zero mean and unit variance of the image, or of its masked part; an empty part leaves the image as it is."""
    values = channel if inside is None else channel[inside]
    result = channel.copy()
    if not values.size:
        return result
    mean, std = moments(values)
    where = True if inside is None else inside
    rounded = np.float32(mean)  # the rest goes off by itself: far from zero single precision has no digits for it
    for part in (rounded, np.float32(mean - float(rounded))):
        np.subtract(result, part, out=result, where=where)
    np.divide(result, np.float32(max(std, EPSILON)), out=result, where=where)
    return result


def ct(channel: Channel, intensities: Mapping[str, float]) -> Channel:
    """Clip to the dataset's foreground percentiles, then scale by the dataset's foreground mean and deviation."""
    result: Channel = np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"])
    result -= intensities["mean"]
    result /= max(intensities["std"], EPSILON)
    return result


def rescale_to_0_1(channel: Channel) -> Channel:
    """Minimum to 0, maximum to 1."""
    result: Channel = channel - channel.min()
    result /= max(float(result.max()), EPSILON)
    return result


def rgb_to_0_1(channel: Channel) -> Channel:
    """0..255 to 0..1. Raises SegpipeError for values outside."""
    if channel.min() < 0 or channel.max() > 255:
        raise SegpipeError(
            problem(
                "not an 8-bit channel",
                where="channel with rgb_to_0_1",
                found=f"{channel.min():g} to {channel.max():g}",
                expected="0 to 255",
                cure="rename the channel in dataset.json to choose another normalisation",
            )
        )
    return channel / np.float32(255)
