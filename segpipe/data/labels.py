"""What the classes of a dataset are: in its files, in a training, among the outputs of a network.

A training counts its values 0 (background), 1, 2, ... and last the ignore label, whatever the values in the files are.
Plain classes exclude each other (softmax); regions may overlap (sigmoid), and a label map is painted from them in the
order of `regions_class_order` (nnunetv2/utilities/label_handling/label_handling.py).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SegpipeError, problem

IGNORE = "ignore"

Values = tuple[int, ...]


@dataclass(frozen=True)
class Labels:
    """The classes of a dataset.

    names : class or region to its values in the training, the background included, without the ignore label
    regions_order : for regions, the value that each of them paints, in the order of painting; None for plain classes
    ignore : the value of voxels that nobody annotated, the highest; None where there is none
    file_values : what the files have for the training's values 0, 1, ...
    """

    names: dict[str, Values]
    regions_order: Values | None
    ignore: int | None
    file_values: Values

    @property
    def has_regions(self) -> bool:
        """Whether classes may overlap, so that each of them has a sigmoid of its own."""
        return self.regions_order is not None

    @cached_property
    def heads(self) -> dict[str, Values]:
        """The outputs of a network, in order: plain classes by value, or the regions as dataset.json lists them."""
        return self.foreground if self.has_regions else dict(sorted(self.names.items(), key=lambda item: item[1]))

    @cached_property
    def foreground(self) -> dict[str, Values]:
        """Classes or regions without the background: what is scored, and what patches are centred on."""
        foreground = {name: values for name, values in self.names.items() if values != (0,)}
        return foreground if self.has_regions else dict(sorted(foreground.items(), key=lambda item: item[1]))

    @property
    def n_values(self) -> int:
        """Values that a segmentation may have: 0 to n_values - 1. The ignore label is none of them."""
        return len(self.file_values) - (self.ignore is not None)

    @cached_property
    def _counts_from_zero(self) -> bool:
        """Whether the files have the values of the training."""
        return self.file_values == tuple(range(len(self.file_values)))

    def key(self, name: str) -> str:
        """How summary.json calls a class, as nnU-Net does: "1", or "(1, 2)" for a region; in the files' values."""
        values = tuple(self.file_values[value] for value in self.names[name])
        return str(values[0]) if len(values) == 1 else str(values)

    def from_files(self, array: NDArray[np.integer]) -> NDArray[np.int16]:
        """A label map as read, in the training's values; the same array where nothing changes.

        Values that no class has become -1.
        """
        low, high = int(array.min(initial=0)), int(array.max(initial=0))
        if self._counts_from_zero and low == 0 and high < len(self.file_values):
            return array.astype(np.int16, copy=False)
        high = max(high, *self.file_values)
        table = np.full(high - low + 1, -1, np.int16)
        for value, in_files in enumerate(self.file_values):
            table[in_files - low] = value
        found = np.empty(array.shape, np.int16)
        for index, plane in enumerate(array):  # in planes: as indices they are 8 bytes a voxel
            found[index] = table[plane.astype(np.int64) - low]
        return found

    def of_binary(self, array: NDArray[np.integer]) -> NDArray[np.integer]:
        """A label map as read; a mask of 0 and 255, as many programs save it, as 0 and 1.

        Only where there is one class, of the value 1, and 255 means nothing. All else stays.
        """
        classes = [tuple(self.file_values[value] for value in values) for values in self.foreground.values()]
        if classes != [(1,)] or 255 in self.file_values or array.max(initial=0) != 255:
            return array
        mask = array == 255
        return array if array[~mask].any() else mask.astype(array.dtype)

    def to_files(self, array: NDArray[np.integer]) -> NDArray[np.integer]:
        """A segmentation in the files' values."""
        if self._counts_from_zero:
            return array
        mapped: NDArray[np.integer] = np.array(self.file_values)[array]
        return mapped

    def described(self) -> str:
        """The values of the files and their meaning, for a message."""
        pairs = [
            (", ".join(str(self.file_values[value]) for value in values), name) for name, values in self.names.items()
        ]
        if self.ignore is not None:
            pairs.append((str(self.file_values[self.ignore]), IGNORE))
        return "; ".join(f"{values} ({name})" for values, name in pairs)

    def to_json(self) -> dict[str, Any]:
        """Plain data for cases.json and checkpoints, with the order of the outputs, which digests of objects lose."""
        return asdict(self) | {"heads": list(self.heads)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Labels":
        """The inverse of `to_json`, through JSON as well."""
        order = content["regions_order"]
        names = {name: tuple(values) for name, values in content["names"].items()}
        return cls(names, None if order is None else tuple(order), content["ignore"], tuple(content["file_values"]))


def belongs(array: NDArray[np.integer], values: Values) -> NDArray[np.bool_]:
    """Where a label map has one of a class's values."""
    mask: NDArray[np.bool_] = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def parse(labels: Mapping[str, Any], order: Sequence[int] | None, where: object) -> Labels:
    """From `labels` and `regions_class_order` of a dataset.json, nnU-Net's or Decathlon's ({"1": "liver"}).

    where : names the file in messages
    Raises SegpipeError where values are no whole numbers, the background is missing, a value has two classes, or the
    order does not fit the regions.
    """
    if labels and all(re.fullmatch(r"\d+", key) for key in labels):
        labels = {str(name): value for value, name in labels.items()}
    in_files = {name: _values(name, value, f"{where}: labels") for name, value in labels.items()}
    ignored = in_files.pop(IGNORE, None)
    regions = any(len(values) > 1 for values in in_files.values())
    _require_sense(in_files, ignored, regions, f"{where}: labels")
    known = [*sorted({value for values in in_files.values() for value in values}), *(ignored or ())]
    number = {value: index for index, value in enumerate(known)}
    names = {name: tuple(number[value] for value in values) for name, values in in_files.items()}
    classes = {value: index for value, index in number.items() if value not in (ignored or ())}
    painted = _painted(names, order, classes, f"{where}: regions_class_order") if regions else None
    return Labels(names, painted, len(known) - 1 if ignored else None, tuple(known))


def _values(name: str, value: Any, where: str) -> Values:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(re.fullmatch(r"\d+", str(one)) for one in values) or (name == IGNORE and len(values) > 1):
        raise _error("a class without a usable value", where, f"{name}: {value}", "a whole number, or a list of them")
    return tuple(sorted({int(one) for one in values}))


def _require_sense(in_files: Mapping[str, Values], ignored: Values | None, regions: bool, where: str) -> None:
    shown = ", ".join(f"{name}: {list(values) if len(values) > 1 else values[0]}" for name, values in in_files.items())
    if (0,) not in in_files.values():
        raise _error("no background", where, shown or "nothing", "background: 0 among the labels")
    if len(in_files) < 2:
        raise _error("nothing to learn", where, shown, "a class beside the background")
    values = [value for of_one in in_files.values() for value in of_one]
    if ignored and ignored[0] in values:
        raise _error("the ignore label is a class as well", where, f"{shown}, {IGNORE}: {ignored[0]}", "its own value")
    if len(set(in_files.values())) < len(in_files) or (not regions and len(set(values)) < len(values)):
        raise _error("two classes with the same value", where, shown, "one value, or one set of values, per class")
    if regions and any(0 in of_one and of_one != (0,) for of_one in in_files.values()):
        raise _error("a region with background in it", where, shown, "0 in the background alone")


def _painted(names: Mapping[str, Values], order: Any, number: Mapping[int, int], where: str) -> Values:
    n_regions = sum(values != (0,) for values in names.values())
    expected = f"{n_regions} of the values {sorted(number)}, one per region, painted one over the other"
    known = isinstance(order, list | tuple) and all(isinstance(value, int) and value in number for value in order)
    if not known or len(order) != n_regions:
        raise _error("the order of the regions does not fit them", where, order, expected)
    return tuple(number[value] for value in order)


def _error(what: str, where: str, found: object, expected: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure="correct dataset.json"))
