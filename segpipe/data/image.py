"""Read and write one volume. The only place that knows file formats and axis orders.

Arrays are (C, Z, Y, X) and spacings (Z, Y, X) in mm everywhere else. docs/formats.md says what each format may hold.
"""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.formats.choice import FORMATS, module_of, require_content
from segpipe.data.formats.grid import Grid, Stored
from segpipe.errors import SegpipeError, problem

FILE_ENDINGS = tuple(FORMATS)
# Ends of the names of what lies beside segmentations and is none: probabilities as an image, and how sure they are.
BESIDE_SEGMENTATIONS = ("_probabilities", "_uncertainty")
# What segmentations of images in a lossy format, or without one for labels, are stored in.
LABEL_ENDINGS = {".jpg": ".png", ".jpeg": ".png", ".dcm": ".nii.gz"}
# Formats for colours: in nnU-Net's layout, a case may have fewer files than channels.
SEVERAL_CHANNELS = ("TIFF", "PNG", "BMP", "JPEG")
FLATTEST = 1e-3  # volume that three axes of length one must span
CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))
RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])  # as nibabel notes where axes lead


@dataclass(frozen=True)
class Volume:
    """One image file.

    array : (C, Z, Y, X), float32 for images, int16 for labels
    spacing_mm : (Z, Y, X)
    affine : (4, 4) voxel indices (x, y, z, 1) to world coordinates in mm: right, anterior, superior
    is_2d : one slice by its nature, of a thickness that means nothing
    """

    array: NDArray[np.generic]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    is_2d: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""
        return self.array.shape[1:]

    def corners_mm(self) -> NDArray[np.float64]:
        """World coordinates of the centres of the eight corner voxels, (8, 3)."""
        corners = CORNERS * (np.array(self.shape[::-1]) - 1)
        return corners @ self.affine[:3, :3].T + self.affine[:3, 3]


def read_image(path: Path, orientation: str = "as-stored") -> Volume:
    """Read an image as float32.

    orientation : see `turned`
    Raises SegpipeError where the file cannot be read whole, is no image of real numbers, or holds NaN or infinity.
    """
    stored = _read(path, as_label=False)
    array = stored.array.astype(np.float32, copy=False)
    bad = 0 if stored.array.dtype.kind in "iub" else int(np.size(array) - np.count_nonzero(np.isfinite(array)))
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
    return turned(_volume(array, stored.grid), orientation)


def read_label(path: Path, orientation: str = "as-stored") -> Volume:
    """Read a label map as int16, in the values of the file; it may be stored as any number type, or as RGB gray.

    Raises SegpipeError where the file cannot be read whole, a voxel is no whole number, or a pixel is transparent.
    """
    stored = _read(path, as_label=True)
    array = _without_colours(path, stored)
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
                expected="values of dataset.json, -32768 to 32767",
                cure="correct the label map",
            )
        )
    return turned(_volume(array.astype(np.int16), stored.grid), orientation)


def turned(volume: Volume, orientation: str) -> Volume:
    """The volume as it is asked for; a 2D one stays as it is.

    orientation : `as-stored`, or `RAS`: the axes are swapped and flipped so that x, y, z lead as nearly as possible
        to the right, to the front and up
    """
    if orientation != "RAS" or volume.is_2d:
        return volume
    from nibabel import orientations  # noqa: PLC0415  # 0.2 s that steps without images do without

    found = orientations.io_orientation(volume.affine)
    spacing = np.array(volume.spacing_mm)
    spacing[2 - found[:, 0].astype(int)] = volume.spacing_mm[::-1]
    z, y, x = (float(edge) for edge in spacing)
    array = np.ascontiguousarray(orientations.apply_orientation(volume.array.T, found).T)
    return Volume(array, (z, y, x), volume.affine @ orientations.inv_ornt_aff(found, volume.shape[::-1]))


def write_label_like(path: Path, label: NDArray[np.integer], reference: Path, orientation: str = "as-stored") -> None:
    """Write a (Z, Y, X) label map on the grid and with the geometry of the image file `reference`.

    path : with the label ending of the reference
    orientation : that of `label`; the file lies as the reference does
    """
    grid: Grid = module_of(reference).grid(reference)
    label = _as_stored(label[None], grid, orientation)[0]
    label = np.ascontiguousarray(label, np.uint8 if label.max(initial=0) < 256 else np.uint16)
    module = module_of(path)
    # what belongs to the file comes first: whoever finds the file finds all
    for companion, text in module.beside(path, grid).items():
        digest.write_text(companion, text)
    with digest.new_file(path) as temporary:
        temporary.write_bytes(module.encode(path, label, grid))


def write_values_like(
    path: Path, values: NDArray[np.floating], reference: Path, orientation: str = "as-stored"
) -> None:
    """Write (C, Z, Y, X) numbers as NIfTI, float32, with the geometry of the image file `reference` of any format.

    path : ends in .nii.gz; orientation : as in `write_label_like`
    """
    from segpipe.data.formats import nifti  # noqa: PLC0415  # as in `turned`

    grid: Grid = module_of(reference).grid(reference)
    with digest.new_file(path) as temporary:
        nifti.write_values(temporary, _as_stored(values, grid, orientation), grid)


def _as_stored(array: NDArray[Any], grid: Grid, orientation: str) -> NDArray[Any]:
    """(C, Z, Y, X) with its axes as a file has them: a view."""
    if orientation != "RAS" or grid.is_2d:
        return array
    from nibabel import orientations  # noqa: PLC0415  # as in `turned`

    back = orientations.ornt_transform(RAS, orientations.io_orientation(grid.affine))
    turned: NDArray[Any] = orientations.apply_orientation(array.T, back).T
    return turned


def label_ending(file_ending: str) -> str:
    """The ending of the labels and segmentations of images with this ending: the same, but .png for JPEG."""
    return LABEL_ENDINGS.get(file_ending.lower(), file_ending)


def may_hold_several_channels(file_ending: str) -> bool:
    """Whether one file may hold several channels in nnU-Net's layout, as an RGB photograph does."""
    return FORMATS[file_ending.lower()] in SEVERAL_CHANNELS


def axis_codes(volume: Volume) -> str:
    """Where the axes x, y, z lead: `RAS` is right, front, up; `?` where an axis leads nowhere."""
    from nibabel.orientations import aff2axcodes  # noqa: PLC0415  # as in `turned`

    return "".join(code or "?" for code in aff2axcodes(volume.affine))


def is_series(folder: Path) -> bool:
    """Whether a folder holds the slices of one DICOM series. Raises SegpipeError where the package for it is absent."""
    found: bool = module_of(folder / "any.dcm").is_series(folder)
    return found


def companions(path: Path) -> list[Path]:
    """Further files that belong to a file: spacing of a TIFF, data of .mhd and .nhdr, the slices in a folder."""
    found: list[Path] = module_of(path).companions(path)
    return found


def copy(path: Path, folder: Path) -> None:
    """Copy a file, and those that lie beside it and belong to it, into a folder."""
    for file in [path, *companions(path)]:
        shutil.copy2(file, folder)


def identity(path: Path) -> str:
    """Digest of the content of a file and of those that belong to it."""
    files = [*([] if path.is_dir() else [path]), *companions(path)]
    digests = [digest.of_file(file) for file in files]
    return digests[0] if files == [path] else digest.of(digests)


def _read(path: Path, as_label: bool) -> Stored:
    """Any format; an image of real numbers with a geometry."""
    require_content(path)
    stored: Stored = module_of(path).read(path, as_label)
    if not _has_geometry(stored.grid):
        raise SegpipeError(
            problem(
                "the header gives no geometry",
                where=path,
                found=f"spacing {stored.grid.spacing_mm} mm (Z, Y, X)",
                expected="positive numbers, and an affine of three axes",
                cure="correct the header",
            )
        )
    return stored


def _has_geometry(grid: Grid) -> bool:
    """Whether edges are positive and the axes lead to three directions."""
    if not np.isfinite([*grid.spacing_mm, *grid.affine.flat]).all() or not min(grid.spacing_mm) > 0:
        return False
    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return grid.is_2d or (min(lengths) > 0 and abs(np.linalg.det(grid.affine[:3, :3] / lengths)) > FLATTEST)


def _without_colours(path: Path, stored: Stored) -> NDArray[np.generic]:
    """Gray stored with alpha, or as three equal channels, becomes one channel; true colours stay."""
    array = stored.array
    if stored.colours in ("LA", "RGBA"):
        if (array[-1] != np.iinfo(str(array.dtype)).max).any():
            raise SegpipeError(
                problem(
                    "a label map with transparent pixels",
                    where=path,
                    found=f"alpha from {array[-1].min()}",
                    expected="no alpha, or an opaque one",
                    cure="store the label map as gray",
                )
            )
        array = array[:-1]
    if stored.colours in ("RGB", "RGBA") and (array == array[:1]).all():
        array = array[:1]
    return array


def _volume(array: NDArray[np.generic], grid: Grid) -> Volume:
    return Volume(np.ascontiguousarray(array), grid.spacing_mm, grid.affine, grid.is_2d)
