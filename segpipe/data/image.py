"""Read and write one volume. The only place that knows file formats and axis orders.

Arrays are (C, Z, Y, X) and spacings (Z, Y, X) in mm everywhere else: NIfTI's (X, Y, Z[, C]) is turned around here.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from segpipe import digest
from segpipe.errors import SegpipeError, problem

FILE_ENDINGS = (".nii.gz", ".nii")

# A 2D image gets one slice of this thickness, relative to its largest pixel edge, so that no 3D rule applies to it
# (nnunetv2/imageio/simpleitk_reader_writer.py).
SLICE_THICKNESS_2D = 999.0


@dataclass(frozen=True)
class Volume:
    """One image file.

    array : (C, Z, Y, X), float32 for images, int16 for labels
    spacing_mm : (Z, Y, X)
    affine : (4, 4) voxel indices (x, y, z, 1) to world coordinates in mm
    """

    array: NDArray[np.generic]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return self.array.shape[1:]

    def corners_mm(self) -> NDArray[np.float64]:
        """World coordinates of the centres of the eight corner voxels, (8, 3)."""
        last = np.array(self.shape[::-1]) - 1
        corners = np.array(np.meshgrid(*[[0, n] for n in last], indexing="ij")).reshape(3, -1)
        return (self.affine[:3, :3] @ corners + self.affine[:3, 3:]).T


def read_image(path: Path, orientation: str = "as-stored") -> Volume:
    """Read an image as float32.

    Raises SegpipeError where the file cannot be read whole, is no image of real numbers, or holds NaN or infinity.
    """
    nifti = _load(path)
    array = _channels_first(path, np.asanyarray(nifti.dataobj)).astype(np.float32, copy=False)
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise SegpipeError(
            problem(
                "not a number",
                where=path,
                found=f"{bad} voxels that are NaN or infinite",
                expected="finite intensities",
                cure="repair the image, or remove the case",
            )
        )
    return _volume(nifti, array)


def read_label(path: Path, orientation: str = "as-stored") -> Volume:
    """Read a label map as int16; it may be stored as any number type.

    Raises SegpipeError where the file cannot be read whole or a voxel is no whole number.
    """
    nifti = _load(path)
    array = _channels_first(path, np.asanyarray(nifti.dataobj))
    odd = array[~np.isfinite(array) | (np.rint(array) != array)] if array.dtype.kind == "f" else array[:0]
    if odd.size:
        raise SegpipeError(
            problem(
                "label values are not whole numbers",
                where=path,
                found=f"{odd.flat[0]} and others",
                expected="whole numbers",
                cure="store the label map without interpolation or scaling",
            )
        )
    if not -(2**15) <= int(array.min()) <= int(array.max()) < 2**15:
        raise SegpipeError(
            problem(
                "label value out of range",
                where=path,
                found=f"{array.min()} to {array.max()}",
                expected="the values of dataset.json",
                cure="correct the label map",
            )
        )
    return _volume(nifti, array.astype(np.int16))


def write_label_like(path: Path, label: NDArray[np.integer], reference: Path, orientation: str = "as-stored") -> None:
    """Write a (Z, Y, X) label map on the grid and with the geometry of the image file `reference`."""
    source = _header_of(reference)
    array = np.ascontiguousarray(label.T.astype(np.uint8 if label.max(initial=0) < 256 else np.uint16))
    header = source.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    shape = source.shape[: min(3, len(source.shape))]
    nifti = type(source)(array.reshape(shape), source.affine, header)
    with digest.new_file(path) as temporary:
        temporary.write_bytes(_encode(nifti, path))


def _encode(nifti: Nifti1Image, path: Path) -> bytes:
    data: bytes = nifti.to_bytes()
    # no time stamp in the gzip header: equal volumes are equal files
    return gzip.compress(data, compresslevel=6, mtime=0) if path.name.endswith(".gz") else data


def _header_of(path: Path) -> Nifti1Image:
    image = nibabel.load(path)
    assert isinstance(image, Nifti1Image)  # every training and test image was read by `_load` before
    return image


def _load(path: Path) -> Nifti1Image:
    """A file of real numbers with a geometry."""
    nifti = _decode(path)
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
    if not np.isfinite([*nifti.header.get_zooms()[:3], *nifti.affine.flat]).all():
        raise SegpipeError(
            problem(
                "the header gives no geometry",
                where=path,
                found="NaN or infinity in spacing or affine",
                expected="finite numbers",
                cure="correct the header",
            )
        )
    return nifti


def _decode(path: Path) -> Nifti1Image:
    """Read the whole file, so that a bad checksum or a missing end is an error here and not wrong voxels later."""
    cure = "copy the file again from its source, or remove the case"
    try:
        raw = path.read_bytes()
        if path.name.endswith(".gz"):
            raw = gzip.decompress(raw)
        kind = Nifti2Image if raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else Nifti1Image
        nifti = kind.from_bytes(raw)
        np.asanyarray(nifti.dataobj[..., -1:] if nifti.shape else nifti.dataobj)
    except FileNotFoundError:
        raise SegpipeError(
            problem("missing file", where=path, found="no such file", expected="a NIfTI file", cure=cure)
        ) from None
    except (OSError, EOFError, zlib.error, ValueError, ImageFileError, HeaderDataError, WrapStructError) as error:
        raise SegpipeError(
            problem(
                "unreadable file",
                where=path,
                found=f"{type(error).__name__}: {error}",
                expected="a whole NIfTI file",
                cure=cure,
            )
        ) from None
    return nifti


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
    return np.ascontiguousarray(array.T)


def _volume(nifti: Nifti1Image, array: NDArray[np.generic]) -> Volume:
    zooms = [abs(float(zoom)) for zoom in nifti.header.get_zooms()[:3]]
    if len(zooms) == 2:
        zooms.append(max(zooms) * SLICE_THICKNESS_2D)
    x, y, z = zooms
    return Volume(array, (z, y, x), nifti.affine)
