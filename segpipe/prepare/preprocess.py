"""One case, from the file's grid to the network's: transpose, crop, normalise, resample.

The order of nnunetv2/preprocessing/preprocessors/default_preprocessor.py. What the way back needs is kept in `Grid`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.prepare.fingerprint import bounding_box, nonzero_mask
from segpipe.prepare.normalise import normalise
from segpipe.prepare.plan import Configuration
from segpipe.prepare.resample import resample_image, resample_label, separate_axis
from segpipe.prepare.spacing import resampled_shape

OUTSIDE = -1  # label of background voxels outside the nonzero region


@dataclass(frozen=True)
class Grid:
    """The way back from a preprocessed case to its file. All but `transpose_backward` in the plan's axis order.

    shape : of the whole volume; crop : start and stop of the nonzero box per axis
    spacing_mm : of the file; target_mm : of the preprocessed case
    """

    shape: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, ...]
    target_mm: tuple[float, ...]
    transpose_backward: tuple[int, ...]

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Shape of the nonzero box, before resampling."""
        return tuple(stop - start for start, stop in self.crop)

    @property
    def separate(self) -> int | None:
        """The axis that is resampled on its own on the way back."""
        return separate_axis(self.target_mm, self.spacing_mm)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Grid":
        """The inverse of dataclasses.asdict through JSON."""
        crop = tuple((start, stop) for start, stop in value["crop"])
        rest = [tuple(value[key]) for key in ("spacing_mm", "target_mm", "transpose_backward")]
        return cls(tuple(value["shape"]), crop, *rest)


@dataclass(frozen=True)
class Prepared:
    """A preprocessed case: image (C, Z, Y, X) float32, label (Z, Y, X) int16 or None, and the way back."""

    image: NDArray[np.float32]
    label: NDArray[np.int16] | None
    grid: Grid


def preprocess(
    image: NDArray[np.float32],
    label: NDArray[np.int16] | None,
    spacing_mm: Sequence[float],
    plan: Mapping[str, Any],
    configuration: Configuration,
) -> Prepared:
    """Preprocess one case as read from its files.

    image : (C, Z, Y, X); label : (Z, Y, X); plan : as read by `plan.read`
    """
    forward = plan["transpose_forward"]
    image = image.transpose(0, *(axis + 1 for axis in forward))
    mask = nonzero_mask(image)
    box = bounding_box(mask)
    from_mm = tuple(spacing_mm[axis] for axis in forward)
    # 2d: slices are never resampled, so they keep their distance
    target_mm = (*from_mm[: 3 - len(configuration.spacing_mm)], *configuration.spacing_mm)
    crop = tuple((side.start, side.stop) for side in box)
    grid = Grid(mask.shape, crop, from_mm, target_mm, tuple(plan["transpose_backward"]))
    image, mask = image[:, *box], mask[box]
    shape = resampled_shape(mask.shape, grid.spacing_mm, grid.target_mm)
    separate = separate_axis(grid.spacing_mm, grid.target_mm)
    if label is not None:
        label = label.transpose(forward)[box]
        inside = mask | (label != 0)
        label = resample_label(np.where(inside, label, np.int16(OUTSIDE)), shape, separate)
    else:
        inside = mask
    normalised = _normalise(image, inside, plan, configuration)
    return Prepared(np.ascontiguousarray(resample_image(normalised, shape, separate)), label, grid)


def _normalise(
    image: NDArray[np.float32], inside: NDArray[np.bool_], plan: Mapping[str, Any], configuration: Configuration
) -> NDArray[np.float32]:
    channels = zip(configuration.normalisation, configuration.use_mask_for_norm, image, strict=True)
    return np.stack(
        [
            normalise(scheme, channel, inside if use_mask else None, plan["intensities"][str(index)])
            for index, (scheme, use_mask, channel) in enumerate(channels)
        ]
    )
