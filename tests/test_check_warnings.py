"""What the check warns of in a dataset that can be used, and what it does not."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tiny import FOUR
from volumes import CHECK, affine, describe, image_array, label_array, nifti, nnunet_dataset, numbered, turn

from segpipe.data import check, check_facts
from segpipe.data.check_facts import Facts
from segpipe.data.check_warnings import MIN_CASES, Notice
from segpipe.data.image import Volume
from segpipe.params import Check

MANY = MIN_CASES  # cases, so that outliers are looked for


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nnunet_dataset(tmp_path / "Dataset001_Small")


def notices(root: Path, n_folds: int = 2, **settings: Any) -> list[Notice]:
    """The warnings for a dataset that has no problem."""
    report = check.inspect(root, CHECK.model_copy(update=settings), n_folds)
    assert report.problems == []
    return report.notices


def facts(root: Path, case: str) -> Facts:
    return check.inspect(root, CHECK, 2).facts[case]


def test_a_good_dataset_gives_none(root: Path) -> None:
    assert notices(root) == []


# a case by itself


@pytest.mark.parametrize("ignored", [False, True])
def test_an_empty_label(root: Path, ignored: bool) -> None:
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "ignore": 3})
    nifti(root / "labelsTr/b.nii.gz", label_array() * 0 + 3 * ignored)
    assert [(one.what, one.case) for one in notices(root)] == [("empty label", "b")]


def half_padded(value: float) -> NDArray[np.float32]:
    """Nothing was recorded at x < 4, where label_array() has 3 of its 4 planes."""
    image = image_array()
    image[:4] = value
    return image


@pytest.mark.parametrize("value", [0, -1024])
def test_a_label_in_the_padding(root: Path, value: float) -> None:
    nifti(root / "imagesTr/b_0000.nii.gz", half_padded(value))
    (found,) = notices(root)
    inside = label_array()[4:] > 0
    percent = 100 * (1 - inside.sum() / (label_array() > 0).sum())
    assert (found.what, found.case) == ("label outside the image", "b")
    assert found.detail.startswith(f"{percent:.1f} %")
    assert notices(root, outside_percent=percent + 0.1) == []


def test_ignored_voxels_may_lie_in_the_padding(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "ignore": 3})
    nifti(root / "imagesTr/b_0000.nii.gz", half_padded(0))
    label = label_array()
    label[:4] = 3
    nifti(root / "labelsTr/b.nii.gz", label)
    assert notices(root) == []


def test_padding_is_where_all_channels_have_none(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    nifti(root / "imagesTr/b_0000.nii.gz", half_padded(0))
    other = image_array(1)
    other[8:] = 0
    nifti(root / "imagesTr/b_0001.nii.gz", other)
    assert notices(root) == []  # T2 shows something there, and has its padding elsewhere
    nifti(root / "imagesTr/b_0001.nii.gz", half_padded(7))
    assert [one.what for one in notices(root)] == ["label outside the image"]


def test_a_grid_that_is_not_quite_the_same(root: Path) -> None:
    label = nibabel.load(root / "labelsTr/b.nii.gz")
    moved = label.affine.copy()
    moved[1, 3] += 0.05
    nibabel.save(nibabel.Nifti1Image(label_array(), moved), root / "labelsTr/b.nii.gz")
    (found,) = notices(root)
    assert (found.case, found.detail) == ("b", "corners up to 0.05 mm apart, which is tolerated")


def test_a_constant_image(root: Path) -> None:
    nifti(root / "imagesTr/b_0000.nii.gz", image_array() * 0 + 3)
    assert Notice("constant image", "b", "channel 0 is 3 everywhere") in notices(root)


def test_a_value_that_most_corners_do_not_have_is_no_padding(root: Path) -> None:
    image = half_padded(0)
    image[0, 0, 0] = image[0, -1, -1] = 50
    nifti(root / "imagesTr/b_0000.nii.gz", image)
    assert notices(root) == []


def test_equal_channels(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2", "T3"])
    shutil.copy(root / "imagesTr/b_0000.nii.gz", root / "imagesTr/b_0002.nii.gz")
    assert notices(root) == [Notice("equal channels", "b", "channels 0, 2 have the same voxels")]


def photographs(root: Path) -> Path:
    """Two gray photographs in colour files, and their masks."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for seed, case in enumerate("ab"):
        gray = np.random.default_rng(seed).integers(0, 255, (30, 40), np.uint8)
        Image.fromarray(np.stack([gray] * 3, axis=-1)).save(root / f"imagesTr/{case}_0000.png")
        Image.fromarray((gray > 200).astype(np.uint8)).save(root / f"labelsTr/{case}.png")
    names = numbered(["red", "green", "blue"])
    describe(root, channel_names=names, labels={"background": 0, "cell": 1}, file_ending=".png", numTraining=2)
    return root


def test_gray_photographs_have_equal_channels_by_their_nature(tmp_path: Path) -> None:
    assert notices(photographs(tmp_path / "Dataset001_Cells")) == []


# several cases


@pytest.mark.parametrize("case", ["c", "t0"])
def test_the_same_image_under_two_ids(root: Path, case: str) -> None:
    """Equal voxels, whatever the number type and the compression of the files."""
    folder = "imagesTs" if case == "t0" else "imagesTr"
    nifti(root / f"{folder}/{case}_0000.nii.gz", image_array().astype(np.float64))
    found = notices(root)
    assert [(one.what, one.case) for one in found] == [("the same image under two ids", one) for one in ("a", case)]
    assert found[0].detail == f"the same voxels as {case}{' (test)' if case == 't0' else ''}"


def test_images_that_share_one_channel_are_two(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    shutil.copy(root / "imagesTr/a_0000.nii.gz", root / "imagesTr/b_0000.nii.gz")
    assert notices(root) == []


def test_mixed_orientations(root: Path) -> None:
    for path in ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"):
        turn(root / path, "LPS")
    (found,) = notices(root)
    assert (found.what, found.case) == ("mixed orientations", None)
    assert "RAS 3, LPS 1 (cases)" in found.detail
    assert "as stored" in found.detail
    (found,) = notices(root, orientation="RAS")
    assert "turned to RAS" in found.detail


def test_a_2d_image_has_no_orientation(root: Path) -> None:
    nifti(root / "imagesTr/b_0000.nii.gz", image_array(shape=(9, 8)))
    nifti(root / "labelsTr/b.nii.gz", label_array()[..., 2])
    assert notices(root) == []
    assert facts(root, "b").orientation == ""
    assert facts(root, "b").ml_per_voxel is None


def test_a_label_that_lies_otherwise_fits_once_turned(root: Path) -> None:
    turn(root / "labelsTr/b.nii.gz", "PLI")
    as_stored = check.inspect(root, CHECK, 2)
    assert [text.splitlines()[0] for text in as_stored.problems] == ["shapes differ"]
    assert notices(root, orientation="RAS") == []


def test_a_class_that_no_case_has(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "spleen": 3})
    (found,) = notices(root)
    assert (found.what, found.case) == ("a class without voxels", None)
    assert "spleen" in found.detail


@pytest.mark.parametrize(
    ("reader", "orientation", "words"),
    [
        ("NibabelIOWithReorient", "as-stored", ["NibabelIOWithReorient", "set check.orientation to RAS"]),
        ("SimpleITKIOWithReorient", "as-stored", ["set check.orientation to RAS"]),
        ("NibabelIOWithReorient", "RAS", None),
        ("SimpleITKIO", "as-stored", None),
        ("MyOwnIO", "RAS", ["MyOwnIO", "unknown", "read by their format", "RAS"]),
    ],
)
def test_the_reader_of_nnunet(root: Path, reader: str, orientation: str, words: Sequence[str] | None) -> None:
    describe(root, overwrite_image_reader_writer=reader)
    found = notices(root, orientation=orientation)
    assert [one.what for one in found] == (["another reader"] if words else [])
    assert all(word in found[0].detail for word in words or [])


# outliers


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return nnunet_dataset(tmp_path / "Dataset001_Many", n_train=MANY, n_test=0)


@pytest.mark.parametrize(("factor", "offset", "measures"), [(1, 1000, ["median"]), (30, -2900, ["range"]), (1, 0, [])])
def test_unusual_intensities(many: Path, factor: float, offset: float, measures: list[str]) -> None:
    """A shifted case has an unusual median, a stretched one (around the usual median) an unusual range."""
    nifti(many / "imagesTr/c_0000.nii.gz", image_array(20) * factor + offset)
    found = notices(many)
    assert [(one.what, one.case) for one in found] == [("unusual intensities", "c")] * bool(measures)
    assert all(word in one.detail for one in found for word in measures)
    assert notices(many, outlier_mads=1e6) == []


def test_padding_makes_no_unusual_intensities(many: Path) -> None:
    image = image_array(20)
    image[:, :, 3:] = 0  # above the label
    nifti(many / "imagesTr/c_0000.nii.gz", image)
    assert not [one for one in notices(many, outside_percent=100) if one.what == "unusual intensities"]


@pytest.mark.parametrize(("edge_mm", "unusual"), [(5, True), (1.2, False)])
def test_unusual_spacing(many: Path, edge_mm: float, unusual: bool) -> None:
    """All others are equal: their deviation is zero, yet not every difference counts."""
    for path, array in (("imagesTr/c_0000.nii.gz", image_array(20)), ("labelsTr/c.nii.gz", label_array())):
        nifti(many / path, array, (1, 1, edge_mm))
    expected = Notice("unusual spacing", "c", "5 (usually 1, deviation 0) mm along Z")
    assert notices(many) == [expected] * unusual


def test_few_cases_have_no_outliers(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Few", n_train=MANY - 1, n_test=0)
    nifti(root / "imagesTr/c_0000.nii.gz", image_array(20) + 1000)
    assert notices(root) == []


# facts


def test_voxels_per_class(root: Path) -> None:
    for path, array in (("imagesTr/b_0000.nii.gz", image_array(20)), ("labelsTr/b.nii.gz", label_array())):
        nibabel.save(nibabel.Nifti1Image(array, affine((2, 1, 5))), root / path)
    found = facts(root, "b")
    counts = np.bincount(label_array().ravel())
    assert found.voxels == {"liver": counts[1], "kidney": counts[2]}
    assert found.ml_per_voxel == pytest.approx(0.01)
    assert (found.shape, found.spacing_mm, found.orientation) == ((7, 8, 9), (5, 1, 2), "RAS")
    assert facts(root, "t0").voxels is None


def test_voxels_of_regions_and_ignored_ones(root: Path) -> None:
    labels = {"background": 0, "organ": [10, 20], "lesion": 20, "ignore": 99}
    describe(root, labels=labels, regions_class_order=[10, 20])
    for case in "abc":
        label = label_array() * 10
        label[0, 0, :3] = 99
        nifti(root / f"labelsTr/{case}.nii.gz", label)
    counts = np.bincount(label_array().ravel())
    assert facts(root, "b").voxels == {"organ": counts[1] + counts[2], "lesion": counts[2], "ignore": 3}


def test_levels_of_a_large_image_are_those_of_all_its_voxels(tmp_path: Path) -> None:
    describe(tmp_path)
    image = np.linspace(0, 1000, 220 * 150 * 100, dtype=np.float32).reshape(220, 150, 100)
    for case in "ab":
        nifti(tmp_path / f"imagesTr/{case}_0000.nii", image)
        nifti(tmp_path / f"labelsTr/{case}.nii", np.ones(image.shape, np.uint8))
    describe(tmp_path, file_ending=".nii", labels={"background": 0, "all": 1}, numTraining=2)
    assert facts(tmp_path, "a").channels[0].levels == pytest.approx((50, 500, 950), abs=1)


def test_levels_of_a_small_part_are_those_of_all_its_voxels() -> None:
    """As many voxels of it are looked at as of a whole image: here all."""
    image = np.zeros((1, 100, 200, 300), np.float32)
    image[0, 40:60, 50:70, 100:130] = np.random.default_rng(0).permutation(12_000).reshape(20, 20, 30) + 1
    volume = Volume(image, (1, 1, 1), np.eye(4))
    (channel,) = check_facts.measure([volume], None, "RAS", FOUR).channels
    assert channel.levels == pytest.approx((600, 6_000, 11_400), abs=1)


def test_the_settings_are_limits(root: Path) -> None:
    settings = CHECK.model_dump()
    with pytest.raises(ValueError, match="outlier_mads"):
        Check(**settings | {"outlier_mads": 0})
    with pytest.raises(ValueError, match="outside_percent"):
        Check(**settings | {"outside_percent": 101})


# spacings that are nowhere


def tiffs(root: Path, cases: str, is_stack: bool = True) -> Path:
    describe(root, file_ending=".tif", numTraining=len(cases))
    for case in cases:
        for name in (f"imagesTr/{case}_0000.tif", f"labelsTr/{case}.tif"):
            (root / name).parent.mkdir(exist_ok=True)
            pages = image_array(ord(case)).T if "images" in name else label_array().T
            tifffile.imwrite(root / name, pages if is_stack else pages[3], photometric="minisblack")
    return root


def test_tiff_stacks_without_spacing_are_named_once(tmp_path: Path) -> None:
    root = tiffs(tmp_path / "Dataset001_Tiff", "abcd")
    (found,) = notices(root)
    assert (found.what, found.case) == ("unknown spacing", None)
    first = "imagesTr/a_0000.tif, labelsTr/a.tif, imagesTr/b_0000.tif ..."
    assert f"8 TIFF stacks have no file with it beside them: {first}; taken as 1 mm" in found.detail
    assert 'write {"spacing": [z, y, x]}, in mm, into imagesTr/a_0000.json' in found.detail
    for path in [*root.glob("*/a*.tif"), *root.glob("*/b*.tif"), *root.glob("*/c*.tif")]:
        path.with_suffix(".json").write_text('{"spacing": [1, 1, 1]}')
    (found,) = notices(root)
    assert "2 TIFF stacks have no file with it beside them: imagesTr/d_0000.tif, labelsTr/d.tif;" in found.detail
    (root / "imagesTr/d.json").write_text('{"spacing": [1, 1, 1]}')
    (root / "labelsTr/d.json").write_text('{"spacing": [1, 1, 1]}')
    assert notices(root) == []


def test_a_tiff_of_one_page_has_pixels_without_size(tmp_path: Path) -> None:
    assert notices(tiffs(tmp_path / "Dataset001_Tiff", "ab", is_stack=False)) == []
