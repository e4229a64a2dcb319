"""Which case, which place: every draw is a pure function of seed, step and sample.

A counter-based generator (Philox) gives the same numbers for any number of threads and before and after a resume.
The places are nnU-Net's (nnunetv2/training/dataloading/data_loader.py): cases uniformly, with replacement unless the
settings say otherwise; the last third of a batch is centred on a voxel of a random class; the box may reach beyond the
volume as far as it does there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TRAINING, VALIDATION, ORDER, NETWORK = 0, 1, 2, 3  # independent streams of one seed


def generator(seed: int, stream: int, step: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, sample, step]))


def case_in_pass(seed: int, number: int, n_cases: int) -> int:
    """Index of the case of the `number`th sample, counted from the start of the training, drawn without replacement.

    Every pass over the cases has an order of its own.
    """
    order = generator(seed, ORDER, number // n_cases, 0).permutation(n_cases)
    return int(order[number % n_cases])


@dataclass(frozen=True)
class Box:
    """A box in voxels of a preprocessed case; it may reach beyond it. start, size : (Z, Y, X)."""

    start: tuple[int, ...]
    size: tuple[int, ...]


def forced_foreground(sample: int, batch_size: int, share: float) -> bool:
    """Whether a sample must contain foreground: the last `share` of a batch."""
    return sample >= round(batch_size * (1 - share))


class Places(Protocol):
    """What a case must say of itself for a place in it to be drawn."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""

    @property
    def foreground(self) -> dict[int, NDArray[np.integer]]:
        """Class or region, counted from 1, to flat voxel indices; none is empty."""

    @property
    def annotated(self) -> NDArray[np.integer] | None:
        """Flat indices of voxels that are annotated, or None where all are."""


def draw_box(rng: np.random.Generator, case: Places, size: Sequence[int], margin: Sequence[int], force: bool) -> Box:
    """Draw a box of `size` voxels.

    margin : voxels by which a box may reach beyond the volume in total, so that borders are seen as often as the
        inside; raised where the volume is smaller than the box
    force : centre the box on a voxel of a class that the case has, where it has any

    Where only a part of a case is annotated, the other boxes are centred on an annotated voxel.
    """
    shape = case.shape
    needed = [max(m, edge - n) for m, edge, n in zip(margin, size, shape, strict=True)]
    low = [-need // 2 for need in needed]
    high = [n + need // 2 + need % 2 - edge for n, need, edge in zip(shape, needed, size, strict=True)]
    voxels = _centres(rng, case, force)
    if voxels is not None and len(voxels):
        voxel = np.unravel_index(int(rng.choice(voxels)), shape)
        start = [max(lo, int(v) - edge // 2) for lo, v, edge in zip(low, voxel, size, strict=True)]
    else:
        start = [int(rng.integers(lo, hi + 1)) for lo, hi in zip(low, high, strict=True)]
    return Box(tuple(start), tuple(size))


def _centres(rng: np.random.Generator, case: Places, force: bool) -> NDArray[np.integer] | None:
    """The voxels of which one becomes the centre of a box; None for a place without regard to the label."""
    if force and case.foreground:
        return case.foreground[int(rng.choice(list(case.foreground)))]
    return case.annotated
