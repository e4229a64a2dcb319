"""Every file of the real odd ones: read right, or refused with its name and the reason; as an image and as a label.

What is expected was read with nibabel, ITK, scikit-image and tifffile where they read the file.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from volumes import REAL_DATA, real_data

from segpipe.data.image import axis_codes, read_image, read_label
from segpipe.errors import SegpipeError

FRACTIONS = "label values are not whole numbers"
NO_NIFTI = ("unreadable file", "a whole NIfTI file")
COLOURS = ("not an image of real numbers", "('R', 'u1')")
ENDING = ("unsupported file ending",)
COMPLEX = ("not an image of real numbers", "complex64")


@dataclass(frozen=True)
class Read:
    """What the image must be, and of the label its largest value, or why it is refused."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    codes: str
    mean: float
    label: int | str


@dataclass(frozen=True)
class Unseen:
    """A label that is listed, but was not among the files when this was written."""

    shape: tuple[int, ...] | None = None


Refused = tuple[str, ...]
BALL = Read((1, 30, 30, 30), (1, 1, 1), "LPS", 136.381, 257)
CUBE = Read((1, 3, 3, 3), (1, 1, 1), "RAS", 13, 26)
EXPECTED: dict[str, Read | Refused | Unseen] = {
    "big.nii.gz": Read((1, 21, 64, 64), (6, 4, 4), "LAS", 0.135421, FRACTIONS),
    "little.nii.gz": Read((1, 21, 64, 64), (6, 4, 4), "LAS", 0.135421, FRACTIONS),
    "avg152T1_LR_nifti.nii.gz": Read((1, 91, 109, 91), (2, 2, 2), "LAS", 82.8972, 255),
    "avg152T1_RL_nifti.nii.gz": Read((1, 91, 109, 91), (2, 2, 2), "RAS", 82.8972, 255),
    "avg152T1_LR_nifti2.nii.gz": Read((1, 91, 109, 91), (2, 2, 2), "LAS", 82.8972, 255),
    "with_extension.nii.gz": Read((1, 151, 191, 161), (1, 1, 1), "LPI", 0.317197, 1),
    "5D_small.nii": ("not a 2D, 3D or 4D image", "(1, 2, 3, 1, 3)"),
    "not-nifti.nii": NO_NIFTI,
    "air.hdr.gz": ENDING,
    "air.img.gz": ENDING,
    "empty.nii.gz": NO_NIFTI,
    "rgb24_3D.nii": COLOURS,
    "rgba32_4D.nii": COLOURS,
    "complex32.nii": COMPLEX,
    "int64.nii": CUBE,
    "float64.nii": CUBE,
    "uint16.nii": CUBE,
    "int8.nii": CUBE,
    "minimal.nii.gz": Read((1, 10, 64, 64), (3, 3, 3), "LAS", 31.5, 63),
    "minimal_extended_hdr.nii": Read((1, 1, 8, 8), (999, 1, 1), "RAS", 0, 0),
    "fuzz_crash-1.nii": (*NO_NIFTI, "-9510"),
    "fuzz_crash-ed7d.nii": (*NO_NIFTI, "2826"),
    "resampled_anat_moved.nii": ("153 voxels that are NaN or infinite",),
    "functional.nii": Read((20, 3, 21, 17), (8, 4, 4), "LAS", 3637.41, FRACTIONS),
    "anatomical.nii": Read((1, 25, 41, 33), (2, 2, 2), "LAS", 8401.07, 30393),
    "example4d.nii.gz": Read((2, 24, 96, 128), (2.2, 2, 2), "LAS", 172.908, 1162),
    "example_nifti2.nii.gz": Read((2, 12, 20, 32), (2.2, 2, 2), "LAS", 450.964, 757),
    "test.mgz": ENDING,
    "standard.nii.gz": Read((1, 7, 5, 4), (2, 3, 1), "RAS", 54.6429, 255),
    "shear.nii.gz": Read((1, 54, 422, 306), (2.37081, 0.482422, 0.482422), "RAS", -799.913, FRACTIONS),
    "low_res.nii.gz": Read((1, 3, 5, 7), (2, 2, 2), "RAS", 0.504762, 1),
    "complex.nii.gz": COMPLEX,
    "ct_perfusion.nii.gz": COLOURS,
    "ras.hdr": ENDING,
    "ras.img": ENDING,
    "mha.mha": Read((1, 37, 64, 64), (3.8, 3.4375, 3.4375), "LAS", 527.506, 6690),
    "FLAIR.nrrd": Read((1, 140, 160, 124), (1, 1, 1), "RAS", 41.486, 255),
    "FLAIR.nii.gz": Read((1, 140, 160, 124), (1, 1, 1), "RAS", 41.486, 255),
    "labels/lesion.nii.gz": Unseen((1, 140, 160, 124)),
    "inia19-t1-brain.nii.gz": Read((1, 128, 206, 168), (0.5, 0.5, 0.5), "RAS", 17.0107, 255),
    "labels/inia19-NeuroMaps.nii.gz": Unseen((1, 128, 206, 168)),
    "torchio_fernando_t2.nii.gz": Read((1, 26, 320, 320), (5.5, 0.75, 0.75), "LAS", 59.0127, 867),
    "dcm_qa_sag_asc_35sl_22.nii": Read((2, 35, 64, 64), (3.6, 3.25, 3.25), "PSL", 276.041, 2139),
    "BallBinary30x30x30_gz.nrrd": BALL,
    "BallBinary30x30x30_bz2.nrrd": BALL,
    "BallBinary30x30x30.nhdr": BALL,
    "BallBinary30x30x30.raw": ENDING,
    "BallBinary30x30x30_byteskip_minus_five.nhdr": ("unreadable file", "byte skip: -5"),
    "test2d_ascii.nrrd": Read((1, 1, 9, 3), (1998, 2, 1.0458), "LPS", 14, 27),
    "test_simple4d_raw.nrrd": ("this kind of file is not supported", "4 axes"),
    "3DCT_lung_baseline_small.mha": Read((1, 64, 78, 57), (5, 2.732, 2.732), "LPS", -349.951, 1379),
    "labels/3DCT_lung_followup_segmentation.mha": Unseen(),
    "labels/3DCT_lung_followup_mask.mha": Unseen(),
    "2DMRI-T1_brain.mha": Read((1, 1, 256, 256), (999, 1, 1), "LPS", 40.5966, 217),
    "CT_2D_head_fixed.mha": Read((1, 1, 256, 256), (999, 1, 1), "LPS", 40.5966, 217),
    "labels/CT_2D_head_fixed_mask.mha": Unseen((1, 1, 256, 256)),
    "multipage_rgb.tif": Read((3, 2, 10, 10), (1, 1, 1), "RAS", 0.492439, FRACTIONS),
    "calcium_imaging.tif": Read((1, 1000, 30, 40), (1, 1, 1), "RAS", 1411.13, 16268),
    "imageio_issue246.png": Read((4, 1, 24, 30), (999, 1, 1), "RAS", 171.270, 5),
    "horse.png": Read((4, 1, 328, 400), (999, 1, 1), "RAS", 191.751, "a label map with transparent pixels"),
    "immunohistochemistry.png": Read((3, 1, 512, 512), (999, 1, 1), "RAS", 160.325, 255),
    "clock.png": Read((1, 1, 300, 400), (999, 1, 1), "RAS", 146.332, 247),
}


def listed() -> list[str]:
    """The manifest's lines, or what was in it when this was written."""
    manifest = REAL_DATA / "odd_files/MANIFEST.tsv"
    if not manifest.is_file():
        return list(EXPECTED)
    with manifest.open() as file:
        return [row["file"] for row in csv.DictReader(file, delimiter="\t")]


def odd(name: str) -> Path:
    path = real_data("odd_files") / name
    if not path.exists() and isinstance(EXPECTED.get(name), Unseen):
        pytest.skip("listed in the manifest, but not among the files")
    return path


@pytest.mark.parametrize("name", listed())
def test_as_image(name: str) -> None:
    path, expected = odd(name), EXPECTED[name]  # a new line of the manifest needs a line above
    if isinstance(expected, Unseen):
        read_image(path)
        return
    if isinstance(expected, tuple):
        with pytest.raises(SegpipeError) as refusal:
            read_image(path)
        assert all(text in str(refusal.value) for text in (str(path), *expected))
        return
    volume = read_image(path)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == expected.shape
    np.testing.assert_allclose(volume.spacing_mm, expected.spacing_mm, rtol=1e-5)
    assert axis_codes(volume) == expected.codes
    np.testing.assert_allclose(volume.array.mean(dtype=np.float64), expected.mean, rtol=1e-5)


@pytest.mark.parametrize("name", listed())
def test_as_label(name: str) -> None:
    path, expected = odd(name), EXPECTED[name]
    if isinstance(expected, Unseen):
        assert read_label(path).array.shape == (expected.shape or read_image(path).array.shape)
        return
    if isinstance(expected, Read) and isinstance(expected.label, int):
        label = read_label(path)
        assert label.array.dtype == np.int16
        assert label.array.max() == expected.label
        return
    with pytest.raises(SegpipeError) as refusal:
        read_label(path)
    assert str(path) in str(refusal.value)
    if isinstance(expected, Read):
        assert str(expected.label) in str(refusal.value)


# what belongs together


def test_both_byte_orders_of_one_map_are_the_same() -> None:
    big, little = read_image(odd("big.nii.gz")), read_image(odd("little.nii.gz"))
    np.testing.assert_array_equal(big.array, little.array)
    assert big.spacing_mm == little.spacing_mm


def test_left_and_right_are_the_same_brain_when_turned() -> None:
    one, other = (read_image(odd(f"avg152T1_{side}_nifti.nii.gz"), "RAS") for side in ("LR", "RL"))
    stored = read_image(odd("avg152T1_LR_nifti.nii.gz"))
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_array_equal(one.array, stored.array[..., ::-1])
    np.testing.assert_allclose(one.affine, other.affine)


@pytest.mark.parametrize("orientation", ["as-stored", "RAS"])
def test_nrrd_and_nifti_of_one_brain_are_the_same(orientation: str) -> None:
    nrrd, nifti = (read_image(odd(name), orientation) for name in ("FLAIR.nrrd", "FLAIR.nii.gz"))
    np.testing.assert_array_equal(nrrd.array, nifti.array)
    np.testing.assert_allclose(nrrd.spacing_mm, nifti.spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(nrrd.affine, nifti.affine, atol=1e-5)


def test_a_time_series_is_scaled() -> None:
    path = odd("functional.nii")
    expected = nibabel.load(path).get_fdata().transpose(3, 2, 1, 0)
    np.testing.assert_allclose(read_image(path).array, expected, rtol=1e-6)


ITK_READS = [
    "torchio_fernando_t2.nii.gz",
    "mha.mha",
    "3DCT_lung_baseline_small.mha",
    "2DMRI-T1_brain.mha",
    "FLAIR.nrrd",
    "BallBinary30x30x30.nhdr",
    "test2d_ascii.nrrd",
]


@pytest.mark.parametrize("name", ITK_READS)
def test_itk_reads_the_same_values_and_geometry(name: str) -> None:
    volume, image = read_image(odd(name)), sitk.ReadImage(str(odd(name)))
    n_axes = image.GetDimension()
    np.testing.assert_array_equal(volume.array.ravel(), sitk.GetArrayFromImage(image).ravel())
    np.testing.assert_allclose(volume.spacing_mm[::-1][:n_axes], image.GetSpacing(), rtol=1e-6)
    turn = np.diag([-1.0, -1.0, 1.0][:n_axes])  # from left, posterior to right, anterior
    axes = turn @ np.reshape(image.GetDirection(), (n_axes, n_axes)) * image.GetSpacing()
    np.testing.assert_allclose(volume.affine[:n_axes, :n_axes], axes, atol=1e-5)
    np.testing.assert_allclose(volume.affine[:n_axes, 3], turn @ image.GetOrigin(), atol=1e-4)


def test_the_sheared_axes_of_a_tilted_gantry_stay() -> None:
    path = odd("shear.nii.gz")
    volume = read_image(path)
    np.testing.assert_array_equal(volume.affine, nibabel.load(path).affine)
    y, z = volume.affine[:3, 1], volume.affine[:3, 2]
    assert abs(y @ z) > 0.1 * np.linalg.norm(y) * np.linalg.norm(z)
