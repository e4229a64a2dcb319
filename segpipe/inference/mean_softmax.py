"""The mean of saved softmax files, class after class, and the label map that follows from it.

Memory is that of a few volumes, whatever the number of classes and members.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe import machine
from segpipe.data.labels import Labels
from segpipe.errors import problem, raise_all
from segpipe.inference import softmax_file
from segpipe.inference.export import Probabilities

VOXEL_BYTES = 40  # of a case: one class of two members, their mean, the label map under way, masks while it is scored
MAP_VOXEL_BYTES = 10  # of each further label map under way, with the mean that it needs


class LabelMap:
    """A label map that probabilities are painted on, class after class: `export.segmentation`, voxel by voxel.

    array : (Z, Y, X) int16, complete after the last class
    """

    def __init__(self, shape: Sequence[int], labels: Labels) -> None:
        self.array = np.zeros(shape, np.int16)
        self._order = labels.regions_order
        self._highest: NDArray[np.float32] | None = None
        self._n_seen = 0

    def add(self, probabilities: NDArray[np.float32]) -> None:
        """The next class or region, (Z, Y, X); where classes are equal the first of them stays."""
        if self._order is not None:
            self.array[probabilities > 0.5] = self._order[self._n_seen]
        elif self._highest is None:
            self._highest = probabilities.copy()
        else:
            higher = probabilities > self._highest
            np.copyto(self._highest, probabilities, where=higher)
            self.array[higher] = self._n_seen
        self._n_seen += 1


def mean(arrays: Sequence[Probabilities], weights: Sequence[float]) -> NDArray[np.float32]:
    """The weighted mean of arrays of any precision, summed in single precision in their order, as nnU-Net does."""
    total = arrays[0] * np.float32(weights[0])
    total = total.astype(np.float32, copy=False)
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array if weight == 1 else array.astype(np.float32, copy=False) * np.float32(weight)
    total /= np.float32(sum(weights))
    return total


def classes(paths: Sequence[Path], weights: Sequence[float]) -> Iterator[NDArray[np.float32]]:
    """The mean of saved softmax files of a case, one (Z, Y, X) array after the other.

    Raises SegpipeError where a file cannot be read or the grids differ.
    """
    require_one_shape(paths)
    for arrays in zip(*(softmax_file.classes(path) for path in paths), strict=True):
        yield mean(arrays, weights)


def label_map(paths: Sequence[Path], weights: Sequence[float], labels: Labels) -> NDArray[np.int16]:
    """The label map of the mean of saved softmax files of a case, (Z, Y, X). Raises SegpipeError as `classes` does."""
    return label_maps(paths, weights, labels, [range(len(paths))])[0]


def label_maps(
    paths: Sequence[Path], weights: Sequence[float], labels: Labels, groups: Sequence[Sequence[int]]
) -> list[NDArray[np.int16]]:
    """The label maps of the means of several groups of files, by their indices; each file is read once."""
    require_one_shape(paths)
    require_heads(paths[0], labels)
    painted = [LabelMap(softmax_file.shape(paths[0])[1:], labels) for _ in groups]
    for arrays in zip(*(softmax_file.classes(path) for path in paths), strict=True):
        for one, group in zip(painted, groups, strict=True):
            one.add(mean([arrays[index] for index in group], [weights[index] for index in group]))
    return [one.array for one in painted]


def require_one_shape(paths: Sequence[Path]) -> None:
    """Raise SegpipeError where softmax files of a case differ in grid or number of classes."""
    shapes = [softmax_file.shape(path) for path in paths]
    raise_all(
        "softmax of different grids",
        [
            problem(
                "softmax of another grid or number of classes",
                where=path,
                found=shape,
                expected=f"{shapes[0]} as {paths[0]}",
                cure="validate, or predict, all members again",
            )
            for path, shape in zip(paths, shapes, strict=True)
            if shape != shapes[0]
        ],
    )


def require_heads(path: Path, labels: Labels) -> None:
    """Raise SegpipeError where a softmax file has other classes than the labels."""
    found = softmax_file.shape(path)[0]
    wrong = problem(
        "softmax of another number of classes",
        where=path,
        found=found,
        expected=f"{len(labels.heads)}: {', '.join(labels.heads)}",
        cure="name the folder of a model of this dataset",
    )
    raise_all("softmax of other classes", [wrong] if found != len(labels.heads) else [])


def at_once(shapes: Sequence[Sequence[int]], threads: int | None, n_maps: int = 1) -> int:
    """How many cases may be worked on together: as many as threads, if half of the memory holds them.

    shapes : of the cases, the last three axes of which are (Z, Y, X); n_maps : label maps that are painted at once
    """
    voxels = max(prod(shape[-3:]) for shape in shapes)
    return machine.at_once(threads, voxels * (VOXEL_BYTES + MAP_VOXEL_BYTES * (n_maps - 1)))
