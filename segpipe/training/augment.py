"""nnU-Net's augmentation: rotate and scale, intensities, mirror (nnUNetTrainer.get_training_transforms).

Each transform is a pair: `draw_*` takes random numbers and returns parameters, or None where it does not happen;
`apply_*` is a function of its arguments. Parameters are drawn first, so only the voxels that a sample needs are read:
two thirds of the samples are neither rotated nor scaled and are read as they are. A sample is read on its own; all
else happens to the whole batch, on the device where it lies.

Images are (C, Z, Y, X) float32 tensors; maps (M, Z, Y, X) int16 are the label and, in a cascade, what the stage before
segmented. 2d patches have one slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.training import intensity
from segpipe.training.held import HeldCase
from segpipe.training.sampling import Box
from segpipe.training.warp import Boxed, warp

DUMMY_2D_ABOVE = 3  # flat patches are rotated in plane only

Generator = np.random.Generator
Tensor = torch.Tensor


@dataclass(frozen=True)
class Geometry:
    """How patches of one configuration are rotated and mirrored.

    patch_size, reach : (Z, Y, X); the patch, and the box that rotated and scaled versions of it may read
    in_plane : rotate and scale within Y and X only
    """

    patch_size: tuple[int, ...]
    reach: tuple[int, ...]
    in_plane: bool
    max_angle: float
    mirror_axes: tuple[int, ...]

    @classmethod
    def of(cls, patch_size: Sequence[int], mirror_axes: Sequence[int] | None) -> "Geometry":
        """nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size, for a 2d or 3d patch.

        mirror_axes : 0, 1, 2 for Z, Y, X, of which a 2d patch takes Y and X; None is all
        """
        n_axes = len(patch_size)
        dummy_2d = n_axes == 3 and max(patch_size) / patch_size[0] > DUMMY_2D_ABOVE
        elongated = n_axes == 2 and max(patch_size) / min(patch_size) > 1.5
        degrees = 15 if elongated else 180 if n_axes == 2 or dummy_2d else 30
        max_angle = degrees / 180 * pi
        reach = _reach(patch_size, min(max_angle, pi / 2))
        if dummy_2d:
            reach = (patch_size[0], *reach[1:])
        flat = (1,) * (3 - n_axes)
        mirrored = tuple(axis for axis in range(3 - n_axes, 3) if mirror_axes is None or axis in mirror_axes)
        return cls((*flat, *patch_size), (*flat, *reach), n_axes == 2 or dummy_2d, max_angle, mirrored)


def _reach(patch_size: Sequence[int], angle: float) -> tuple[int, ...]:
    """The box that nnU-Net reads for a patch (compute_initial_patch_size.py): rotated about one axis, over 0.85."""
    edges = np.array(patch_size, float)
    largest = edges.copy()
    planes = [(1, 2), (0, 2), (0, 1)] if len(edges) == 3 else [(0, 1)]
    for plane, (a, b) in enumerate(planes):
        turn = -angle if len(edges) == 3 and plane == 1 else angle
        rotated = edges.copy()
        rotated[a] = abs(edges[a] * cos(turn) + edges[b] * sin(turn))
        rotated[b] = abs(-edges[a] * sin(turn) + edges[b] * cos(turn))
        largest = np.maximum(largest, rotated)
    return tuple(int(edge) for edge in largest / 0.85)


def draw_spatial(rng: Generator, geometry: Geometry) -> NDArray[np.float64] | None:
    """Rotation (p 0.2) and one scale for all axes (p 0.2, above 1 shrinks the object): a (3, 3) matrix, or None."""
    rotate, scale = rng.random() < 0.2, rng.random() < 0.2
    angles = rng.uniform(-geometry.max_angle, geometry.max_angle, 3) if rotate else np.zeros(3)
    factor = rng.uniform(0.7, 1.4) if scale else 1.0
    if not (rotate or scale):
        return None
    if geometry.in_plane:
        turn = np.eye(3)
        turn[1:, 1:] = _turn(angles[2])
        return turn @ np.diag([1, factor, factor])
    about_z, about_y, about_x = np.eye(3), np.eye(3), np.eye(3)
    about_z[1:, 1:] = _turn(angles[0])
    about_y[::2, ::2] = _turn(-angles[1])
    about_x[:2, :2] = _turn(angles[2])
    return about_x @ about_y @ about_z * factor


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]])


def read_box(
    case: HeldCase, reach: Box, geometry: Geometry, matrix: NDArray[np.float64] | None
) -> tuple[Tensor, Tensor] | Boxed:
    """Read a patch from the middle of the box `reach`: its image and maps, or what it is to be sampled from.

    Beyond the volume and beyond the box the image is 0 and the maps PADDING_LABEL, as in nnU-Net, which cuts the
    box out before it rotates.
    """
    if matrix is None:
        start = [
            a + edge // 2 - p // 2 for a, edge, p in zip(reach.start, reach.size, geometry.patch_size, strict=True)
        ]
        return case.read(Box(tuple(start), geometry.patch_size))
    # coordinates relative to the centre of the box; the corners of the patch bound what is read
    extent = np.abs(matrix) @ ((np.array(geometry.patch_size) - 1) / 2)
    centre = (np.array(reach.size) - 1) / 2
    first = np.maximum(np.floor(centre - extent).astype(int) - 1, 0)
    last = np.minimum(np.ceil(centre + extent).astype(int) + 1, np.array(reach.size) - 1)
    size, centre = last - first + 1, centre - first
    # one voxel more before, two behind, on the sides that the patch reaches beyond: cells lie inside
    before, behind = (centre - extent < 0).astype(int), 2 * (centre + extent > size - 2)
    if geometry.in_plane:
        before[0] = behind[0] = 0
    start, size = reach.start + first - before, size + before + behind
    image, maps = case.read(Box(tuple(start.tolist()), tuple(size.tolist())), reach)
    return Boxed(image, maps, matrix, centre + before)


def patches(read: Sequence[tuple[Tensor, Tensor] | Boxed], geometry: Geometry) -> list[tuple[Tensor, Tensor]]:
    """Image and maps of each patch, rotated and scaled."""
    boxes = [one for one in read if isinstance(one, Boxed)]
    warped = iter(warp(boxes, geometry.patch_size, geometry.in_plane))
    return [next(warped) if isinstance(one, Boxed) else one for one in read]


def draw_mirror(rng: Generator, axes: Sequence[int]) -> tuple[int, ...]:
    """Each allowed axis with p 0.5."""
    return tuple(axis for axis in axes if rng.random() < 0.5)


@dataclass(frozen=True)
class Drawn:
    """Everything that is random in one augmented sample; `matrix` is None where it is neither rotated nor scaled."""

    matrix: NDArray[np.float64] | None
    intensity: dict[str, Any]
    mirror: tuple[int, ...]


def draw(rng: Generator, n_channels: int, geometry: Geometry) -> Drawn:
    """Draw one sample."""
    matrix = draw_spatial(rng, geometry)
    # 2d patches have no third axis to blur; flat 3d patches do (only their rotation and resolution are in plane)
    drawn = intensity.draw(rng, n_channels, 2 if geometry.patch_size[0] == 1 else 3)
    return Drawn(matrix, drawn, draw_mirror(rng, geometry.mirror_axes))


def apply(
    images: Tensor, maps: Tensor, drawn: Sequence[Drawn], geometry: Geometry, use_mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """What happens to a batch after it is read: intensities, mirroring, masks. It may be changed in place.

    images : (B, C, Z, Y, X) float32; maps : (B, M, Z, Y, X) int16, the label first, still with PADDING_LABEL
    use_mask : channels that were normalised inside the nonzero mask; they stay zero outside it, whatever was drawn
    """
    images = intensity.apply(images, [one.intensity for one in drawn], geometry.in_plane)
    images, maps = (_mirrored(volumes, drawn) for volumes in (images, maps))
    for channel, is_masked in enumerate(use_mask):
        if is_masked:
            images[:, channel].masked_fill_(maps[:, 0] < 0, 0)
    return images, maps


def _mirrored(volumes: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    return torch.stack(
        [
            own.flip([axis + 1 for axis in one.mirror]) if one.mirror else own
            for own, one in zip(volumes, drawn, strict=True)
        ]
    )
