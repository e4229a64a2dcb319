"""The checked cases of a dataset: what cases.json lists, and how later steps read and write their files."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest, machine
from segpipe.data import image
from segpipe.data.labels import Labels

COPIES = 4  # of a case, image and label, that reading and preprocessing hold at their peak


@dataclass(frozen=True)
class Cases:
    """The checked cases of a dataset: cases.json, and the folder that its paths are relative to."""

    root: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path, root: str | Path) -> "Cases":
        """Read what the check wrote."""
        return cls(Path(root), digest.read_json(path))

    @property
    def name(self) -> str:
        """The dataset's name."""
        return str(self.content["dataset"])

    @property
    def channel_names(self) -> list[str]:
        """One name per channel."""
        return list(self.content["channel_names"])

    @cached_property
    def labels(self) -> Labels:
        """The classes."""
        return Labels.from_json(self.content["labels"])

    @property
    def orientation(self) -> str:
        """How arrays lie: `as-stored`, or `RAS` with axes turned to X right, Y front, Z up."""
        return str(self.content["orientation"])

    @property
    def label_ending(self) -> str:
        """Of the labels and segmentations; that of the images, if it is no lossy format."""
        return image.label_ending(str(self.content["file_ending"]))

    @cached_property
    def training(self) -> list[str]:
        """Sorted ids of the cases with a label."""
        return sorted(self.content["training"])

    @cached_property
    def test(self) -> list[str]:
        """Sorted ids of the cases in imagesTs."""
        return sorted(self.content["test"])

    def entry(self, case: str) -> dict[str, Any]:
        """Files with their digests, shape and spacing of one case."""
        entry: dict[str, Any] = self.content["training"].get(case) or self.content["test"][case]
        return entry

    def at_once(self, threads: int | None) -> int:
        """How many training cases may be worked on together: as many as threads, if half of the memory holds them.

        threads : None for all that the process has
        """
        voxels = max(math.prod(self.entry(case)["shape"]) for case in self.training)
        return machine.at_once(threads, voxels * (4 * len(self.channel_names) + 2) * COPIES)

    def identity(self, case: str) -> str:
        """Digest of the contents of a case's files and of how they are read; their names do not count."""
        entry = self.entry(case)
        files = [list(entry["images"].values()), list((entry["label"] or {}).values())]
        return digest.of([files, self.orientation, self.labels.file_values, entry["annotated"]])

    def annotated(self, case: str) -> list[str] | None:
        """The classes or regions that a partly labelled case has annotations of; None: all of them."""
        annotated: list[str] | None = self.entry(case)["annotated"]
        return annotated

    def image_path(self, case: str) -> Path:
        """The first image file: the grid that segmentations are written on."""
        return self.root / next(iter(self.entry(case)["images"]))

    def label_path(self, case: str) -> Path:
        """The label file of a training case."""
        return self.root / next(iter(self.entry(case)["label"]))

    def read_image(self, case: str) -> image.Volume:
        """All channels of a case, (C, Z, Y, X) float32."""
        volumes = [image.read_image(self.root / path, self.orientation) for path in self.entry(case)["images"]]
        array = volumes[0].array if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
        return dataclasses.replace(volumes[0], array=array)

    def read_label(self, case: str) -> NDArray[np.int16]:
        """The label map of a training case, (Z, Y, X), in the training's values."""
        volume = image.read_label(self.label_path(case), self.orientation)
        return self.labels.from_files(self.labels.of_binary(volume.array[0].astype(np.int16, copy=False)))

    def read_segmentation(self, path: Path) -> NDArray[np.int16]:
        """What `write_segmentation` wrote."""
        return self.labels.from_files(image.read_label(path, self.orientation).array[0].astype(np.int16, copy=False))

    def write_segmentation(self, path: Path, segmentation: NDArray[np.integer], case: str) -> None:
        """Write a (Z, Y, X) map of the training's values as the files have them, on the grid of the case's image."""
        image.write_label_like(path, self.labels.to_files(segmentation), self.image_path(case), self.orientation)

    def write_values(self, path: Path, values: NDArray[np.floating], case: str) -> None:
        """Write (C, Z, Y, X) numbers as NIfTI (.nii.gz), on the grid of the case's image."""
        image.write_values_like(path, values, self.image_path(case), self.orientation)
