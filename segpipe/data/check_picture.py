"""A thumbnail of a case: one slice with the outlines of its labels."""

import io

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.image import Volume
from segpipe.data.labels import Labels

EDGE_PX = 160  # of the longer edge
# of the outlines, by value; the first ones are told apart by most colour-blind readers (Okabe and Ito)
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2", "#ff5050", "#80ff80", "#b080ff")
THICK = 1.5  # times the middle spacing: slices of such a stack are shown as they were taken
GRAYS = 256 - len(COLOURS)

Plane = NDArray[np.generic]


def colour(value: int) -> str:
    """Of a value of the training."""
    return COLOURS[(value - 1) % len(COLOURS)]


def png(image: Volume, label: Volume | None, labels: Labels) -> bytes:
    """A slice through the most foreground of a case, seen from the feet or from the front.

    image : its first channel is shown, three channels of a 2D image as red, green and blue
    """
    if image.is_2d:
        planes = [*(image.array[:, 0] if len(image.array) == 3 else image.array[:1, 0])]
        outlined = label.array[0, 0] if label else None
        edges_mm = image.spacing_mm[1:]
    else:
        planes, outlined, edges_mm = _slice(image, label)
    size = _size(planes[0].shape, edges_mm)
    shown = [_resized(_stretched(plane), size, Image.Resampling.BILINEAR) for plane in planes]
    if outlined is None:
        return _encoded(shown, np.zeros(shown[0].shape, np.uint8))
    values = labels.from_files(np.ascontiguousarray(outlined))
    drawn = np.where((values > 0) & (values != labels.ignore), (values - 1) % len(COLOURS) + 1, 0).astype(np.uint8)
    return _encoded(shown, _outlines(_resized_label(drawn, size)))


def _slice(image: Volume, label: Volume | None) -> tuple[list[Plane], Plane | None, tuple[float, float]]:
    """One plane of image and label, rows and columns as radiologists look at them, and the edges of its pixels."""
    turn = io_orientation(image.affine)
    spacing_mm = np.array(image.spacing_mm[::-1])[np.argsort(turn[:, 0])]
    volume = apply_orientation(image.array[0].T, turn)
    axis = int(spacing_mm.argmax()) if spacing_mm.max() > THICK * np.median(spacing_mm) else 2
    mask = apply_orientation(label.array[0].T, turn) if label else None
    index = _fullest(mask, axis) if mask is not None else volume.shape[axis] // 2

    def plane(array: Plane) -> Plane:
        cut = np.moveaxis(array, axis, 0)[index].T[::-1]  # up: front or head
        return cut if axis == 0 else cut[:, ::-1]  # left: the patient's right

    across, up = np.delete(spacing_mm, axis)
    return [plane(volume)], None if mask is None else plane(mask), (float(up), float(across))


def _fullest(mask: Plane, axis: int) -> int:
    """The slice with the most labelled voxels; the middle one where there are none."""
    counts = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def _size(shape: tuple[int, ...], edges_mm: tuple[float, ...]) -> tuple[int, int]:
    """(height, width) of the thumbnail, in the proportions of the body."""
    extent = np.multiply(shape, edges_mm)
    height, width = np.maximum(np.rint(EDGE_PX * extent / extent.max()), 1).astype(int)
    return int(height), int(width)


def _stretched(plane: Plane) -> NDArray[np.uint8]:
    """Gray values from the darkest to the brightest half percent."""
    gray = plane.astype(np.float64)
    low, high = np.percentile(gray, [0.5, 99.5])
    scaled = (gray - low) / (high - low if high > low else 1)
    stretched: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return stretched


def _resized(plane: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], how))


def _resized_label(drawn: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The nearest pixel; where it shrinks, a small lesion between these pixels is not lost."""
    shown = _resized(drawn, size, Image.Resampling.NEAREST).copy()
    if size < drawn.shape:
        rows, columns = np.nonzero(drawn)
        shown[rows * size[0] // drawn.shape[0], columns * size[1] // drawn.shape[1]] = drawn[rows, columns]
    return shown


def _outlines(drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of a class with a neighbour of another value."""
    padded = np.pad(drawn, 1)
    inner = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    edge = np.logical_or.reduce([neighbour != drawn for neighbour in inner])
    return np.where(edge, drawn, 0).astype(np.uint8)


def _encoded(shown: list[NDArray[np.uint8]], outlines: NDArray[np.uint8]) -> bytes:
    rgb = [tuple(bytes.fromhex(code[1:])) for code in COLOURS]
    if len(shown) == 3:
        array = np.stack(shown, axis=-1)
        array[outlines > 0] = np.array(rgb, np.uint8)[outlines[outlines > 0] - 1]
        picture = Image.fromarray(array)
    else:  # one byte per pixel
        gray = (shown[0].astype(np.uint16) * (GRAYS - 1) // 255).astype(np.uint8)
        picture = Image.fromarray(np.where(outlines, GRAYS + outlines - 1, gray).astype(np.uint8))
        ramp = [(level * 255 // (GRAYS - 1),) * 3 for level in range(GRAYS)]
        picture.putpalette([part for entry in [*ramp, *rgb] for part in entry])
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=False)
    return buffer.getvalue()
