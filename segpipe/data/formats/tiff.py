"""TIFF: a 2D image of one to four channels, or a stack of pages whose spacing lies in a JSON file beside it."""

import io
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from segpipe.data.formats.grid import Grid, Stored, from_axes, unreadable, unsupported
from segpipe.errors import SegpipeError, problem

STACK = "ZQIT"  # how tifffile calls the axis of the pages, as far as the file says what it is
SAMPLES, CHANNELS = "S", "C"  # colours of a pixel; or images of their own, as ImageJ has them
COLOURS = SAMPLES + CHANNELS
LARGEST_RATIO = 1 << 17  # of pixels to the bytes of a file; zstd packs a page of zeros as tightly as this
NAMES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
PALETTE = 3
PHOTOMETRIC = {0: "gray", 1: "gray", 2: "RGB", PALETTE: "palette", 6: "YCbCr"}  # the last is decoded to RGB
ORIENTATION_TAG = 274


def read(path: Path, as_label: bool) -> Stored:
    """Pages are slices, samples are channels: (Y, X[, S]) or (Z, Y, X[, S]), planar or not.

    Only a label may have a palette: its values are the indices.

    Raises SegpipeError for damaged files, further axes, and a stack of which no number is real.
    """
    raw = path.read_bytes()
    try:
        with _Complaints() as complaints, tifffile.TiffFile(io.BytesIO(raw)) as file:
            series = _series(path, file, len(raw), as_label)
            complaints.require_none(path)
            array, axes = series.asarray(), series.axes
    except SegpipeError:
        raise
    except Exception as error:  # damaged files raise anything in tifffile, a division by zero for one
        raise unreadable(path, error, "a whole TIFF file") from None
    complaints.require_none(path)
    colours = next((axis for axis in axes if axis in COLOURS), "")
    stacks = [axis for axis in axes if axis in STACK]
    missing = ("" if colours else "c") + ("" if stacks else "z")
    array, axes = np.expand_dims(array, tuple(range(len(missing)))), missing + axes
    order = [axes.index(axis) for axis in (colours or "c", stacks[0] if stacks else "z", "Y", "X")]
    array = array.transpose(order)
    return Stored(array, grid(path, bool(stacks)), "" if colours == CHANNELS else NAMES[len(array)])


def grid(path: Path, is_stack: bool | None = None) -> Grid:
    """The spacing beside the file, or 1 mm; a 2D image is one thick slice. The axes are never turned.

    is_stack : None looks into the file
    """
    if is_stack is None:
        is_stack = not read(path, as_label=False).grid.is_2d
    spacing = _spacing(path)
    if is_stack:
        return from_axes(np.eye(3), np.array(spacing[::-1] if spacing else (1, 1, 1), float), np.zeros(3), spacing)
    return from_axes(np.eye(3)[:, :2], np.array(spacing[:0:-1] if spacing else (1, 1), float), np.zeros(3), spacing)


def sidecar(path: Path) -> Path:
    """Where the spacing of a file is written: CASE.json for CASE.tif (nnunetv2/imageio/tif_reader_writer.py)."""
    return path.with_suffix(".json")


def companions(path: Path) -> list[Path]:
    """CASE.json beside CASE.tif or CASE_0000.tif, where it is."""
    names = (sidecar(path), path.with_name(re.sub(r"_\d{4}$", "", path.stem) + ".json"))
    return [next(name for name in names if name.is_file())] if any(name.is_file() for name in names) else []


def beside(path: Path, like: Grid) -> dict[Path, str]:
    """The spacing, where the image has one."""
    return {sidecar(path): json.dumps({"spacing": like.header}) + "\n"} if like.header else {}


def encode(path: Path, label: NDArray[np.generic], like: Grid) -> bytes:
    """A (Z, Y, X) label map, packed."""
    out = io.BytesIO()
    array = label[0] if like.is_2d else label
    # no metadata: they would hold tifffile's version
    tifffile.imwrite(out, array, compression="zlib", photometric="minisblack", metadata=None, software=False)
    return out.getvalue()


def _spacing(path: Path) -> list[float] | None:
    """(Z, Y, X) in mm."""
    found = companions(path)
    if not found:
        return None
    expected = '{"spacing": [z, y, x]}, three positive numbers in mm'
    try:
        spacing = np.array(json.loads(found[0].read_text())["spacing"], float)
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(found[0], error, expected, "correct it") from None
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise unreadable(found[0], f"spacing {spacing.tolist()}", expected, "correct it")
    return [float(edge) for edge in spacing]


def _series(path: Path, file: Any, n_bytes: int, as_label: bool) -> Any:
    """The one image of a file, all of whose parts are there."""
    if len(file.series) != 1:
        raise unsupported(path, f"{len(file.series)} images of different kinds", "one image or stack", "store it alone")
    series = file.series[0]
    known = re.fullmatch(f"[{STACK}]?YX[{COLOURS}]?|[{STACK}]?[{COLOURS}]?YX|[{COLOURS}][{STACK}]YX", series.axes)
    channels = [size for axis, size in zip(series.axes, series.shape, strict=True) if axis in COLOURS]
    if not known or any(size not in NAMES for size in channels):
        found = f"shape {series.shape}, axes {series.axes}"
        raise unsupported(path, found, "(Y, X) or (Z, Y, X) with at most four channels", "extract one volume")
    if series.dtype is None or series.dtype.kind not in "iufb":
        what = "not an image of real numbers"
        found, expected, cure = series.dtype, "integers or floats", "convert the file"
        raise SegpipeError(problem(what, where=path, found=found, expected=expected, cure=cure))
    if series.nbytes > LARGEST_RATIO * n_bytes:
        raise unreadable(path, f"{n_bytes} bytes", f"{series.nbytes} bytes of pixels, as the header says")
    for page in file.pages:
        if page.photometric not in PHOTOMETRIC or (page.photometric == PALETTE and not as_label):
            raise unsupported(path, f"colours {page.photometric!r}", "gray or RGB", "convert to gray or RGB")
        _require_whole(path, page, n_bytes)
    return series


def _require_whole(path: Path, page: Any, n_bytes: int) -> None:
    """tifffile fills up missing parts of a page with zeros."""
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if not ends or 0 in page.databytecounts or max(ends) > n_bytes:
        raise unreadable(path, f"{n_bytes} bytes", f"{max(ends, default=0)} bytes, and every part of every page")
    if page.compression == 1 and sum(page.databytecounts) < page.nbytes:
        raise unreadable(path, f"{sum(page.databytecounts)} bytes of pixels", f"{page.nbytes} bytes of pixels")
    turned = page.tags.get(ORIENTATION_TAG)
    if turned is not None and turned.value != 1:
        cure = "store the pixels as they are looked at, without this tag"
        raise unsupported(path, f"the orientation tag {turned.value}", "1: pixels as they are stored", cure)


class _Complaints(logging.Handler):
    """What tifffile logs in this thread instead of raising: a chain of pages that breaks off, a part without data."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.of = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.of:
            self.texts.append(record.getMessage())

    def require_none(self, path: Path) -> None:
        if self.texts:
            raise unreadable(path, self.texts[0], "a whole TIFF file")

    def __enter__(self) -> "_Complaints":
        logging.getLogger("tifffile").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("tifffile").removeHandler(self)
