"""From logits on the network's grid to label map and probabilities on the file's grid.

Block by block, so that neither logits nor probabilities of all classes are in memory at the file's resolution unless
they are asked for.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.data.labels import Labels
from segpipe.evaluation.uncertainty import Disagreement
from segpipe.inference.regrid import Block, Source, blocks
from segpipe.prepare.preprocess import Grid

VALUES_AT_ONCE = 2**22  # probabilities that are compared together

Probabilities = NDArray[np.floating]


class Sink(Protocol):
    """What is made of a case's logits, block after block, in several threads."""

    def take(self, block: Block) -> None:
        """One block of the file's cropped grid."""


def export(source: Source, grid: Grid, sinks: Sequence[Sink], on: torch.device, buffer_bytes: int) -> None:
    """Resample the logits of a case to its file's grid, for all sinks at once."""

    def take(block: Block) -> None:
        for sink in sinks:
            sink.take(block)
        block.forget()

    threads = torch.get_num_threads()
    # a block is for one thread; without a word each of them would start as many of torch's own
    workers = threads if on.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(workers, "export", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for ready in blocks(source, grid, on, buffer_bytes):
                list(pool.map(take, ready))
                ready.clear()  # views of a buffer that the next column does without
    finally:
        torch.set_num_threads(threads)  # of threads to come, which take what was set last


def file_shape(grid: Grid) -> tuple[int, ...]:
    """Shape of the file, (Z, Y, X)."""
    return tuple(grid.shape[axis] for axis in grid.transpose_backward)


def in_crop(array: Tensor, grid: Grid) -> Tensor:
    """The cropped part of (..., Z, Y, X) on the file's grid, its axes in the plan's order: a view."""
    before = array.ndim - 3
    forward = [before + int(axis) for axis in np.argsort(grid.transpose_backward)]
    turned = array.permute(*range(before), *forward)
    z, y, x = (slice(start, stop) for start, stop in grid.crop)
    return turned[..., z, y, x]


class LabelMap:
    """The most probable class of each voxel, or the regions above one half painted in their order.

    array : (Z, Y, X) int16 on the file's grid; what lies outside the crop is background
    members : whose logits come one behind the other and are averaged
    """

    def __init__(self, grid: Grid, labels: Labels, members: int = 1) -> None:
        self.array = np.zeros(file_shape(grid), np.int16)
        self._inside = in_crop(torch.from_numpy(self.array), grid)
        self._labels, self._members = labels, members

    def take(self, block: Block) -> None:
        """Decide the voxels of a block.

        Where one class wins at all places that the block is made of, it wins in between, by the same weights.
        """
        if block.is_resampled and block.support.device.type == "cpu":
            low, high = decided(mean_of(block.support, self._members), self._labels).aminmax()
            if low == high:
                self._inside[block.where] = painted(low, self._labels).item()
                return
        self._inside[block.where] = painted(decided(mean_of(block.logits, self._members), self._labels), self._labels)


class Softmax:
    """Probabilities of each voxel, added up.

    array : (heads, Z, Y, X) on the file's grid, zeros; float16, or float32 where something is added later
    weight : of this source in the sum
    members : whose logits come one behind the other and are averaged
    """

    def __init__(self, array: Probabilities, grid: Grid, labels: Labels, weight: float = 1, members: int = 1) -> None:
        whole = torch.from_numpy(array)
        self._inside, self._labels = in_crop(whole, grid), labels
        self._weight, self._members = weight, members
        if not labels.has_regions:  # of plain classes the first is the background: it fills what lies outside
            whole[0] += weight
            self._inside[0] -= weight

    def take(self, block: Block) -> None:
        """Add the probabilities of a block."""
        probabilities = activated(mean_of(block.logits, self._members), self._labels)
        self._inside[:, *block.where] += (probabilities * self._weight).to(self._inside)


class Uncertainty:
    """How much members disagree on each voxel, folds and configurations: mutual information, 0 to 1.

    array : (Z, Y, X) float32 on the file's grid; 0 outside the crop
    """

    def __init__(self, grid: Grid, labels: Labels, members: int, is_last: bool) -> None:
        self.array = np.zeros(file_shape(grid), np.float32)
        self._open: dict[tuple[tuple[int, int], ...], Disagreement] = {}
        self._labels = labels
        self.prepare(grid, members, is_last)

    def prepare(self, grid: Grid, members: int, is_last: bool) -> None:
        """Before the blocks of a configuration.

        members : how many, whose logits come one behind the other
        is_last : whether none comes after it; until then the sums of all blocks are kept
        """
        self._back, self._members, self._is_last = grid.transpose_backward, members, is_last
        self._inside = in_crop(torch.from_numpy(self.array), grid).permute(self._back)

    def take(self, block: Block) -> None:
        """Add the members' view of a block, in the order of the file's axes, in which all configurations agree."""
        apart = block.logits.unflatten(0, (self._members, -1)).permute(0, 1, *(2 + axis for axis in self._back))
        where = tuple(block.where[axis] for axis in self._back)
        key = tuple((part.start, part.stop) for part in where)
        seen = self._open.pop(key, None)
        if seen is None:
            seen = Disagreement(apart.shape[2:], apart.shape[1], self._labels.has_regions, apart.device)
        for logits in apart:
            seen.add(activated(logits, self._labels))
        if self._is_last:
            self._inside[where] = seen.mutual_information().to(self._inside)
        else:
            self._open[key] = seen


def mean_of(logits: Tensor, members: int) -> Tensor:
    """The mean logits of members that come one behind the other, (heads, Z, Y, X)."""
    return logits if members == 1 else logits.unflatten(0, (members, -1)).mean(0)


def activated(logits: Tensor, labels: Labels) -> Tensor:
    """Probabilities of (heads, Z, Y, X): softmax of plain classes, sigmoid of regions."""
    return logits.sigmoid() if labels.has_regions else logits.softmax(0)


def decided(logits: Tensor, labels: Labels) -> Tensor:
    """What decides each voxel: the index of the largest class; of regions 1 + that of the last one painted, or 0."""
    if labels.regions_order is None:
        return logits.max(0).indices
    last = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    for index, one in enumerate(logits):
        last[one > 0] = index + 1
    return last


def painted(decision: Tensor, labels: Labels) -> Tensor:
    """The training's values of what `decided` found, int16."""
    if labels.regions_order is None:
        return decision.to(torch.int16)
    return torch.tensor([0, *labels.regions_order], dtype=torch.int16, device=decision.device)[decision]


def segmentation(probabilities: Probabilities, labels: Labels) -> NDArray[np.int16]:
    """The label map of (heads, Z, Y, X) probabilities: the most probable class, the first of equal ones; or the regions
    above one half painted in their order.
    """
    label_map = np.empty(probabilities.shape[1:], np.int16)
    planes = max(1, VALUES_AT_ONCE // max(1, probabilities[:, 0].size))
    for start in range(0, len(label_map), planes):
        part = torch.from_numpy(probabilities[:, start : start + planes]).float()
        decision = decided(part - 0.5 if labels.has_regions else part, labels)
        label_map[start : start + planes] = painted(decision, labels).numpy()
    return label_map
