"""Where the voxels of a training's cases lie while it runs, behind one interface: a box is read, wherever it is."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from segpipe.prepare.store import StoredCase
from segpipe.training.sampling import Box

PADDING_LABEL = -1


@dataclass(frozen=True)
class HeldCase:
    """One preprocessed case.

    image : (C, Z, Y, X) float32
    maps : label and, in a cascade, what the stage before segmented; (Z, Y, X) int16 each
    foreground, annotated : as in StoredCase, on the host
    """

    image: Tensor
    maps: tuple[Tensor, ...]
    foreground: dict[int, NDArray[np.int64]]
    annotated: NDArray[np.int64] | None

    @classmethod
    def of(cls, stored: StoredCase) -> "HeldCase":
        """The case where it lies: mapped from its files."""
        maps = [stored.label] if stored.previous is None else [stored.label, stored.previous]
        image, *mapped = (torch.from_numpy(array) for array in (stored.image, *maps))
        return cls(image, tuple(mapped), stored.foreground, stored.annotated)

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return tuple(self.image.shape[1:])

    def read(self, box: Box) -> tuple[Tensor, Tensor]:
        """Image (C, ...) and maps (M, ...) of a box; beyond the volume 0 and PADDING_LABEL."""
        sides = list(zip(box.start, box.size, self.shape, strict=True))
        inside = tuple(slice(max(a, 0), max(min(a + n, s), 0)) for a, n, s in sides)
        before_after = [
            (max(side.start - a, 0), max(a + n - max(side.stop, side.start), 0))
            for (a, n, _), side in zip(sides, inside, strict=True)
        ]
        padding = [width for pair in reversed(before_after) for width in pair]
        maps = torch.stack([one[inside] for one in self.maps])
        return pad(self.image[:, *inside].contiguous(), padding), pad(maps, padding, value=PADDING_LABEL)
