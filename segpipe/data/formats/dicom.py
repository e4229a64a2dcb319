"""A DICOM series: a folder of slices named like a file, CASE_0000.dcm, or one such file. Needs segpipe[dicom]."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_rescale

from segpipe.data.formats.grid import LPS_TO_RAS, Grid, Stored, from_axes, unreadable, unsupported

SAME = ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "SamplesPerPixel")
NEEDED = (*SAME, "ImagePositionPatient")
MAX_UNEVENNESS = 0.01  # of the distance between slices; a missing slice is 1


def read(path: Path, as_label: bool) -> Stored:
    """The slices in the order of their positions, in rescaled values (HU for CT); one slice is a 2D image.

    Raises SegpipeError where pydicom is missing, the slices are not one series, one is missing, or one is damaged.
    """
    slices = _slices(path)
    return Stored(np.stack([_pixels(one) for one in slices])[None], _grid(slices))


def grid(path: Path) -> Grid:
    """What the headers say; the voxels are not decoded."""
    return _grid(_slices(path))


def is_series(folder: Path) -> bool:
    """Whether a folder holds slices of one series, and not images by themselves: the first and the last file say it."""
    files = companions(folder)
    try:
        ends = {pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID for file in (files[0], files[-1])}
    except (IndexError, AttributeError, OSError, pydicom.errors.InvalidDicomError):
        return False
    return len(files) > 1 and len(ends) == 1


def companions(path: Path) -> list[Path]:
    """The files of a folder."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")


def _slices(path: Path) -> list[Any]:
    """The checked headers, along the normal of the slices."""
    files = companions(path) if path.is_dir() else [path]
    slices = [_header(file) for file in files]
    if not slices:
        raise unreadable(path, "no files", "the slices of one series")
    for key in SAME:
        values = {str(one.get(key)) for one in slices}
        if len(values) > 1:
            raise unsupported(path, f"{len(values)} values of {key}", "slices of one series", "keep one series only")
    slices.sort(key=lambda one: float(_normal(one) @ _position(one)))
    steps = np.diff([_normal(one) @ _position(one) for one in slices])
    if len(steps) and steps.max() - steps.min() > MAX_UNEVENNESS * np.median(steps):
        found = f"steps of {steps.min():.4g} to {steps.max():.4g} mm between {len(slices)} slices"
        raise unreadable(path, found, "even steps: no slice missing, none twice")
    return slices


def _header(file: Path) -> Any:
    """One slice with all tags that are needed."""
    try:
        one = pydicom.dcmread(file)
        missing = [key for key in NEEDED if one.get(key) in (None, "", [])]
        if not missing:
            _normal(one), _position(one), np.array(one.PixelSpacing, float)
    except Exception as error:  # damaged files raise anything in pydicom
        raise unreadable(file, error, f"a DICOM file with sound tags {', '.join(NEEDED)}") from None
    if missing or one.SamplesPerPixel != 1 or int(one.get("NumberOfFrames") or 1) != 1:
        found = f"no {', '.join(missing)}" if missing else "several frames or colours"
        raise unsupported(file, found, "one gray slice with its position", "convert the series to NIfTI")
    return one


def _pixels(one: Any) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = apply_rescale(one.pixel_array, one)
    except Exception as error:  # the same, and a compression that needs another package
        cure = "copy the file again, or convert the series to NIfTI"
        raise unreadable(Path(one.filename), error, "the pixels of a whole slice", cure) from None
    return array


def _position(one: Any) -> NDArray[np.float64]:
    return np.array(one.ImagePositionPatient, float)


def _axes(one: Any) -> NDArray[np.float64]:
    """(3, 2) where the columns and the rows of a slice lead to: left, posterior, superior."""
    return np.array(one.ImageOrientationPatient, float).reshape(2, 3).T


def _normal(one: Any) -> NDArray[np.float64]:
    return np.cross(*_axes(one).T)


def _grid(slices: list[Any]) -> Grid:
    first, last = slices[0], slices[-1]
    y_mm, x_mm = (float(edge) for edge in first.PixelSpacing)
    columns, edges = _axes(first), [x_mm, y_mm]
    if len(slices) > 1:
        step = (_position(last) - _position(first)) / (len(slices) - 1)  # leans where the gantry is tilted
        edges.append(float(np.linalg.norm(step)))
        columns = np.column_stack([columns, step / edges[-1]])
    return from_axes(LPS_TO_RAS @ columns, np.array(edges), LPS_TO_RAS @ _position(first), None)
