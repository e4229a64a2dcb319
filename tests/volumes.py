"""NIfTI files and datasets made by hand, for the tests of reading, checking and preparing."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from segpipe.params import Check

REPO = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("SEGPIPE_TEST_DATA", REPO / "../shared/data"))
UPRIGHT = np.eye(3)
OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
SHAPE = (9, 8, 7)
CHECK = Check(geometry_tolerance_mm=0.1, orientation="as-stored", outlier_mads=10.0, outside_percent=1.0)


def real_data(name: str) -> Path:
    """A folder of the real data; the test is skipped where it is absent."""
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real data: set SEGPIPE_TEST_DATA to a folder that has {name}")
    return REAL_DATA / name


def affine(spacing_mm: Sequence[float] = (1, 1, 1), rotation: ArrayLike = UPRIGHT) -> NDArray[np.float64]:
    """(4, 4); spacing in the order of the file, (X, Y, Z)."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(rotation) * spacing_mm
    matrix[:3, 3] = [-12.5, 30.25, 7]
    return matrix


def nifti(
    path: Path,
    array: ArrayLike,
    spacing_mm: Sequence[float] = (1, 1, 1),
    rotation: ArrayLike = UPRIGHT,
    kind: type[Nifti1Image] = Nifti1Image,
) -> Path:
    """Write an array (X, Y[, Z[, C]]) as a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    nibabel.save(kind(array, affine(spacing_mm, rotation), dtype=array.dtype), path)
    return path


def image_array(seed: int = 0, shape: Sequence[int] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label_array(shape: Sequence[int] = SHAPE, n_classes: int = 3) -> NDArray[np.uint8]:
    """Every class is present."""
    label = np.zeros(shape, np.uint8)
    for value in range(1, n_classes):
        label[value : value + 3, 2:6, 1:-2] = value
    return label


def nnunet_dataset(
    root: Path, n_train: int = 3, n_test: int = 1, channels: Sequence[str] = ("MRI",), **more: Any
) -> Path:
    """A small valid dataset in nnU-Net's raw layout: cases a, b, c ... and test cases t0, t1 ..."""
    for index in range(n_train + n_test):
        kind, case = ("Tr", chr(ord("a") + index)) if index < n_train else ("Ts", f"t{index - n_train}")
        for channel in range(len(channels)):
            nifti(root / f"images{kind}/{case}_{channel:04d}.nii.gz", image_array(10 * index + channel))
        if kind == "Tr":
            nifti(root / f"labelsTr/{case}.nii.gz", label_array())
    describe(root, channel_names=numbered(channels), numTraining=n_train, **more)
    return root


def describe(root: Path, **changes: Any) -> None:
    """Write dataset.json; a key that is None is left out."""
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "liver": 1, "kidney": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    content |= changes
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def turn(path: Path, codes: str) -> None:
    """Store a NIfTI file with its axes in another order and direction: the same voxels at the same places."""
    image = nibabel.load(path, mmap=False)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    nibabel.save(image.as_reoriented(change), path)


def numbered(names: Sequence[str]) -> Mapping[str, str]:
    return {str(index): name for index, name in enumerate(names)}
