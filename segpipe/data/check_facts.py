"""What is worth knowing of a case beyond whether it can be used. Small: thousands of cases are kept at once."""

import hashlib
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segpipe.data.image import Volume
from segpipe.data.labels import IGNORE, Labels

# Voxels that the quantiles of a channel are taken from, about: as if drawn at random, the median is off by 0.35 % of
# the ranks (its standard deviation, 0.5 / sqrt(20,000)), other quantiles by less.
SAMPLE = 20_000
COUNTED_AT_ONCE = 1_000_000  # voxels of a label map


@dataclass(frozen=True)
class Channel:
    """Intensities of one channel, the padding around the image left out.

    file : which one of the case holds it
    levels : 5 %, 50 % and 95 % quantiles of evenly spaced voxels
    content : digest of the voxels
    """

    levels: tuple[float, float, float]
    file: int
    constant: bool
    content: str


@dataclass(frozen=True)
class Facts:
    """One case.

    shape, spacing_mm : (Z, Y, X)
    orientation : where the axes X, Y, Z of the file lead, such as RAS; empty for a 2D image
    offset_mm : the largest distance between where two files of the case place a corner
    voxels : of each class or region, and of the ignore label; None for a case without label
    outside_percent : of the labelled voxels lie in the padding around the image
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    is_2d: bool
    offset_mm: float
    channels: tuple[Channel, ...]
    voxels: dict[str, int] | None
    outside_percent: float

    @property
    def content(self) -> str:
        """Digest of the voxels of all channels."""
        return "".join(channel.content for channel in self.channels)

    @property
    def ml_per_voxel(self) -> float | None:
        """None for a 2D image."""
        return None if self.is_2d else float(np.prod(self.spacing_mm)) / 1000


def measure(images: list[Volume], label: Volume | None, axes: str, labels: Labels) -> Facts:
    """The facts of a case whose files lie on one grid.

    images : one volume per file
    label : values as in the files
    axes : orientation as stored
    """
    files = [number for number, volume in enumerate(images) for _ in volume.array]
    channels = [channel for volume in images for channel in volume.array.astype(np.float32, copy=False)]
    padding = _padding(channels)
    voxels, outside = _count(label.array[0], padding, labels) if label else (None, 0)
    labelled = _labelled(voxels, labels)
    volumes = [*images, label] if label else images
    return Facts(
        images[0].shape,
        images[0].spacing_mm,
        axes,
        images[0].is_2d,
        max(float(np.abs(file.corners_mm() - images[0].corners_mm()).max()) for file in volumes),
        tuple(_channel(file, channel, padding) for file, channel in zip(files, channels, strict=True)),
        None if voxels is None else _by_class(voxels, labels),
        100 * outside / labelled if labelled else 0.0,
    )


def _padding(channels: list[NDArray[np.float32]]) -> NDArray[np.bool_] | None:
    """Where all channels have the value that most of their corners have; None where corners differ."""
    mask: NDArray[np.bool_] | None = None
    for channel in channels:
        corners = channel[tuple(slice(None, None, max(n - 1, 1)) for n in channel.shape)]
        values, counts = np.unique(corners, return_counts=True)
        if 2 * counts.max() < corners.size:
            return None
        here: NDArray[np.bool_] = channel == values[counts.argmax()]
        mask = here if mask is None else mask & here
    return mask


def _channel(file: int, channel: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> Channel:
    if padding is not None and padding.all():
        padding = None
    n_inside = channel.size if padding is None else channel.size - int(np.count_nonzero(padding))
    # without a factor in common with an edge: a sample of some columns alone would be none of the volume
    step = next(n for n in itertools.count(max(1, n_inside // SAMPLE)) if math.gcd(n, channel.size) == 1)
    sample = channel.reshape(-1)[::step]
    if padding is not None:
        sample = sample[~padding.reshape(-1)[::step]]
    low, middle, high = np.percentile(sample, [5, 50, 95]) if sample.size else [channel.flat[0]] * 3
    content = hashlib.sha256(f"{channel.shape}".encode() + np.ascontiguousarray(channel).data).hexdigest()[:16]
    return Channel((float(low), float(middle), float(high)), file, bool(channel.min() == channel.max()), content)


def _count(
    label: NDArray[np.integer], padding: NDArray[np.bool_] | None, labels: Labels
) -> tuple[NDArray[np.int64], int]:
    """Voxels by the training's value, but for the background, and labelled ones in the padding.

    Some slices at a time, to save memory.
    """
    counts = np.zeros(len(labels.file_values), np.int64)
    outside, step = 0, max(1, COUNTED_AT_ONCE // label[0].size)
    for start in range(0, len(label), step):
        values = labels.from_files(label[start : start + step])
        counts += np.bincount(values[values > 0], minlength=len(counts))
        if padding is not None:
            labelled = (values > 0) & (values < labels.n_values)
            outside += int(np.count_nonzero(labelled & padding[start : start + step]))
    return counts, outside


def _labelled(voxels: NDArray[np.int64] | None, labels: Labels) -> int:
    """Voxels of any class but the background."""
    return 0 if voxels is None else int(voxels[1 : labels.n_values].sum())


def _by_class(voxels: NDArray[np.int64], labels: Labels) -> dict[str, int]:
    counts = {name: int(sum(voxels[value] for value in values)) for name, values in labels.foreground.items()}
    return counts | ({} if labels.ignore is None else {IGNORE: int(voxels[labels.ignore])})
