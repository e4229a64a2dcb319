"""Every image format: values, channels, spacing; and segmentations with the geometry of their image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from image_files import BYTES, REFERENCES, SHAPE, indexed, itk, numbers, picture, tiff
from PIL import Image
from volumes import affine, image_array, nifti

from segpipe.data import image
from segpipe.data.image import Volume, read_image, read_label, write_label_like
from segpipe.errors import SegpipeError

RGB = numbers((4, 5, 3), np.uint8)
ALPHA = np.dstack([RGB, np.full((4, 5), 255, np.uint8)])


def refusal(path: Path, read: Callable[[Path], object] = read_image) -> str:
    """What the reader says; it must name the file."""
    with pytest.raises(SegpipeError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


# MetaImage and NRRD: values and geometry as ITK has them


def assert_as_itk(volume: Volume, found: sitk.Image) -> None:
    n_axes = found.GetDimension()
    np.testing.assert_array_equal(volume.array.ravel(), sitk.GetArrayFromImage(found).ravel())
    np.testing.assert_allclose(volume.spacing_mm[::-1][:n_axes], found.GetSpacing(), rtol=1e-6)
    turn = np.diag([-1.0, -1.0, 1.0][:n_axes])  # from left, posterior to right, anterior
    axes = turn @ np.reshape(found.GetDirection(), (n_axes, n_axes)) * found.GetSpacing()
    np.testing.assert_allclose(volume.affine[:n_axes, :n_axes], axes, atol=1e-6)
    np.testing.assert_allclose(volume.affine[:n_axes, 3], turn @ found.GetOrigin(), atol=1e-6)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (4, 5)])
def test_meta_image_and_nrrd_are_read_as_itk_does(
    tmp_path: Path, ending: str, compressed: bool, shape: tuple[int, ...]
) -> None:
    path = itk(tmp_path / f"a{ending}", numbers(shape), compressed)
    volume = read_image(path)
    assert volume.array.dtype == np.float32
    assert volume.array.shape == (1, 1, *shape)[-4:]
    np.testing.assert_allclose(volume.spacing_mm, (3, 2, 0.5) if len(shape) == 3 else (2 * 999, 2, 0.5))
    assert_as_itk(volume, sitk.ReadImage(str(path)))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_number_type_is_read(tmp_path: Path, ending: str, dtype: str) -> None:
    array = numbers(dtype=dtype)
    path = itk(tmp_path / f"a{ending}", array)
    np.testing.assert_array_equal(read_image(path).array[0], array)
    np.testing.assert_array_equal(read_label(path).array[0], array)


def meta(path: Path, data: bytes, name: str = "LOCAL", **fields: Any) -> Path:
    """A header by hand: int16, 5 x 4 x 3."""
    known = {"NDims": 3, "DimSize": "5 4 3", "ElementType": "MET_SHORT", **fields, "ElementDataFile": name}
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in known.items()).encode() + data)
    return path


def nrrd(path: Path, data: bytes, **fields: Any) -> Path:
    """A header by hand: int16, 5 x 4 x 3. A field that is None is left out."""
    known = {"type": "short", "dimension": 3, "sizes": "5 4 3", "endian": "little", "encoding": "raw", **fields}
    lines = [f"{key.replace('_', ' ')}: {value}\n" for key, value in known.items() if value is not None]
    path.write_bytes(("NRRD0004\n# a comment\n" + "".join(lines) + "key:=value: 1\n\n").encode() + data)
    return path


DATA = numbers().tobytes()
TEXT = " ".join(map(str, numbers().flat)).encode()


@pytest.mark.parametrize(
    "make",
    [
        lambda f: meta(f / "a.mha", DATA),
        lambda f: meta(f / "a.mha", numbers(dtype=">i2").tobytes(), BinaryDataByteOrderMSB=True),
        lambda f: meta(f / "a.mha", numbers(dtype=">i2").tobytes(), ElementByteOrderMSB=True),
        lambda f: meta(f / "a.mha", b"junk" + DATA, HeaderSize=4),
        lambda f: meta(f / "a.mha", b"junk" + DATA, HeaderSize=-1),
        lambda f: meta(f / "a.mha", TEXT, BinaryData=False),
        lambda f: nrrd(f / "a.nrrd", DATA),
        lambda f: nrrd(f / "a.nrrd", numbers(dtype=">i2").tobytes(), endian="big"),
        lambda f: nrrd(f / "a.nrrd", b"junk" + DATA, byte_skip=4),
        lambda f: nrrd(f / "a.nrrd", b"junk" + DATA, byte_skip=-1),
        lambda f: nrrd(f / "a.nrrd", b"one line\n" + DATA, line_skip=1),
        lambda f: nrrd(f / "a.nrrd", TEXT, encoding="ascii", endian=None),
    ],
)
def test_headers_by_hand_are_read(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    volume = read_image(make(tmp_path))
    np.testing.assert_array_equal(volume.array[0], numbers())
    assert volume.spacing_mm == (1, 1, 1)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
    ],
)
def test_the_spaces_of_nrrd(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    geometry = {"space": space, "space directions": "(0,2,0) (3,0,0) (0,0,0.5)", "space origin": "(1,2,3)"}
    volume = read_image(nrrd(tmp_path / "a.nrrd", DATA, **geometry))
    expected = np.diag(signs) @ [[0, 3, 0, 1], [2, 0, 0, 2], [0, 0, 0.5, 3]]
    np.testing.assert_allclose(volume.affine[:3], expected)
    assert volume.spacing_mm == (0.5, 3, 2)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one byte short": (lambda f: meta(f / "a.mha", DATA[:-1]), "119 bytes of voxels"),
    "one byte more": (lambda f: meta(f / "a.mha", DATA + b"\0"), "121 bytes of voxels"),
    "four axes": (lambda f: meta(f / "a.mha", DATA, NDims=4, DimSize="5 4 3 1"), "4 axes"),
    "five axes": (lambda f: meta(f / "a.mha", DATA, NDims=5, DimSize="5 4 3 1 1"), "5 axes"),
    "other number of axes": (lambda f: meta(f / "a.mha", DATA, NDims=2), "NDims = 2"),
    "colours": (lambda f: meta(f / "a.mha", DATA * 3, ElementNumberOfChannels=3), "3 channel(s)"),
    "negative size": (lambda f: meta(f / "a.mha", DATA, DimSize="5 4 -3"), "5 4 -3"),
    "huge": (lambda f: meta(f / "a.mha", DATA, DimSize="500000 400000 300000"), "bytes of voxels"),
    "unknown type": (lambda f: meta(f / "a.mha", DATA, ElementType="MET_STRING"), "MET_STRING"),
    "scaled": (lambda f: meta(f / "a.mha", DATA, ElementToIntensityFunctionSlope=2), "ElementToIntensityFunction"),
    "list": (lambda f: meta(f / "a.mhd", b"", "LIST"), "LIST"),
    "no data file": (lambda f: meta(f / "a.mhd", b"", "b.raw"), "b.raw"),
    "skipped": (lambda f: meta(f / "a.mha", DATA, HeaderSize=-7), "HeaderSize = -7"),
    "a word": (lambda f: meta(f / "a.mha", DATA, HeaderSize="x"), "HeaderSize"),
    "flat": (lambda f: meta(f / "a.mha", DATA, TransformMatrix="1 0 0 1 0 0 0 0 1"), "no geometry"),
    "no spacing": (lambda f: meta(f / "a.mha", DATA, ElementSpacing="1 0 1"), "no geometry"),
    "two spacings": (lambda f: meta(f / "a.mha", DATA, ElementSpacing="1 1"), "3 axes"),
    "numbers missing": (lambda f: meta(f / "a.mha", b"1 2 3", BinaryData=False), "3 numbers"),
    "number too large": (lambda f: meta(f / "a.mha", b"99999 " * 60, BinaryData=False), "OverflowError"),
    "nrrd short": (lambda f: nrrd(f / "a.nrrd", DATA[:-1]), "119 bytes of voxels"),
    "nrrd more": (lambda f: nrrd(f / "a.nrrd", DATA + b"\0"), "121 bytes of voxels"),
    "nrrd huge": (lambda f: nrrd(f / "a.nrrd", DATA, sizes="500000 400000 300000"), "bytes of voxels"),
    "nrrd 5D": (lambda f: nrrd(f / "a.nrrd", DATA, dimension=5, sizes="5 4 3 1 1"), "5 axes"),
    "nrrd colours": (lambda f: nrrd(f / "a.nrrd", DATA, kinds="vector domain domain"), "vector"),
    "nrrd hex": (lambda f: nrrd(f / "a.nrrd", DATA, encoding="hex"), "hex"),
    "nrrd block": (lambda f: nrrd(f / "a.nrrd", DATA, type="block"), "block"),
    "nrrd space": (lambda f: nrrd(f / "a.nrrd", DATA, space="scanner-xyz"), "scanner-xyz"),
    "nrrd skip": (lambda f: nrrd(f / "a.nrrd", DATA, byte_skip=-2), "byte skip: -2"),
    "nrrd flat": (lambda f: nrrd(f / "a.nrrd", DATA, space="RAS", space_directions="(1,0) (0,1)"), "directions"),
    "nrrd several files": (lambda f: nrrd(f / "a.nhdr", b"", data_file="s%03d.raw 1 3 1"), "s%03d.raw"),
    "nrrd without data": (lambda f: nrrd(f / "a.nhdr", b"", data_file="b.raw"), "b.raw"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_headers_without_sense_are_refused(tmp_path: Path, what: str) -> None:
    make, message = REFUSED[what]
    assert message in refusal(make(tmp_path))


# PNG, BMP, JPEG


@pytest.mark.parametrize(
    ("array", "n_channels"), [(BYTES, 1), (RGB[..., :2], 2), (RGB, 3), (ALPHA, 4), (BYTES.astype(np.uint16) * 257, 1)]
)
def test_a_png_has_its_channels(tmp_path: Path, array: Any, n_channels: int) -> None:
    volume = read_image(picture(tmp_path / "a.png", array))
    assert volume.array.shape == (n_channels, 1, 4, 5)
    assert volume.spacing_mm == (999, 1, 1)
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(np.atleast_3d(array), -1, 0))


@pytest.mark.parametrize("n_channels", [2, 3, 4])
def test_16_bits_of_a_colour_are_kept(tmp_path: Path, n_channels: int) -> None:
    array = numbers((4, 5, n_channels), np.uint16) * 1001
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(array))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array[:, 0], np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_of_few_bits_is_not_spread(tmp_path: Path, bits: int) -> None:
    array = np.arange(20, dtype=np.uint8).reshape(4, 5) % 2**bits
    gray = Image.fromarray(array * np.uint8(255 // (2**bits - 1)))
    gray.convert("1" if bits == 1 else "L").save(tmp_path / "a.png", bits=bits)
    if bits > 1:
        (tmp_path / "a.png").write_bytes(packed_png(array, bits))
    for read in (read_image, read_label):
        np.testing.assert_array_equal(read(tmp_path / "a.png").array[0, 0], array)


def packed_png(array: Any, bits: int) -> bytes:
    """Pillow writes gray with eight bits or one only."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in array]
    rows = [row.ljust(-(-len(row) // 8) * 8, "0") for row in rows]
    data = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8) for row in rows)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_a_palette_gives_colours_and_in_labels_indices(tmp_path: Path, ending: str) -> None:
    array = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    path = indexed(tmp_path / f"a{ending}", array)
    colours = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]])[array]
    np.testing.assert_array_equal(read_image(path).array[:, 0], np.moveaxis(colours, -1, 0))
    np.testing.assert_array_equal(read_label(path).array[0, 0], array)


def test_a_transparent_palette_has_an_alpha_channel(tmp_path: Path) -> None:
    path = indexed(tmp_path / "a.png", np.arange(20, dtype=np.uint8).reshape(4, 5) % 3, transparency=0)
    assert sorted(set(read_image(path).array[3].flat)) == [0, 255]


@pytest.mark.parametrize("array", [BYTES, RGB])
def test_bmp_and_jpeg(tmp_path: Path, array: Any) -> None:
    expected = np.moveaxis(np.atleast_3d(array), -1, 0)
    np.testing.assert_array_equal(read_image(picture(tmp_path / "a.bmp", array)).array[:, 0], expected)
    smooth = np.full_like(array, 40)
    found = read_image(picture(tmp_path / "a.jpg", smooth, quality=95)).array
    assert found.shape == (len(expected), 1, 4, 5)
    assert np.abs(found - 40).max() <= 2


def test_what_a_photograph_may_not_be(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    assert "EXIF orientation 6" in refusal(picture(tmp_path / "turned.jpg", RGB, exif=turned))
    assert "CMYK" in refusal(picture(tmp_path / "ink.jpg", RGB, "CMYK"))
    frames = [Image.fromarray(BYTES + n) for n in range(2)]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    assert "2 frames" in refusal(tmp_path / "film.png")


# labels in colours


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_labels_as_equal_colours_are_one_map(tmp_path: Path, ending: str) -> None:
    array, path = np.dstack([BYTES] * 3), tmp_path / f"a{ending}"
    _ = tiff(path, array, photometric="rgb") if ending == ".tif" else picture(path, array)
    label = read_label(path)
    assert label.array.shape == (1, 1, 4, 5)
    np.testing.assert_array_equal(label.array[0, 0], BYTES)


def test_labels_with_alpha_must_be_opaque(tmp_path: Path) -> None:
    opaque = np.dstack([BYTES] * 3 + [np.full_like(BYTES, 255)])
    np.testing.assert_array_equal(read_label(picture(tmp_path / "a.png", opaque)).array[:, 0], BYTES[None])
    np.testing.assert_array_equal(read_label(picture(tmp_path / "b.png", opaque[..., 2:])).array[:, 0], BYTES[None])
    opaque[1, 2, 3] = 254
    assert "transparent" in refusal(picture(tmp_path / "c.png", opaque), read_label)


def test_labels_of_true_colours_stay_three_channels(tmp_path: Path) -> None:
    assert len(read_label(picture(tmp_path / "a.png", RGB)).array) == 3


# TIFF


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"metadata": None},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
def test_a_stack_of_pages(tmp_path: Path, how: dict[str, Any]) -> None:
    array = numbers(dtype=np.uint16)
    volume = read_image(tiff(tmp_path / "a.tif", array, [3, 2, 0.5], **how))
    np.testing.assert_array_equal(volume.array[0], array)
    assert volume.spacing_mm == (3, 2, 0.5)
    np.testing.assert_array_equal(volume.affine, np.diag([0.5, 2, 3, 1]))


def test_the_spacing_lies_beside_without_the_channel(tmp_path: Path) -> None:
    path = tiff(tmp_path / "case_0001.tif", numbers(), [3, 2, 0.5], "case.json")
    assert read_image(path).spacing_mm == (3, 2, 0.5)
    assert image.companions(path) == [tmp_path / "case.json"]
    (tmp_path / "case_0001.json").write_text('{"spacing": [4, 1, 1]}')  # of the label of the case `case_0001`
    assert read_label(path).spacing_mm == (4, 1, 1)


def test_no_spacing_is_one_millimetre(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", numbers())
    assert read_image(path).spacing_mm == (1, 1, 1)
    assert image.companions(path) == []
    assert read_image(tiff(tmp_path / "b.tif", numbers((4, 5)))).spacing_mm == (999, 1, 1)


@pytest.mark.parametrize("text", ["", "[1, 1, 1]", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": "1"}'])
def test_a_spacing_without_sense_is_refused(tmp_path: Path, text: str) -> None:
    path = tiff(tmp_path / "a.tif", numbers())
    (tmp_path / "a.json").write_text(text)
    assert refusal_of(path, tmp_path / "a.json")


def refusal_of(path: Path, named: Path) -> bool:
    with pytest.raises(SegpipeError) as error:
        read_image(path)
    return str(named) in str(error.value)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("n_pages", [1, 2])
def test_samples_are_channels(tmp_path: Path, planar: str, n_pages: int) -> None:
    array = numbers((n_pages, 4, 5, 3), np.uint8)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 1)
    path = tiff(tmp_path / "a.tif", stored.squeeze(), photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_image(path).array, np.moveaxis(array, -1, 0))


def test_what_a_tiff_may_not_be(tmp_path: Path) -> None:
    assert "(2, 3, 4, 5)" in refusal(tiff(tmp_path / "4d.tif", numbers((2, 3, 4, 5))))
    assert "complex64" in refusal(tiff(tmp_path / "c.tif", numbers(dtype=np.complex64)))
    turned = tiff(tmp_path / "t.tif", BYTES, extratags=[(274, "H", 1, 3, True)])
    assert "orientation tag 3" in refusal(turned)
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(BYTES)
        file.write(numbers((7, 7)))
    assert "2 images" in refusal(tmp_path / "two.tif")
    colours = np.zeros((3, 256), np.uint16)
    palette = tiff(tmp_path / "p.tif", BYTES, photometric="palette", colormap=colours)
    assert "PALETTE" in refusal(palette)
    np.testing.assert_array_equal(read_label(palette).array[0, 0], BYTES)


# which format a file is


NAMES = {"NIfTI": "a.nii", "MetaImage": "a.mha", "NRRD": "a.nrrd", "TIFF": "a.tif", "PNG": "a.png", "BMP": "a.bmp"}
MAKERS = {
    "NIfTI": lambda path: nifti(path, image_array(shape=(5, 4, 3))),
    "MetaImage": lambda path: itk(path, numbers()),
    "NRRD": lambda path: itk(path, numbers()),
    "TIFF": lambda path: tiff(path, BYTES),
    "PNG": lambda path: picture(path, BYTES),
    "BMP": lambda path: picture(path, BYTES),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("named", NAMES)
def test_content_and_name_must_agree(tmp_path: Path, kind: str, named: str) -> None:
    (tmp_path / "made").mkdir()
    made = MAKERS[kind](tmp_path / "made" / NAMES[kind])
    path = made.rename(tmp_path / NAMES[named])
    if kind == named:
        read_image(path)
    else:
        text = refusal(path)
        assert "not what its name says" in text
        assert f"found:    {kind}\n  expected: {named}" in text


def test_a_folder_or_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert "IsADirectoryError" in refusal(tmp_path / "a.png")
    (tmp_path / "a.gipl").write_bytes(b"x")
    assert "unsupported file ending" in refusal(tmp_path / "a.gipl")
    assert "missing file" in refusal(tmp_path / "b.tif")


# writing


@pytest.mark.parametrize("source", REFERENCES)
@pytest.mark.parametrize("orientation", ["as-stored", "RAS"])
@pytest.mark.parametrize("largest", [3, 300])
def test_a_segmentation_comes_back_on_the_grid_of_its_image(
    tmp_path: Path, source: str, orientation: str, largest: int
) -> None:
    if source == "bmp" and largest > 255:
        pytest.skip("has eight bits")
    reference = REFERENCES[source](tmp_path / "in" if source not in PICTURES else tmp_path)
    volume = read_image(reference, orientation)
    label = (np.random.default_rng(0).integers(0, 3, volume.shape)).astype(np.int16)
    label.flat[-1] = largest
    path = tmp_path / "out" / f"case{image.label_ending(''.join(reference.suffixes))}"
    write_label_like(path, label, reference, orientation)
    written, stored = read_label(path, orientation), read_image(reference)
    np.testing.assert_array_equal(written.array[0], label)
    assert written.spacing_mm == volume.spacing_mm
    np.testing.assert_array_equal(written.affine, volume.affine)
    np.testing.assert_array_equal(read_label(path).affine, stored.affine)
    assert written.is_2d == volume.is_2d == source.endswith(("2D", *PICTURES))


PICTURES = ("png", "bmp", "jpg", "PNG")


@pytest.mark.parametrize("source", ["mha", "mha 2D", "mhd", "nrrd", "nrrd 2D", "nhdr"])
def test_itk_sees_the_same_grid(tmp_path: Path, source: str) -> None:
    reference = REFERENCES[source](tmp_path)
    label = numbers(read_image(reference).shape)
    path = tmp_path / f"segmentation{reference.suffix}"
    write_label_like(path, label, reference)
    old, new = sitk.ReadImage(str(reference)), sitk.ReadImage(str(path))
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(old, geometry)() == getattr(new, geometry)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(new).ravel(), label.ravel())


@pytest.mark.parametrize("source", REFERENCES)
def test_equal_segmentations_are_equal_files(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = REFERENCES[source](tmp_path)
    ending = image.label_ending("".join(reference.suffixes))
    label = np.ones(read_image(reference).shape, np.int16)
    for name in ("one", "two"):
        monkeypatch.setattr("time.time", lambda name=name: {"one": 1e9, "two": 2e9}[name])
        write_label_like(tmp_path / f"{name}{ending}", label, reference)
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_the_spacing_of_a_tiff_goes_with_it(tmp_path: Path) -> None:
    reference = REFERENCES["tif"](tmp_path)
    write_label_like(tmp_path / "out/case_0007.tif", np.ones(SHAPE, np.int16), reference)
    assert json.loads((tmp_path / "out/case_0007.json").read_text()) == {"spacing": [3, 2, 0.5]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_0007.json", "case_0007.tif"]
    with tifffile.TiffFile(tmp_path / "out/case_0007.tif") as file:
        assert file.asarray().shape == SHAPE
        assert "DateTime" not in file.pages[0].tags
    (tmp_path / "copies").mkdir()
    image.copy(tmp_path / "out/case_0007.tif", tmp_path / "copies")
    assert sorted(path.name for path in (tmp_path / "copies").iterdir()) == ["case_0007.json", "case_0007.tif"]


def test_bmp_is_too_narrow_for_many_labels(tmp_path: Path) -> None:
    reference = REFERENCES["bmp"](tmp_path)
    with pytest.raises(SegpipeError, match="values up to 255"):
        write_label_like(tmp_path / "a.bmp", np.full((1, 4, 5), 256), reference)
    assert not (tmp_path / "a.bmp").exists()


def test_a_lossy_format_has_labels_in_another() -> None:
    assert [image.label_ending(ending) for ending in (".jpg", ".JPEG", ".dcm")] == [".png", ".png", ".nii.gz"]
    assert all(image.label_ending(ending) == ending for ending in (".nii.gz", ".mha", ".png", ".tif", ".BMP"))


# what belongs together


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("compressed", [True, False])
def test_the_data_of_a_header_belongs_to_it(tmp_path: Path, ending: str, compressed: bool) -> None:
    path = itk(tmp_path / f"a{ending}", numbers(), compressed)
    (companion,) = image.companions(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, companion])
    before = image.identity(path)
    companion.write_bytes(companion.read_bytes() + b"\0")
    assert image.identity(path) != before


@pytest.mark.parametrize("source", ["nii.gz", "mha", "nrrd", "png"])
def test_a_file_that_stands_alone(tmp_path: Path, source: str) -> None:
    path = REFERENCES[source](tmp_path)
    assert image.companions(path) == []
    assert image.identity(path) == image.digest.of_file(path)


def test_spacing_beside_a_tiff_counts_for_its_identity(tmp_path: Path) -> None:
    path = REFERENCES["tif"](tmp_path)
    before = image.identity(path)
    (tmp_path / "image.json").write_text('{"spacing": [1, 1, 1]}')
    assert image.identity(path) != before


# axes


def test_axis_codes(tmp_path: Path) -> None:
    turned = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]])
    assert image.axis_codes(read_image(nifti(tmp_path / "a.nii", image_array(), rotation=turned))) == "ASL"
    assert image.axis_codes(read_image(REFERENCES["png"](tmp_path))) == "RAS"


def test_axes_lead_to_right_front_and_up(tmp_path: Path) -> None:
    turned = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])  # x to the front, y down, z to the left
    array = numbers((5, 4, 3), np.float32)
    path = nifti(tmp_path / "a.nii", array, (0.5, 2, 3), turned)
    volume = read_image(path, "RAS")
    assert image.axis_codes(volume) == "RAS"
    assert volume.spacing_mm == (2, 0.5, 3)
    expected = array.transpose(2, 0, 1)[::-1, :, ::-1]  # (X, Y, Z)
    np.testing.assert_array_equal(volume.array[0], expected.T)
    stored = affine((0.5, 2, 3), turned)
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], stored @ [0, 3, 2, 1])  # the voxel that is first now
    np.testing.assert_allclose(sorted(volume.corners_mm().tolist()), sorted(read_image(path).corners_mm().tolist()))


def test_nibabel_turns_alike(tmp_path: Path) -> None:
    path = REFERENCES["nii"](tmp_path)
    volume, expected = read_image(path, "RAS"), nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.array[0].T, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, expected.affine)
    np.testing.assert_allclose(volume.spacing_mm[::-1], expected.header.get_zooms())
