"""Where the voxels of a training's cases lie while it runs, behind one interface: a box is read, wherever it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.prepare.store import StoredCase
from segpipe.training.sampling import Box

PADDING_LABEL = -1
ALIGNED = 16  # bytes, for every type and for loads of several numbers at once
TYPES = {np.dtype(name): getattr(torch, name) for name in ("bool", "int32", "int64", "float32")}

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Place:
    """Where voxels lie, and where patches of them go.

    voxels : the device whose memory holds them; None leaves them mapped from their files
    maps : the type in which label maps are held
    patches : the device on which batches are made
    pin : on their way to another device patches go through page-locked memory
    """

    voxels: torch.device | None
    maps: torch.dtype
    patches: torch.device
    pin: bool


IN_FILES = Place(None, torch.int16, torch.device("cpu"), pin=False)


@dataclass(frozen=True)
class HeldCase:
    """One preprocessed case.

    image : (C, Z, Y, X) float32
    maps : label and, in a cascade, what the stage before segmented; (Z, Y, X) int8 or int16 each
    foreground, annotated : as in StoredCase, on the host
    """

    image: Tensor
    maps: tuple[Tensor, ...]
    foreground: dict[int, NDArray[np.integer]]
    annotated: NDArray[np.integer] | None
    place: Place

    @classmethod
    def of(cls, stored: StoredCase, place: Place = IN_FILES) -> "HeldCase":
        """Bring a case to its place; in its files it is there already."""
        maps = [stored.label] if stored.previous is None else [stored.label, stored.previous]
        image, *held = (torch.from_numpy(array) for array in (stored.image, *maps))
        if place.voxels is not None:
            image = image.to(place.voxels, copy=True)
            held = [one.to(place.voxels, place.maps, copy=True) for one in held]
        return cls(image, tuple(held), stored.foreground, stored.annotated, place)

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return tuple(self.image.shape[1:])

    def read(self, box: Box, of: Box | None = None) -> tuple[Tensor, Tensor]:
        """Image (C, *box.size) float32 and maps (M, *box.size) int16, where batches are made.

        Beyond the volume, and beyond the box `of`, they are 0 and PADDING_LABEL. A CUDA device copies when its present
        stream comes to it.
        """
        inside, within = _overlap(box, of or box, self.shape)
        image = self._patch(len(self.image), box, torch.float32)
        maps = self._patch(len(self.maps), box, torch.int16)
        if any(part.stop - part.start < size for part, size in zip(within, box.size, strict=True)):
            image.zero_()
            maps.fill_(PADDING_LABEL)
        image[:, *within].copy_(self.image[:, *inside])
        for patch, whole in zip(maps, self.maps, strict=True):
            patch[within].copy_(whole[inside])
        to = self.place.patches
        return image.to(to, non_blocking=to.type == "cuda"), maps.to(to, non_blocking=to.type == "cuda")

    def _patch(self, n: int, box: Box, dtype: torch.dtype) -> Tensor:
        """Memory for a patch beside the voxels. Torch reuses page-locked memory when what is copied from it is."""
        beside = self.image.device
        pin = self.place.pin and beside.type != self.place.patches.type
        return torch.empty((n, *box.size), dtype=dtype, device=beside, pin_memory=pin)


def sent(arrays: Sequence[NDArray[Any]], to: torch.device) -> list[Tensor]:
    """Small arrays of the host on a device, all in one copy.

    From memory that is not page-locked CUDA would wait for the device. Each begins where any type may.
    """
    starts = [0, *np.cumsum([-(-one.nbytes // ALIGNED) * ALIGNED for one in arrays]).tolist()]
    packed = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=to.type == "cuda")
    for one, start in zip(arrays, starts, strict=False):
        packed.numpy()[start : start + one.nbytes].view(one.dtype)[:] = one.ravel()
    there = packed.to(to, non_blocking=True)
    return [
        there[start : start + one.nbytes].view(TYPES[one.dtype]).view(one.shape)
        for one, start in zip(arrays, starts, strict=False)
    ]


def _overlap(box: Box, of: Box, shape: Sequence[int]) -> tuple[Slices, Slices]:
    """The part of a box that lies inside another and a volume, in the volume's and in the box's own voxels.

    It may be empty.
    """
    inside, within = [], []
    for start, size, of_start, of_size, edge in zip(box.start, box.size, of.start, of.size, shape, strict=True):
        low = max(start, of_start, 0)
        high = max(min(start + size, of_start + of_size, edge), low)
        inside.append(slice(low, high))
        within.append(slice(low - start, high - start))
    return tuple(inside), tuple(within)
