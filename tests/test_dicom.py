"""A DICOM series: the slices in order, in HU, on ITK's grid; what does not belong together is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from image_files import numbers
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless
from volumes import OBLIQUE

from segpipe.data import image
from segpipe.data.image import read_image, read_label, write_label_like
from segpipe.errors import SegpipeError

ARRAY = numbers((4, 5, 6))
SPACING_MM = (2.5, 0.7, 0.9)  # (Z, Y, X)
Change = Callable[[int, Dataset], None]


def series(folder: Path, change: Change = lambda number, one: None, packed: bool = False) -> Path:
    """Slices whose names are not in the order of their places. `change` gets each before it is written."""
    folder.mkdir(parents=True)
    for number, plane in enumerate(ARRAY):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        one.SeriesInstanceUID, one.Modality = "1.2.3", "CT"
        one.Rows, one.Columns = plane.shape
        one.PixelSpacing = list(SPACING_MM[1:])
        one.ImageOrientationPatient = [float(f"{v:.8f}") for v in OBLIQUE[:, :2].T.ravel()]
        place = np.array([-12.5, 30.25, 7]) + number * SPACING_MM[0] * OBLIQUE[:, 2]
        one.ImagePositionPatient = [float(f"{v:.8f}") for v in place]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleSlope, one.RescaleIntercept = 2, -1024
        one.PixelData = plane.astype("<i2").tobytes()
        change(number, one)
        if packed:
            one.compress(RLELossless)
        one.save_as(folder / f"{(7 * number) % 5}.dcm", enforce_file_format=True)
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_packed_series_is_read(tmp_path: Path) -> None:
    volume = read_image(series(tmp_path / "case_0000.dcm", packed=True))
    np.testing.assert_array_equal(volume.array[0], ARRAY * 2.0 - 1024)


def test_a_series_is_read_as_itk_does(tmp_path: Path) -> None:
    path = series(tmp_path / "case_0000.dcm")
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array[0], ARRAY * 2.0 - 1024)
    np.testing.assert_allclose(volume.spacing_mm, SPACING_MM, rtol=1e-6)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    found = reader.Execute()
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(found))
    turn = np.diag([-1.0, -1.0, 1.0])
    axes = turn @ np.reshape(found.GetDirection(), (3, 3)) * found.GetSpacing()
    np.testing.assert_allclose(volume.affine[:3, :3], axes, atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3], turn @ found.GetOrigin(), atol=1e-5)


@pytest.mark.parametrize("orientation", ["as-stored", "RAS"])
def test_a_segmentation_is_nifti_on_the_grid_of_the_series(tmp_path: Path, orientation: str) -> None:
    path = series(tmp_path / "case_0000.dcm")
    volume = read_image(path, orientation)
    label = numbers(volume.shape)
    out = tmp_path / f"case{image.label_ending('.dcm')}"
    write_label_like(out, label, path, orientation)
    written = read_label(out, orientation)
    np.testing.assert_array_equal(written.array[0], label)
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-5)
    np.testing.assert_allclose(written.spacing_mm, volume.spacing_mm, rtol=1e-6)


def test_the_slices_belong_to_the_folder(tmp_path: Path) -> None:
    path = series(tmp_path / "case_0000.dcm")
    (path / ".hidden").write_bytes(b"x")
    assert image.companions(path) == sorted(path.glob("*.dcm"))
    before = image.identity(path)
    pixels = next(path.glob("*.dcm"))
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"\1")
    assert image.identity(path) != before


def test_one_file_is_a_2d_image(tmp_path: Path) -> None:
    path = sorted(series(tmp_path / "case_0000.dcm").iterdir())[0]
    volume = read_image(path)
    assert volume.is_2d
    np.testing.assert_array_equal(volume.array[0, 0], ARRAY[0] * 2.0 - 1024)
    np.testing.assert_allclose(volume.spacing_mm, (0.9 * 999, 0.7, 0.9))


def of_number(wanted: int, **changes: Any) -> Change:
    def change(number: int, one: Dataset) -> None:
        for key, value in changes.items() if number == wanted else ():
            setattr(one, key, value)

    return change


def without(key: str) -> Change:
    return lambda number, one: delattr(one, key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_number(1, SeriesInstanceUID="1.2.4"), "2 values of SeriesInstanceUID"),
        (of_number(1, PixelSpacing=[1, 1]), "2 values of PixelSpacing"),
        (without("ImagePositionPatient"), "no ImagePositionPatient"),
        (without("PixelSpacing"), "no PixelSpacing"),
        (of_number(2, SamplesPerPixel=3), "colours"),
        (of_number(2, NumberOfFrames=4), "several frames"),
        (of_number(2, PixelData=b"\0" * 20), "unreadable file"),
    ],
)
def test_what_is_no_whole_series_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    assert message in refusal(series(tmp_path / "case_0000.dcm", change))


def test_a_missing_slice_and_a_double_one_are_refused(tmp_path: Path) -> None:
    path = series(tmp_path / "case_0000.dcm")
    second = next(file for file in path.iterdir() if pydicom.dcmread(file).SOPInstanceUID == "1.2.3.1")
    content = second.read_bytes()
    second.unlink()
    assert "steps of 2.5 to 5 mm" in refusal(path)
    second.write_bytes(content)
    (path / "again.dcm").write_bytes(content)
    assert "steps of 0 to 2.5 mm" in refusal(path)


@pytest.mark.parametrize("kept", [0, 100, 300, -1, -30])
def test_a_truncated_slice_is_refused(tmp_path: Path, kept: int) -> None:
    path = series(tmp_path / "case_0000.dcm")
    one = sorted(path.iterdir())[1]
    one.write_bytes(one.read_bytes()[:kept])
    refusal(path)


def test_a_folder_without_slices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "case_0000.dcm").mkdir()
    assert "no files" in refusal(tmp_path / "case_0000.dcm")
    (tmp_path / "case_0000.dcm/readme.txt").write_text("no slice")
    assert "InvalidDicomError" in refusal(tmp_path / "case_0000.dcm")


def test_without_pydicom_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = series(tmp_path / "case_0000.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.delitem(sys.modules, "segpipe.data.formats.dicom", raising=False)
    text = refusal(path)
    assert "no package pydicom" in text
    assert "pip install segpipe[dicom]" in text
