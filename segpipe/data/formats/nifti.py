"""NIfTI-1 and NIfTI-2 in one file, packed or not."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from segpipe.data.formats.grid import SLICE_THICKNESS_2D, Grid, Stored, unreadable
from segpipe.errors import SegpipeError, problem

# As ITK: metres and micrometres of the header become mm; nibabel hands on the numbers as they are.
SPATIAL_UNIT = 0b111  # the part of xyzt_units that is not of time
UNITS_MM = {1: 1e3, 3: 1e-3}


def read(path: Path, as_label: bool) -> Stored:
    """Values with the header's scaling; (X, Y[, Z[, C]]) turned around to (C, Z, Y, X).

    Raises SegpipeError where the file cannot be read whole or holds no real numbers in two to four dimensions.
    """
    nifti, voxels = _decode(path)
    if nifti.get_data_dtype().kind not in "iuf":
        raise SegpipeError(
            problem(
                "not an image of real numbers",
                where=path,
                found=nifti.get_data_dtype(),
                expected="integers or floats",
                cure="convert the file",
            )
        )
    return Stored(_channels_first(path, voxels), _grid(nifti))


def grid(path: Path) -> Grid:
    """What the header says; the voxels are not read."""
    nifti = nibabel.load(path)
    assert isinstance(nifti, Nifti1Image)  # every training and test image was read before
    return _grid(nifti)


def companions(path: Path) -> list[Path]:
    """A file of this format stands alone."""
    return []


def beside(path: Path, like: Grid) -> dict[Path, str]:
    """No further files are written."""
    return {}


def encode(path: Path, label: NDArray[np.generic], like: Grid) -> bytes:
    """A (Z, Y, X) label map; with the codes and units of the other file where that is NIfTI as well."""
    array = label[0].T if like.is_2d else label.T
    if isinstance(like.header, Nifti1Image):
        header = like.header.header.copy()
        header.set_data_dtype(array.dtype)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        nifti = type(like.header)(np.ascontiguousarray(array), like.header.affine, header)
    else:
        nifti = Nifti1Image(np.ascontiguousarray(array), like.affine)
        nifti.header.set_xyzt_units("mm")
    data: bytes = nifti.to_bytes()
    # no time stamp in the gzip header: equal volumes are equal files
    return gzip.compress(data, compresslevel=6, mtime=0) if path.name.lower().endswith(".gz") else data


def write_values(path: Path, values: NDArray[np.floating], like: Grid) -> None:
    """(C, Z, Y, X) numbers as float32 .nii.gz on the grid of another file, 4D where there are several channels.

    Goes through the array piece by piece, so that a memory-mapped one stays where it is.
    """
    array = values.T if len(values) > 1 else values[0].T
    nifti = Nifti1Image(array, like.affine, dtype=np.float32)
    nifti.header.set_xyzt_units("mm")
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:  # no time stamp: as in `encode`
        nifti.to_stream(file)


def _decode(path: Path) -> tuple[Nifti1Image, NDArray[np.generic]]:
    """Read the whole file, so that a bad checksum or a missing end is an error here and not wrong voxels later."""
    try:
        raw = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            raw = gzip.decompress(raw)
        kind = Nifti2Image if raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else Nifti1Image
        nifti = kind.from_bytes(raw)
        stored: Any = nifti.dataobj
        needed = stored.offset + math.prod(map(int, stored.shape)) * stored.dtype.itemsize
        if needed > len(raw):  # asked before so much memory is taken
            raise EOFError(f"{len(raw)} of {needed} bytes")
        voxels = np.asanyarray(stored)
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        raise unreadable(path, error, "a whole NIfTI file") from None
    return nifti, voxels


def _channels_first(path: Path, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """(X, Y[, Z[, C]]) to (C, Z, Y, X); further axes must have length one."""
    if array.ndim > 4 and np.prod(array.shape[4:]) == 1:
        array = array.reshape(array.shape[:4])
    if not 2 <= array.ndim <= 4 or array.size == 0:
        raise SegpipeError(
            problem(
                "not a 2D, 3D or 4D image",
                where=path,
                found=f"shape {array.shape}",
                expected="(X, Y), (X, Y, Z) or (X, Y, Z, channels)",
                cure="extract one volume",
            )
        )
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    return array.T


def _grid(nifti: Nifti1Image) -> Grid:
    mm = UNITS_MM.get(int(nifti.header["xyzt_units"]) & SPATIAL_UNIT, 1.0)
    zooms = [mm * abs(float(zoom)) for zoom in nifti.header.get_zooms()[:3]]
    is_2d = len(zooms) == 2
    if is_2d:
        zooms.append(max(zooms) * SLICE_THICKNESS_2D)
    x, y, z = zooms
    affine = np.array(nifti.affine, float)
    affine[:3] *= mm
    return Grid((z, y, x), affine, is_2d, nifti)
