"""PNG, BMP and JPEG: 2D images of one, two, three or four channels, without spacing."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.formats.grid import Grid, Stored, from_axes, unreadable, unsupported

PNG = b"\x89PNG\r\n\x1a\n"
GRAYS = ("1", "L", "I;16", "I")
ORIENTATION_TAG = 0x0112


def grid(path: Path) -> Grid:
    """Pixels of 1 mm and a thick slice (nnunetv2/imageio/natural_image_reader_writer.py). Never turned."""
    return from_axes(np.eye(3)[:, :2], np.ones(2), np.zeros(3), None)


def read(path: Path, as_label: bool) -> Stored:
    """All channels, alpha among them. A palette gives its colours; in a label, its indices.

    Raises SegpipeError for damaged files, several frames, other colours than gray and RGB, and a turned photograph.
    """
    raw = path.read_bytes()
    _require_whole(path, raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error from twice that size on
            with Image.open(io.BytesIO(raw), formats=["PNG", "BMP", "JPEG"]) as image:
                _require_plain(path, image)
                array, colours = _pixels(image, raw, as_label)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise unreadable(path, error, "a whole PNG, BMP or JPEG image") from None
    return Stored(np.moveaxis(np.atleast_3d(array), -1, 0)[:, None], grid(path), colours)


def companions(path: Path) -> list[Path]:
    """A file of this format stands alone."""
    return []


def beside(path: Path, like: Grid) -> dict[Path, str]:
    """No further files are written."""
    return {}


def encode(path: Path, label: NDArray[np.generic], like: Grid) -> bytes:
    """A (1, Y, X) label map as a gray image of 8 bits, or 16 in a PNG. Raises SegpipeError where BMP is too narrow."""
    if path.name.lower().endswith(".bmp") and label.dtype.itemsize > 1:
        raise unsupported(path, f"label value {label.max()}", "values up to 255", "use PNG")
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(label[0])).save(out, "BMP" if path.name.lower().endswith(".bmp") else "PNG")
    return out.getvalue()


def _pixels(image: Any, raw: bytes, as_label: bool) -> tuple[NDArray[np.generic], str]:
    """(Y, X[, C]) and what the channels are."""
    bits, kind = (raw[24], raw[25]) if raw.startswith(PNG) else (8, -1)
    if bits == 16 and kind > 0:  # Pillow would keep 8 bits of each colour
        image.load()
        array = imagecodecs.png_decode(raw)
        return array, {2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[-1]]
    if image.mode == "P" and as_label:
        return np.asarray(image), "L"
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    array = np.asarray(image)
    if kind == 0 and bits in (2, 4):  # Pillow spreads gray of few bits over 0..255
        array = array // (255 // (2**bits - 1))
    return array, "L" if image.mode in GRAYS else image.mode


def _require_plain(path: Path, image: Any) -> None:
    frames, turned = getattr(image, "n_frames", 1), image.getexif().get(ORIENTATION_TAG, 1)
    if frames != 1:
        raise unsupported(path, f"{frames} frames", "one image", "extract one frame")
    if turned != 1:
        cure = "store the pixels as they are looked at, without this entry"
        raise unsupported(path, f"EXIF orientation {turned}", "1: pixels as they are stored", cure)
    if image.mode not in (*GRAYS, "P", "LA", "RGB", "RGBA"):
        raise unsupported(path, f"colours {image.mode}", "gray, RGB or a palette", "convert to gray or RGB")


def _require_whole(path: Path, raw: bytes) -> None:
    """What Pillow lets pass: PNG checksums, and an end that is missing."""
    if raw.startswith(PNG):
        _require_chunks(path, raw)
    elif raw.startswith(b"\xff\xd8") and not raw.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise unreadable(path, "no end of the image", "a whole JPEG image")
    elif raw.startswith(b"BM") and not 26 <= int.from_bytes(raw[2:6], "little") <= len(raw):
        raise unreadable(path, f"{len(raw)} bytes", f"{int.from_bytes(raw[2:6], 'little')} bytes, as the header says")


def _require_chunks(path: Path, raw: bytes) -> None:
    start, name = len(PNG), b""
    while name != b"IEND":
        length, name = int.from_bytes(raw[start : start + 4]), raw[start + 4 : start + 8]
        end = start + 8 + length
        if end + 4 > len(raw):
            raise unreadable(path, f"the file ends in the part {name!r} at byte {start}", "a whole PNG image")
        if zlib.crc32(raw[start + 4 : end]) != int.from_bytes(raw[end : end + 4]):
            raise unreadable(path, f"a wrong checksum of the part {name!r} at byte {start}", "a whole PNG image")
        start = end + 4
