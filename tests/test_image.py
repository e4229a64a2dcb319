"""One volume: what is read, what is refused, and that a segmentation comes back on the grid of its image."""

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from numpy.typing import NDArray
from volumes import OBLIQUE, affine, image_array, nifti

from segpipe.data.image import read_image, read_label, write_label_like
from segpipe.errors import SegpipeError


def refusal(path: Path, read: Callable[[Path], object] = read_image) -> str:
    """What the reader says; it must name the file."""
    with pytest.raises(SegpipeError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


# reading


def test_axes_are_turned_around(tmp_path: Path) -> None:
    array = image_array(shape=(5, 4, 3))
    volume = read_image(nifti(tmp_path / "a.nii.gz", array, (0.5, 2, 3)))
    assert volume.array.dtype == np.float32
    assert volume.shape == (3, 4, 5)
    assert volume.spacing_mm == (3, 2, 0.5)
    np.testing.assert_array_equal(volume.array[0], array.transpose(2, 1, 0))


def test_channels_of_a_4d_image_come_first(tmp_path: Path) -> None:
    array = image_array(shape=(5, 4, 3, 2))
    volume = read_image(nifti(tmp_path / "a.nii.gz", array))
    assert volume.array.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))


def test_a_2d_image_is_one_thick_slice(tmp_path: Path) -> None:
    array = image_array(shape=(5, 4))
    volume = read_image(nifti(tmp_path / "a.nii", array, (0.5, 2, 1)))
    assert volume.array.shape == (1, 1, 4, 5)
    assert volume.spacing_mm == (2 * 999, 2, 0.5)
    np.testing.assert_array_equal(volume.array[0, 0], array.T)


@pytest.mark.parametrize("shape", [(5, 4, 3, 1), (5, 4, 3, 1, 1), (5, 4, 3, 1, 1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = image_array(shape=shape)
    np.testing.assert_array_equal(read_image(nifti(tmp_path / "a.nii", array)).array[0], array.reshape(5, 4, 3).T)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [Nifti1Image, Nifti2Image])
def test_every_number_type_is_read(tmp_path: Path, dtype: str, order: str, kind: type[Nifti1Image]) -> None:
    array = (np.arange(60).reshape(5, 4, 3) % 7).astype(dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    path = tmp_path / "a.nii"
    path.write_bytes(kind(array, affine(), header).to_bytes())
    assert (path.read_bytes()[:4] == b"\x5c\x01\0\0") == (order == "<" and kind is Nifti1Image)
    np.testing.assert_array_equal(read_image(path).array[0], array.T)
    label = read_label(path)
    assert label.array.dtype == np.int16
    np.testing.assert_array_equal(label.array[0], array.T)


def scaled(path: Path, stored: NDArray[np.generic], slope: float, inter: float) -> Path:
    """A file whose header scales the stored numbers."""
    raw = bytearray(Nifti1Image(stored, affine(), dtype=stored.dtype).to_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(bytes(raw))
    return path


def test_the_scaling_of_the_header_is_applied(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    path = scaled(tmp_path / "a.nii", stored, 2.5, -1000)
    np.testing.assert_allclose(read_image(path).array[0], stored.T * 2.5 - 1000)


def test_labels_may_be_scaled_to_whole_numbers(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.uint8).reshape(5, 4, 3) % 3
    np.testing.assert_array_equal(read_label(scaled(tmp_path / "a.nii", stored, 2, 1)).array[0], stored.T * 2 + 1)


@pytest.mark.parametrize("unit", ["unknown", "mm", "meter", "micron"])
def test_lengths_are_in_mm_whatever_the_unit_of_the_file(tmp_path: Path, unit: str) -> None:
    stored = Nifti1Image(
        image_array(shape=(5, 4, 3)), affine((0.5, 2, 3), OBLIQUE) + np.eye(4)[3] * [[4], [5], [6], [0]]
    )
    stored.header.set_xyzt_units(unit, "sec")
    path = tmp_path / "image.nii.gz"
    nibabel.save(stored, path)
    found, of_itk = read_image(path), sitk.ReadImage(str(path))
    np.testing.assert_allclose(found.spacing_mm[::-1], of_itk.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(found.affine[:3, 3] * [-1, -1, 1], of_itk.GetOrigin(), rtol=1e-5)
    write_label_like(tmp_path / "label.nii.gz", found.array[0].astype(int) % 2, path)
    again = nibabel.load(tmp_path / "label.nii.gz")
    np.testing.assert_allclose(again.affine, stored.affine, atol=1e-6)
    assert again.header.get_xyzt_units() == (unit, "sec")


def test_corners_are_where_the_affine_puts_them(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", image_array(shape=(5, 4, 3)), (0.5, 2, 3), OBLIQUE)
    indices = list(itertools.product((0, 4), (0, 3), (0, 2)))
    expected = [affine((0.5, 2, 3), OBLIQUE) @ [*index, 1] for index in indices]
    corners = read_image(path).corners_mm()
    assert corners.shape == (8, 3)
    np.testing.assert_allclose(sorted(corners.tolist()), sorted(e[:3].tolist() for e in expected), atol=1e-4)


# writing


def sources() -> dict[str, Callable[[Path], Path]]:
    return {
        "plain": lambda folder: nifti(folder / "image.nii.gz", image_array(shape=(5, 4, 3))),
        "oblique": lambda folder: nifti(
            folder / "image.nii.gz", image_array(shape=(5, 4, 3)), (0.5, 2, 3), OBLIQUE * [[-1, 1, 1]]
        ),
        "uncompressed": lambda folder: nifti(folder / "image.nii", image_array(shape=(5, 4, 3)), (1, 2, 3), OBLIQUE),
        "2D": lambda folder: nifti(folder / "image.nii.gz", image_array(shape=(5, 4)), (0.7, 0.9, 1)),
        "4D": lambda folder: nifti(folder / "image.nii.gz", image_array(shape=(5, 4, 3, 2)), (1, 1, 2), OBLIQUE),
        "scaled": lambda folder: scaled(folder / "image.nii", np.ones((5, 4, 3), np.int16), 0.01, -1000),
        "NIfTI-2": lambda folder: nifti(
            folder / "image.nii.gz", image_array(shape=(5, 4, 3)), (1, 2, 1), OBLIQUE, Nifti2Image
        ),
        "big-endian": big_endian,
        "qform only": qform_only,
    }


def big_endian(folder: Path) -> Path:
    header = Nifti1Image.header_class(endianness=">")
    (folder / "image.nii").write_bytes(Nifti1Image(image_array(shape=(5, 4, 3)), affine((1, 2, 3)), header).to_bytes())
    return folder / "image.nii"


def qform_only(folder: Path) -> Path:
    image = Nifti1Image(image_array(shape=(5, 4, 3)), None)
    image.set_qform(affine((1, 2, 3), OBLIQUE), code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, folder / "image.nii.gz")
    return folder / "image.nii.gz"


@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize(("largest", "dtype"), [(3, np.uint8), (300, np.uint16)])
def test_a_segmentation_comes_back_on_the_grid_of_its_image(
    tmp_path: Path, source: str, largest: int, dtype: type[np.generic]
) -> None:
    reference = sources()[source](tmp_path)
    image = read_image(reference)
    label = (np.arange(np.prod(image.shape)).reshape(image.shape) % 3).astype(np.int16)
    label.flat[-1] = largest
    path = tmp_path / ("segmentation" + "".join(reference.suffixes))
    write_label_like(path, label, reference)
    written = read_label(path)
    np.testing.assert_array_equal(written.array[0], label)
    assert written.spacing_mm == image.spacing_mm
    np.testing.assert_array_equal(written.affine, image.affine)
    old, new = nibabel.load(reference), nibabel.load(path)
    assert type(old) is type(new)
    assert new.get_data_dtype().newbyteorder("=") == dtype
    for key in ("sform_code", "qform_code", "xyzt_units"):
        assert old.header[key] == new.header[key], key
    assert new.header.get_slope_inter() in ((1, 0), (None, None))


@pytest.mark.parametrize("source", ["oblique", "2D", "qform only", "scaled"])
def test_itk_sees_the_same_grid(tmp_path: Path, source: str) -> None:
    reference = sources()[source](tmp_path)
    label = np.ones(read_image(reference).shape, np.int16)
    label[0, 1] = 2
    path = tmp_path / "segmentation.nii.gz"
    write_label_like(path, label, reference)
    old, new = sitk.ReadImage(str(reference)), sitk.ReadImage(str(path))
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(old, geometry)() == getattr(new, geometry)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(new).reshape(label.shape), label)


def test_equal_segmentations_are_equal_files(tmp_path: Path) -> None:
    reference = sources()["oblique"](tmp_path)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_label_like(tmp_path / name, np.ones((3, 4, 5), np.int16), reference)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    assert one[4:8] == bytes(4)  # where gzip keeps the time


# refusing


def compressed(path: Path) -> bytes:
    return nifti(path, image_array(shape=(20, 20, 20))).read_bytes()


@pytest.mark.parametrize("kept", [0, 3, 20, 200, -9, -4])
def test_a_truncated_gz_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(compressed(path)[:kept])
    assert "unreadable file" in refusal(path)


@pytest.mark.parametrize("kept", [0, 100, 348, 352, -1])
def test_a_truncated_uncompressed_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = nifti(tmp_path / "a.nii", image_array())
    path.write_bytes(path.read_bytes()[:kept])
    assert "unreadable file" in refusal(path)


def test_a_bad_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    raw = bytearray(compressed(path))
    raw[-8] ^= 1  # the CRC stands before the length
    path.write_bytes(bytes(raw))
    assert "CRC" in refusal(path)


def test_flipped_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    raw = bytearray(compressed(path))
    raw[len(raw) // 2] ^= 255
    path.write_bytes(bytes(raw))
    assert "unreadable file" in refusal(path)


CONTENTS = [b"", b"no NIfTI" * 100, gzip.compress(b"", mtime=0), gzip.compress(b"no NIfTI" * 100, mtime=0)]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_nifti_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "unreadable file" in refusal(tmp_path / name)


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", image_array())
    raw = bytearray(path.read_bytes())
    raw[42:48] = np.array([32000] * 3, "<i2").tobytes()
    path.write_bytes(bytes(raw))
    assert "unreadable file" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "missing file" in refusal(tmp_path / "a.nii.gz")


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    assert "complex64" in refusal(nifti(tmp_path / "a.nii.gz", np.ones((3, 3, 3), np.complex64)))


def test_colours_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "not an image of real numbers" in refusal(nifti(tmp_path / "a.nii.gz", rgb))


@pytest.mark.parametrize("shape", [(3, 3, 3, 1, 2), (3, 3, 3, 2, 2), (7,)])
def test_other_numbers_of_axes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    text = refusal(nifti(tmp_path / "a.nii", np.zeros(shape, np.float32)))
    assert "not a 2D, 3D or 4D image" in text
    assert str(shape) in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_counted(tmp_path: Path, value: float) -> None:
    array = image_array(shape=(5, 4, 3))
    array[1, 2, 0] = array[0, 0, 0] = value
    path = nifti(tmp_path / "a.nii.gz", array)
    assert "found:    2 voxels that are NaN or infinite" in refusal(path)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -np.inf])
def test_labels_are_whole_numbers(tmp_path: Path, value: float) -> None:
    array = np.zeros((5, 4, 3), np.float32)
    array[1, 2, 0] = value
    text = refusal(nifti(tmp_path / "a.nii.gz", array), read_label)
    assert "label values are not whole numbers" in text
    assert f"found:    {value} and others" in text


@pytest.mark.parametrize("value", [2**15, -(2**15) - 1, 2**40])
def test_labels_that_do_not_fit_are_refused_not_wrapped(tmp_path: Path, value: int) -> None:
    array = np.zeros((5, 4, 3), np.int64)
    array[1, 2, 0] = value
    text = refusal(nifti(tmp_path / "a.nii", array), read_label)
    assert "label value out of range" in text
    assert str(value) in text


@pytest.mark.parametrize("offset", [80, 280, 292])  # pixdim[1], srow_x[0], srow_x[3]
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_header_without_geometry_is_refused(tmp_path: Path, offset: int, value: float) -> None:
    path = nifti(tmp_path / "a.nii", image_array())
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 4] = np.array(value, "<f4").tobytes()
    path.write_bytes(bytes(raw))
    assert "the header gives no geometry" in refusal(path)
