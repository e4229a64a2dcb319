"""NRRD: .nrrd, and .nhdr with its data in another file. Read here, because ITK fills up what is missing with zeros.

The header is that of https://teem.sourceforge.net/nrrd/format.html; geometry as ITK's NrrdImageIO understands it.
"""

import gzip
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe.data.formats.grid import LPS_TO_RAS, Grid, Stored, from_axes, unpack, unreadable, unsupported
from segpipe.data.formats.metaimage import MAX_HEADER_BYTES, detached, from_text

TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS = {"raw": "raw", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
TEXT = ("ascii", "text", "txt")
# world axes to right, anterior, superior; without a `space` as ITK, which takes its own
SPACES = {
    "": LPS_TO_RAS,
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "right-anterior-superior": np.eye(3),
    "ras": np.eye(3),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0]),
}
SPATIAL_KINDS = {"domain", "space", "???", "none"}
# in the order in which they are written
GEOMETRY = ("space", "space dimension", "space directions", "kinds", "space units", "spacings", "units", "space origin")
Header = dict[str, str]


def read(path: Path, as_label: bool) -> Stored:
    """One scalar image of two or three axes.

    Raises SegpipeError for a header without sense, for more or fewer voxels than it says, and for further axes.
    """
    header, attached = _header(path)
    grid, sizes, dtype = _grid(path, header), _sizes(path, header), _dtype(path, header)
    n_values = int(np.prod(sizes, dtype=object))
    raw = _raw(path, header, attached)
    encoding = header.get("encoding", "").lower()
    if encoding in TEXT:
        array = from_text(path, raw, dtype, n_values)
    elif encoding in ENCODINGS:
        array = np.frombuffer(_voxels(path, header, raw, n_values * dtype.itemsize), dtype)
    else:
        raise unsupported(path, f"encoding: {encoding}", ", ".join([*ENCODINGS, *TEXT]))
    return Stored(array.reshape((1, *(1,) * (3 - len(sizes)), *sizes[::-1])), grid)


def grid(path: Path) -> Grid:
    """What the header says; the voxels are not read."""
    return _grid(path, _header(path)[0])


def companions(path: Path) -> list[Path]:
    """The data file of a header without data."""
    name = _header(path)[0].get("datafile") if path.suffix.lower() == ".nhdr" else None
    return [path.parent / name] if name else []


def beside(path: Path, like: Grid) -> dict[Path, str]:
    """No further files are written."""
    return {}


def encode(path: Path, label: NDArray[np.generic], like: Grid) -> bytes:
    """A (Z, Y, X) label map as one file; the geometry is copied word by word."""
    array = label[0] if like.is_2d else label
    fields = {
        "type": "uint8" if array.dtype.itemsize == 1 else "uint16",
        "dimension": array.ndim,
        **like.header,
        "sizes": " ".join(map(str, array.shape[::-1])),
        "endian": "little",
        "encoding": "gzip",
    }
    # `space` stands before what depends on it
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return f"NRRD0004\n{text}\n".encode() + gzip.compress(data, compresslevel=6, mtime=0)


def _header(path: Path) -> tuple[Header, bytes]:
    """The fields, with keys as GEOMETRY and without blanks elsewhere, and what follows them in the file."""
    raw = path.read_bytes()
    end = re.search(rb"\r?\n\r?\n", raw[:MAX_HEADER_BYTES])
    lines = raw[: end.start() if end else MAX_HEADER_BYTES].decode("latin-1").splitlines()
    if not lines or not re.fullmatch(r"NRRD000\d", lines[0]):
        raise unreadable(path, lines[:1] or "an empty file", "NRRD0001 to NRRD0005 as the first line")
    header: Header = {}
    for line in lines[1:]:
        key, found, value = line.partition(": ")
        if line.startswith("#") or (":=" in line and (not found or line.index(":=") < len(key))):
            continue
        if not found:
            raise unreadable(path, line[:80], "`field: value`", "correct the header")
        key = key.strip().lower()
        header[key if key in GEOMETRY else key.replace(" ", "")] = value.strip()
    if not end and "datafile" not in header:
        raise unreadable(path, "no end of the header", "an empty line, and voxels after it")
    return header, raw[end.end() :] if end else b""


def _sizes(path: Path, header: Header) -> list[int]:
    """(x, y[, z]) of one scalar image."""
    text = header.get("sizes", "")
    sizes = text.split()
    if not sizes or not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise unreadable(path, f"sizes: {text}", "positive whole numbers")
    if header.get("dimension") != str(len(sizes)):
        raise unreadable(path, f"dimension: {header.get('dimension')}, sizes: {text}", "as many sizes as axes")
    kinds = header.get("kinds", "domain " * len(sizes)).split()
    if len(sizes) not in (2, 3) or not {kind.lower() for kind in kinds} <= SPATIAL_KINDS:
        found = f"{len(sizes)} axes of the kinds {', '.join(kinds)}"
        raise unsupported(path, found, "2 or 3 axes in space", "store one file per channel")
    return [int(size) for size in sizes]


def _dtype(path: Path, header: Header) -> np.dtype[np.generic]:
    name = header.get("type", "").lower()
    code = next((code for code, names in TYPES.items() if name in names), None)
    if code is None:
        raise unsupported(path, f"type: {name}", ", ".join(names[0] for names in TYPES.values()))
    endian = header.get("endian", "little").lower()
    if endian not in ("little", "big"):
        raise unreadable(path, f"endian: {endian}", "little or big", "correct the header")
    return np.dtype(code).newbyteorder("<" if endian == "little" else ">")


def _raw(path: Path, header: Header, attached: bytes) -> bytes:
    """What is encoded, after the lines to skip."""
    name = header.get("datafile")
    if name and (name.upper().startswith("LIST") or "%" in name):
        raise unsupported(path, f"data file: {name}", "one data file", "store the volume in one file")
    raw = detached(path, name) if name else attached
    for _ in range(_skip(path, header, "lineskip", lowest=0)):
        raw = raw.partition(b"\n")[2]
    return raw


def _voxels(path: Path, header: Header, raw: bytes, n_bytes: int) -> bytes:
    """The decoded voxels, after the bytes to skip."""
    encoding = ENCODINGS[header["encoding"].lower()]
    skipped = _skip(path, header, "byteskip", lowest=-1 if encoding == "raw" else 0)
    if skipped == -1:  # the voxels are the end of the file
        return unpack(path, raw[-n_bytes:], encoding, n_bytes)
    return unpack(path, raw, encoding, n_bytes + skipped)[skipped:]


def _skip(path: Path, header: Header, key: str, lowest: int) -> int:
    text = header.get(key, "0")
    if not re.fullmatch(r"-?\d+", text) or not lowest <= int(text) <= MAX_HEADER_BYTES:
        expected = f"{lowest} to {MAX_HEADER_BYTES}"
        raise unreadable(path, f"{key.replace('skip', ' skip')}: {text}", expected, "correct the header")
    return int(text)


def _grid(path: Path, header: Header) -> Grid:
    n_axes = len(_sizes(path, header))
    space = header.get("space", "").lower()
    if space not in SPACES:
        raise unsupported(path, f"space: {space}", ", ".join(filter(None, SPACES)), "correct the header")
    try:
        columns, edges, origin = _axes(header, n_axes)
    except ValueError as error:
        expected = f"directions and spacings of {n_axes} axes"
        raise unreadable(path, error, expected, "correct the header") from None
    kept = {key: header[key] for key in GEOMETRY if key in header}
    return from_axes(SPACES[space] @ columns, edges, SPACES[space] @ origin, kept)


def _axes(header: Header, n_axes: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors (3, n) in the file's own space, edges in mm, and the first voxel."""
    columns, origin = np.eye(3)[:, :n_axes], np.zeros(3)
    edges = np.abs(np.array(header.get("spacings", "1 " * n_axes).split(), float).reshape(n_axes))
    if "space directions" in header:
        vectors = np.array([_vector(text) for text in re.findall(r"\([^)]*\)|none", header["space directions"])])
        vectors = vectors.reshape(n_axes, -1)
        edges = np.linalg.norm(vectors, axis=1)
        if vectors.shape[1] > 3 or not (edges > 0).all():
            raise ValueError(f"space directions: {header['space directions']}")
        columns = np.zeros((3, n_axes))
        columns[: vectors.shape[1]] = (vectors / edges[:, None]).T
    if "space origin" in header:
        first = _vector(header["space origin"])
        origin[: len(first)] = first
    return columns, edges, origin


def _vector(text: str) -> list[float]:
    return [float(number) for number in text.strip("()").split(",")]
