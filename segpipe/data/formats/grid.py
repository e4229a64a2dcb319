"""What every format has in common: the grid a header gives, packed numbers, and how a bad file is reported."""

import bz2
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.errors import SegpipeError, problem

COPY_AGAIN = "copy the file again from its source, or remove the case"

# A 2D image gets one slice of this thickness, relative to its largest pixel edge, so that no 3D rule applies to it
# (nnunetv2/imageio/simpleitk_reader_writer.py).
SLICE_THICKNESS_2D = 999.0

# ITK's world axes point left, posterior, superior; ours right, anterior, superior.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    spacing_mm : (Z, Y, X)
    affine : (4, 4) voxel indices (x, y, z, 1) to world coordinates in mm: right, anterior, superior
    is_2d : the file has one slice by its nature
    header : the format's own, which a label on the same grid gets
    """

    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    is_2d: bool
    header: Any = None


@dataclass(frozen=True)
class Stored:
    """The content of a file.

    array : (C, Z, Y, X) in the file's number type
    colours : what the channels are, `L`, `LA`, `RGB` or `RGBA`; empty where the file does not say
    """

    array: NDArray[np.generic]
    grid: Grid
    colours: str = ""


def unreadable(path: Path, found: object, expected: str, cure: str = COPY_AGAIN) -> SegpipeError:
    """A file that is damaged or no file of its format."""
    if isinstance(found, Exception):
        found = f"{type(found).__name__}: {found}"
    return SegpipeError(problem("unreadable file", where=path, found=found, expected=expected, cure=cure))


def unsupported(path: Path, found: object, expected: str, cure: str = "convert the file") -> SegpipeError:
    """A sound file of a kind that is not read."""
    what = "this kind of file is not supported"
    return SegpipeError(problem(what, where=path, found=found, expected=expected, cure=cure))


def from_axes(
    directions: NDArray[np.float64], spacing_mm: NDArray[np.float64], origin: NDArray[np.float64], header: Any
) -> Grid:
    """The grid of n axes (x, y[, z]): unit vectors as columns in world coordinates, edges, and the first voxel.

    directions : (3, n) right, anterior, superior; origin : (3,)
    """
    n_axes = len(spacing_mm)
    affine = np.eye(4)
    if n_axes == 2:
        directions = np.column_stack([directions, np.cross(directions[:, 0], directions[:, 1])])
        spacing_mm = np.append(spacing_mm, spacing_mm.max() * SLICE_THICKNESS_2D)
    affine[:3, :3], affine[:3, 3] = directions * spacing_mm, origin
    x, y, z = (float(edge) for edge in spacing_mm)
    return Grid((z, y, x), affine, n_axes == 2, header)


def unpack(path: Path, raw: bytes, encoding: str, n_bytes: int) -> bytes:
    """Exactly `n_bytes`, unpacked as far as that, whatever the header asks for.

    encoding : `raw`, `zlib` (with gzip's header or its own, the checksum is compared) or `bzip2`
    Raises SegpipeError for damaged, missing or further bytes.
    """
    data, complete = raw, True
    if encoding != "raw":
        tool = zlib.decompressobj(wbits=47) if encoding == "zlib" else bz2.BZ2Decompressor()
        try:
            data = tool.decompress(raw, n_bytes + 1)
        except (zlib.error, OSError, EOFError, ValueError) as error:
            raise unreadable(path, error, f"whole {encoding} data") from None
        complete = tool.eof
    if len(data) != n_bytes or not complete:
        more = "" if complete or len(data) < n_bytes else " and no end"
        raise unreadable(path, f"{len(data)} bytes of voxels{more}", f"{n_bytes} bytes, as the header says")
    return data
