"""Damaged image files of every format are refused, with the file's name; none is read as far as it goes."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from image_files import REFERENCES, indexed, itk, numbers, picture, tiff

from segpipe.data.image import read_image, read_label
from segpipe.errors import SegpipeError

LARGE = (6, 40, 30)
PLANE = numbers((40, 30), np.uint8)


def make(kind: str, folder: Path) -> tuple[Path, Path]:
    """A file, and the one of its parts that will be damaged."""
    if kind in REFERENCES:
        path = REFERENCES[kind](folder)
        return path, path
    ending, _, how = kind.partition(" ")
    path = folder / f"a.{ending}"
    if ending in ("mha", "mhd", "nrrd", "nhdr"):
        itk(path, numbers(LARGE), compressed=how == "packed")
        return path, next((p for p in folder.iterdir() if p != path), path)
    if ending == "tif":
        options = {"packed": {"compression": "zlib"}, "pages": {"metadata": None}, "lzw": {"compression": "lzw"}}
        tiff(path, numbers(LARGE), **options.get(how, {}))
    elif how == "indexed":
        indexed(path, PLANE)
    else:
        picture(path, np.dstack([PLANE] * 3) if how == "colours" else PLANE)
    return path, path


KINDS = [
    "nii.gz",
    *(f"{ending} {how}" for ending in ("mha", "mhd", "nrrd", "nhdr") for how in ("packed", "raw")),
    *(f"tif {how}" for how in ("raw", "packed", "pages", "lzw")),
    *(f"{ending} {how}" for ending in ("png", "bmp") for how in ("gray", "colours", "indexed")),
    "jpg gray",
    "jpg colours",
]


def refused(path: Path) -> None:
    for read in (read_image, read_label):
        with pytest.raises(SegpipeError) as error:
            read(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_too_early_is_refused(tmp_path: Path, kind: str) -> None:
    path, part = make(kind, tmp_path)
    read_image(path)
    whole = part.read_bytes()
    # where a tag of a TIFF without its value changes no voxel, the file may be read right
    harmless = kind.startswith("tif")
    expected = read_image(path).array
    for kept in (0, 4, 30, len(whole) // 4, len(whole) // 2, len(whole) - 200, len(whole) - 20, len(whole) - 1):
        part.write_bytes(whole[: max(0, kept)])
        try:
            found = read_image(path).array
        except SegpipeError as error:
            assert str(path) in str(error)
        else:
            assert harmless and kept > len(whole) // 2, kept
            np.testing.assert_array_equal(found, expected)


def test_a_photograph_without_its_end_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg", np.full((64, 64), 7, np.uint8))
    read_image(path)
    path.write_bytes(path.read_bytes()[:-1])  # Pillow has all pixels of one colour before the end
    refused(path)


@pytest.mark.parametrize("kind", ["nii.gz", "mha packed", "nrrd packed", "nhdr packed", "mhd packed", "png gray"])
@pytest.mark.parametrize("where", [0.5, 0.8])
def test_a_flipped_byte_is_refused(tmp_path: Path, kind: str, where: float) -> None:
    path, part = make(kind, tmp_path)
    raw = bytearray(part.read_bytes())
    raw[int(len(raw) * where)] ^= 255
    part.write_bytes(bytes(raw))
    refused(path)


@pytest.mark.parametrize(("kind", "behind"), [("nii.gz", 8), ("nrrd packed", 8), ("mha packed", 4), ("png gray", 16)])
def test_a_wrong_checksum_is_refused(tmp_path: Path, kind: str, behind: int) -> None:
    path, part = make(kind, tmp_path)
    raw = bytearray(part.read_bytes())
    raw[-behind] ^= 1  # PNG's last part is 12 bytes, and before it stands the checksum of the voxels
    part.write_bytes(bytes(raw))
    refused(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.tif", "a.png", "a.bmp"])
@pytest.mark.parametrize("content", [b"", b"\0" * 700, b"not an image " * 60, gzip.compress(b"nothing", mtime=0)])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.mark.parametrize(
    "kind", ["mha raw", "nrrd packed", "tif raw", "tif packed", "png gray", "bmp gray", "jpg gray"]
)
def test_noise_never_ends_the_process(tmp_path: Path, kind: str) -> None:
    """Either an error that names the file, or an image of a shape that the header gives."""
    path, part = make(kind, tmp_path)
    whole, random = part.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        raw = bytearray(whole)
        for place in random.integers(0, min(400, len(raw)), 3):
            raw[place] = random.integers(256)
        part.write_bytes(bytes(raw))
        try:
            assert read_image(path).array.nbytes < 1e8
        except SegpipeError as error:
            assert str(path) in str(error)
