"""Datasets of other formats than NIfTI, from the check to a segmentation and back, in both orientations."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import itk, picture, tiff
from volumes import CHECK, describe, nifti, numbered

from segpipe.data import image
from segpipe.data.cases import Cases
from segpipe.data.check import check
from segpipe.errors import SegpipeError

Case = Callable[[Path, str, np.random.Generator], None]
TURNED = {
    "a": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "b": np.array([[0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "c": np.eye(3),
}


def stack(root: Path, case: str, random: np.random.Generator) -> None:
    tiff(
        root / f"imagesTr/{case}_0000.tif", random.integers(0, 999, (6, 12, 10)).astype("u2"), [3, 1, 1], f"{case}.json"
    )
    tiff(root / f"labelsTr/{case}.tif", random.integers(0, 2, (6, 12, 10)).astype("u1"), [3, 1, 1])


def photograph(ending: str) -> Case:
    def make(root: Path, case: str, random: np.random.Generator) -> None:
        picture(root / f"imagesTr/{case}_0000{ending}", random.integers(0, 255, (12, 10, 3)).astype("u1"))
        picture(root / f"labelsTr/{case}.png", (random.integers(0, 2, (12, 10)) * 255).astype("u1"))

    return make


def detached(root: Path, case: str, random: np.random.Generator) -> None:
    itk(root / f"imagesTr/{case}_0000.mhd", random.integers(0, 999, (6, 12, 10)).astype("i2"))
    itk(root / f"labelsTr/{case}.mhd", random.integers(0, 2, (6, 12, 10)).astype("u1"))


def mixed(root: Path, case: str, random: np.random.Generator) -> None:
    array = random.integers(0, 999, (6, 12, 10)).astype("i2")
    nifti(root / f"imagesTr/{case}_0000.nii", array, (0.5, 1, 2), TURNED[case])
    nifti(root / f"labelsTr/{case}.nii", (array > 500).astype("u1"), (0.5, 1, 2), TURNED[case])


DATASETS: dict[str, tuple[Case, str, list[str]]] = {
    "stacks": (stack, ".tif", ["x"]),
    "photographs": (photograph(".jpg"), ".jpg", ["R", "G", "B"]),
    "pictures": (photograph(".png"), ".png", ["R", "G", "B"]),
    "detached": (detached, ".mhd", ["x"]),
    "mixed": (mixed, ".nii", ["x"]),
}


def dataset(root: Path, kind: str, **changes: object) -> Path:
    make, ending, channels = DATASETS[kind]
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for number, case in enumerate("abc"):
        make(root, case, np.random.default_rng(number))
    given = {"channel_names": numbered(channels), "labels": {"background": 0, "n": 1}, "file_ending": ending}
    describe(root, **{**given, **changes})
    return root


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("orientation", ["as-stored", "RAS"])
def test_from_the_check_to_a_segmentation_and_back(tmp_path: Path, kind: str, orientation: str) -> None:
    root = dataset(tmp_path / "Dataset001_Small", kind)
    check(root, tmp_path / "cases.json", CHECK.model_copy(update={"orientation": orientation}), 3)
    cases = Cases.read(tmp_path / "cases.json", root)
    for case in cases.training:
        volume, label = cases.read_image(case), cases.read_label(case)
        assert len(volume.array) == len(DATASETS[kind][2])
        assert volume.shape == label.shape == tuple(cases.entry(case)["shape"])
        assert list(volume.spacing_mm) == cases.entry(case)["spacing_mm"]
        assert set(label.flat) == {0, 1}
        path = tmp_path / f"segmentations/{case}{cases.label_ending}"
        cases.write_segmentation(path, label, case)
        np.testing.assert_array_equal(cases.read_segmentation(path), label)
        stored, given = image.read_label(path), image.read_label(cases.label_path(case))
        np.testing.assert_array_equal(stored.array, np.minimum(given.array, 1))
        np.testing.assert_allclose(stored.affine, given.affine, atol=1e-6)
    if kind == "mixed":
        codes = {image.axis_codes(cases.read_image(case)) for case in cases.training}
        assert codes == ({"RAS"} if orientation == "RAS" else {"LAS", "PSR", "RAS"})


def test_alpha_is_not_dropped(tmp_path: Path) -> None:
    root = dataset(tmp_path / "Dataset001_Small", "pictures")
    picture(root / "imagesTr/b_0000.png", np.full((12, 10, 4), 9, np.uint8))
    with pytest.raises(SegpipeError, match="wrong number of channels") as error:
        check(root, tmp_path / "cases.json", CHECK, 3)
    assert "1 problem\n" in str(error.value)
    assert "found:    4" in str(error.value)


def test_a_mask_of_0_and_255_is_unknown_where_it_may_mean_something_else(tmp_path: Path) -> None:
    root = dataset(tmp_path / "Dataset001_Small", "pictures", labels={"background": 0, "n": 1, "m": 2})
    with pytest.raises(SegpipeError, match="unknown label values") as error:
        check(root, tmp_path / "cases.json", CHECK, 3)
    assert "found:    255" in str(error.value)
