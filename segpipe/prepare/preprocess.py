"""One case, from the file's grid to the network's: transpose, crop, normalise, resample.

The order of nnunetv2/preprocessing/preprocessors/default_preprocessor.py. What the way back needs is kept in `Grid`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.prepare.nonzero import bounding_box, fill_holes, nonzero
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
    """A preprocessed case and the way back.

    image : (C, Z, Y, X) float32
    label, previous : (Z, Y, X) int16 or None; the annotation, and the segmentation of the stage before
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16] | None
    grid: Grid
    previous: NDArray[np.int16] | None = None


def preprocess(
    image: NDArray[np.float32],
    label: NDArray[np.int16] | None,
    spacing_mm: Sequence[float],
    plan: Mapping[str, Any],
    configuration: Configuration,
    previous: NDArray[np.int16] | None = None,
) -> Prepared:
    """Preprocess one case as read from its files.

    image : (C, Z, Y, X); label, previous : (Z, Y, X); plan : as read by `plan.read`
    previous : what the stage before a cascade's segmented; resampled as a label is
    """
    forward = plan["transpose_forward"]
    mask = nonzero(image)
    box = bounding_box(mask)
    crop = [(box[axis].start, box[axis].stop) for axis in forward]
    from_mm = tuple(spacing_mm[axis] for axis in forward)
    target_mm = case_target_mm(spacing_mm, forward, configuration)
    shape_before = tuple(mask.shape[axis] for axis in forward)
    grid = Grid(shape_before, tuple(crop), from_mm, target_mm, tuple(plan["transpose_backward"]))
    shape = resampled_shape(grid.cropped_shape, grid.spacing_mm, grid.target_mm)
    separate = separate_axis(grid.spacing_mm, grid.target_mm)
    # only labels and masked statistics ask for what lies inside
    inside = fill_holes(mask[box]) if label is not None or any(configuration.use_mask_for_norm) else mask[box]
    # without an annotation the stage before says what else is not empty, as in nnU-Net, which takes it for one
    known = previous if label is None else label
    if known is not None:
        inside = inside | (known[box] != 0)
    image, inside = image[:, *box].transpose(0, *(axis + 1 for axis in forward)), inside.transpose(forward)
    resampled = np.empty((len(image), *shape), np.float32)
    for target, channel in zip(resampled, _normalised(image, inside, plan, configuration), strict=True):
        target[:] = resample_image(channel[None], shape, separate)[0]
    if label is not None:
        label = np.where(inside, label[box].transpose(forward), np.int16(OUTSIDE))
        label = resample_label(np.ascontiguousarray(label), shape, separate)
    return Prepared(resampled, label, grid, None if previous is None else on_grid(previous, grid))


def case_target_mm(
    spacing_mm: Sequence[float], forward: Sequence[int], configuration: Configuration
) -> tuple[float, ...]:
    """The spacing that a case is resampled to, in the plan's order of axes: in 2d its slices keep their distance.

    spacing_mm : (Z, Y, X) of the file; forward : the plan's `transpose_forward`
    """
    of_plan = configuration.spacing_mm
    return *(spacing_mm[axis] for axis in forward[: 3 - len(of_plan)]), *of_plan


def on_grid(previous: NDArray[np.int16], grid: Grid) -> NDArray[np.int16]:
    """A segmentation on the file's grid, resampled to that of the preprocessed case."""
    forward = np.argsort(grid.transpose_backward)
    cropped = previous.transpose(forward)[tuple(slice(start, stop) for start, stop in grid.crop)]
    shape = resampled_shape(cropped.shape, grid.spacing_mm, grid.target_mm)
    return resample_label(cropped, shape, separate_axis(grid.spacing_mm, grid.target_mm))


def _normalised(
    image: NDArray[np.float32], inside: NDArray[np.bool_], plan: Mapping[str, Any], configuration: Configuration
) -> Iterator[NDArray[np.float32]]:
    """One channel after the other, so that a second copy of one is in memory and not of all."""
    channels = zip(configuration.normalisation, configuration.use_mask_for_norm, image, strict=True)
    for index, (scheme, use_mask, channel) in enumerate(channels):
        yield normalise(scheme, channel, inside if use_mask else None, plan["intensities"][str(index)])
