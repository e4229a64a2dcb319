"""MetaImage: .mha, and .mhd with its data in another file. Read here, because ITK fills up what is missing with zeros.

The header is that of https://itk.org/Wiki/ITK/MetaIO/Documentation; geometry as ITK's MetaImageIO understands it.
"""

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.data.formats.grid import LPS_TO_RAS, Grid, Stored, from_axes, unpack, unreadable, unsupported

MAX_HEADER_BYTES = 1 << 20
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
GEOMETRY = {
    "TransformMatrix": ("TransformMatrix", "Rotation", "Orientation"),
    "Offset": ("Offset", "Origin", "Position"),
    "ElementSpacing": ("ElementSpacing", "ElementSize"),
    "CenterOfRotation": ("CenterOfRotation",),
    "AnatomicalOrientation": ("AnatomicalOrientation",),
}
SCALING = {"Slope": 1.0, "Offset": 0.0}
Header = dict[str, str]


def read(path: Path, as_label: bool) -> Stored:
    """One scalar image of two or three axes.

    Raises SegpipeError for a header without sense, for more or fewer voxels than it says, and for several channels.
    """
    header, attached = _header(path)
    sizes, dtype = _sizes(path, header), _dtype(path, header)
    n_bytes = int(np.prod(sizes, dtype=object)) * dtype.itemsize
    raw = _raw(path, header, attached, n_bytes)
    if _flag(header, "BinaryData", "True"):
        data = unpack(path, raw, "zlib" if _flag(header, "CompressedData", "False") else "raw", n_bytes)
        array = np.frombuffer(data, dtype)
    else:
        array = from_text(path, raw, dtype, n_bytes // dtype.itemsize)
    return Stored(array.reshape((1, *(1,) * (3 - len(sizes)), *sizes[::-1])), _grid(path, header))


def grid(path: Path) -> Grid:
    """What the header says; the voxels are not read."""
    return _grid(path, _header(path)[0])


def companions(path: Path) -> list[Path]:
    """The data file of a header without data."""
    name = _header(path)[0]["ElementDataFile"] if path.suffix.lower() == ".mhd" else "LOCAL"
    return [] if name.upper() == "LOCAL" else [path.parent / name]


def beside(path: Path, like: Grid) -> dict[Path, str]:
    """No further files are written."""
    return {}


def encode(path: Path, label: NDArray[np.generic], like: Grid) -> bytes:
    """A (Z, Y, X) label map as one file; the geometry is copied word by word."""
    array = label[0] if like.is_2d else label
    data = zlib.compress(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes(), level=6)
    fields = {
        "ObjectType": "Image",
        "NDims": array.ndim,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(data),
        **like.header,
        "DimSize": " ".join(map(str, array.shape[::-1])),
        "ElementType": "MET_UCHAR" if array.dtype.itemsize == 1 else "MET_USHORT",
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items()).encode() + data


def from_text(path: Path, raw: bytes, dtype: np.dtype[np.generic], n_values: int) -> NDArray[np.generic]:
    """Numbers written out. Raises SegpipeError unless there are `n_values` of them that fit the type."""
    words = raw.split()
    if len(words) != n_values:
        raise unreadable(path, f"{len(words)} numbers", f"{n_values} numbers, as the header says")
    try:
        # through Python's numbers, which do not wrap around
        return np.array([int(word) if dtype.kind in "iu" else float(word) for word in words], dtype)
    except (ValueError, OverflowError) as error:
        raise unreadable(path, error, f"numbers of type {dtype}") from None


def _header(path: Path) -> tuple[Header, bytes]:
    """The fields, and what follows them in the file."""
    raw = path.read_bytes()
    header: Header = {}
    start = 0
    while "ElementDataFile" not in header:
        end = raw.find(b"\n", start, MAX_HEADER_BYTES)
        key, found, value = raw[start:end].decode("latin-1").partition("=")
        if end < 0 or not found:
            raise unreadable(path, f"no further field at byte {start}", "a MetaImage header up to ElementDataFile")
        header[key.strip()] = value.strip()
        start = end + 1
    return header, raw[start:]


def _sizes(path: Path, header: Header) -> list[int]:
    """(x, y[, z]) of one scalar image."""
    sizes = header.get("DimSize", "").split()
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes) or not sizes:
        raise unreadable(path, f"DimSize = {header.get('DimSize')}", "positive whole numbers")
    if header.get("NDims") != str(len(sizes)):
        raise unreadable(path, f"NDims = {header.get('NDims')}, DimSize = {header['DimSize']}", "as many sizes as axes")
    channels = header.get("ElementNumberOfChannels", "1")
    if len(sizes) not in (2, 3) or channels != "1":
        found = f"{len(sizes)} axes and {channels} channel(s)"
        raise unsupported(path, found, "2 or 3 axes and 1 channel", "store one file per channel")
    scaling = [_number(path, header, f"ElementToIntensityFunction{key}", value) for key, value in SCALING.items()]
    if scaling != [*SCALING.values()]:
        raise unsupported(path, f"ElementToIntensityFunction {scaling}", "values as they are stored")
    return [int(size) for size in sizes]


def _dtype(path: Path, header: Header) -> np.dtype[np.generic]:
    if header.get("ElementType") not in TYPES:
        raise unsupported(path, f"ElementType = {header.get('ElementType')}", ", ".join(TYPES))
    big = _flag(header, "BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
    return np.dtype(TYPES[header["ElementType"]]).newbyteorder(">" if big else "<")


def _flag(header: Header, key: str, default: str) -> bool:
    return header.get(key, default).lower() in ("true", "t", "1", "yes")


def _raw(path: Path, header: Header, attached: bytes, n_bytes: int) -> bytes:
    """The packed or plain voxels, from this file or another."""
    name = header["ElementDataFile"]
    if name.upper() == "LOCAL":
        raw = attached
    elif name.split()[0].upper() == "LIST" or "%" in name:
        raise unsupported(path, f"ElementDataFile = {name}", "one data file", "store the volume in one file")
    else:
        raw = detached(path, name)
    skipped = int(_number(path, header, "HeaderSize", 0))
    if skipped == -1:  # the voxels are the end of the file
        return raw[-n_bytes:]
    if skipped < 0:
        raise unreadable(path, f"HeaderSize = {skipped}", "-1 or more", "correct the header")
    return raw[skipped:]


def _number(path: Path, header: Header, key: str, default: float) -> float:
    try:
        return float(header.get(key, default))
    except ValueError as error:
        raise unreadable(path, f"{key}: {error}", "a number", "correct the header") from None


def detached(path: Path, name: str) -> bytes:
    """The data file that a header names, relative to the header's folder."""
    try:
        return (path.parent / name).read_bytes()
    except OSError as error:
        raise unreadable(path, error, f"its data file {name} beside it") from None


def _grid(path: Path, header: Header) -> Grid:
    n_axes = len(header["DimSize"].split())
    found = {name: next((header[key] for key in keys if key in header), None) for name, keys in GEOMETRY.items()}
    try:
        spacing = np.array((found["ElementSpacing"] or "1 " * n_axes).split(), float)
        origin = np.array((found["Offset"] or "0 " * n_axes).split(), float)
        matrix = np.array((found["TransformMatrix"] or " ".join(map(str, np.eye(n_axes).flat))).split(), float)
        columns, world = np.zeros((3, n_axes)), np.zeros(3)
        columns[:n_axes] = matrix.reshape(n_axes, n_axes).T  # one axis after the other in the file
        world[:n_axes] = origin
        kept = {name: value for name, value in found.items() if value is not None}
        return from_axes(LPS_TO_RAS @ columns, np.abs(spacing.reshape(n_axes)), LPS_TO_RAS @ world, kept)
    except ValueError as error:
        raise unreadable(path, error, f"spacing, offset and matrix of {n_axes} axes", "correct the header") from None
