"""What is removed of a label map: components of a class, of a region or of all foreground that are too small.

What is removed becomes background, also in a region within another one, as in nnU-Net
(nnunetv2/postprocessing/remove_connected_components.py). Voxels belong together that share a face, an edge or a corner.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, generate_binary_structure, label

from segpipe import digest
from segpipe.data.labels import Labels, Values, belongs
from segpipe.errors import SegpipeError, problem

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Rule:
    """Which components of a class stay.

    of : class or region by name; None: all foreground as one
    largest_component : only the largest; several where they are equal
    minimum_ml, minimum_voxels : only those that are at least as large; None: of any size
    """

    of: str | None
    largest_component: bool = False
    minimum_ml: float | None = None
    minimum_voxels: int | None = None

    def stays(self, sizes: NDArray[np.int64], spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
        """Which components stay, by their sizes in voxels."""
        least = self.minimum_voxels or 0
        if self.minimum_ml is not None:
            least = max(least, int(np.ceil(self.minimum_ml * 1000 / np.prod(spacing_mm) - 1e-6)))
        large: NDArray[np.bool_] = sizes >= least
        return large & (sizes == sizes.max(initial=0)) if self.largest_component else large

    def __str__(self) -> str:
        sizes = [
            f"{value} {unit}" for value, unit in ((self.minimum_ml, "ml"), (self.minimum_voxels, "voxels")) if value
        ]
        parts = ["the largest component"] * self.largest_component + [f"components of {size} or more" for size in sizes]
        return f"{self.of or 'all foreground'}: {', '.join(parts)}"


@dataclass(frozen=True)
class Components:
    """The connected components of a class.

    box : around all of them
    numbers : within the box, 1 and up; 0 where the class is not
    sizes : of number 1 and up, in voxels
    """

    box: Box
    numbers: NDArray[np.int32]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, label_map: NDArray[np.integer], values: Values, boxes: Sequence[Box | None]) -> "Components":
        """Those of voxels with one of the values; boxes : where each value from 1 on may be (`boxes`)."""
        parts = [box for value in values if value <= len(boxes) and (box := boxes[value - 1])]
        axes = list(zip(*parts, strict=True)) or [(slice(0, 0),)] * label_map.ndim
        box = tuple(slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes)
        neighbours = generate_binary_structure(label_map.ndim, label_map.ndim)
        mask = belongs(label_map[box], values)
        numbers = np.zeros(mask.shape, np.int32)
        n_found = label(mask, neighbours, output=numbers)
        return cls(box, numbers, np.bincount(numbers.ravel(), minlength=n_found + 1)[1:])

    def removed(self, rule: Rule, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
        """The voxels within the box that a rule removes."""
        goes = ~rule.stays(self.sizes, spacing_mm)
        found: NDArray[np.bool_] = np.concatenate([[False], goes])[self.numbers]
        return found


def values_of(rule: Rule, labels: Labels) -> Values:
    """The values that a rule is about."""
    return labels.foreground[rule.of] if rule.of is not None else tuple(range(1, labels.n_values))


def boxes(label_map: NDArray[np.integer]) -> list[Box | None]:
    """Where each value from 1 on lies; None for one that does not."""
    return list(find_objects(label_map))


def apply(
    label_map: NDArray[np.int16], labels: Labels, rules: Iterable[Rule], spacing_mm: Sequence[float]
) -> NDArray[np.int16]:
    """The label map without what the rules remove, one after the other.

    label_map : (Z, Y, X) in the training's values; it stays as it is
    spacing_mm : (Z, Y, X), for sizes in ml
    """
    result, around = label_map.copy(), boxes(label_map)  # rules only remove: the boxes hold for all of them
    for rule in rules:
        components = Components.of(result, values_of(rule, labels), around)
        result[components.box][components.removed(rule, spacing_mm)] = 0
    return result


def to_json(rule: Rule) -> dict[str, Any]:
    """Plain data."""
    return asdict(rule)


def read(path: Path, labels: Labels | None = None) -> list[Rule]:
    """The rules of a postprocessing.json, for the labels of a model.

    labels : those that the rules are applied to; None: whatever they were learnt of
    Raises SegpipeError where it is no such file or was learnt of other labels.
    """
    try:
        content = digest.read_json(path)
        learnt, rules = Labels.from_json(content["labels"]), [Rule(**rule) for rule in content["rules"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected, cure = "what the rule postprocess writes", "name results/crossval/postprocessing.json"
        what = "no postprocessing rules"
        raise SegpipeError(problem(what, where=path, found=error, expected=expected, cure=cure)) from error
    if labels is not None and labels != learnt:
        what, cure = "postprocessing rules of other labels", "learn them again, of the present models"
        found, expected = learnt.described(), labels.described()
        raise SegpipeError(problem(what, where=path, found=found, expected=expected, cure=cure))
    return rules
