"""A thumbnail of a case: one slice with the outlines of its labels."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.image import Volume
from segpipe.data.labels import Labels
from segpipe.data.planes import COLOURS, Plane, View, colours_of, encoded, resized, resized_label, stretched

EDGE_PX = 160  # of the longer edge
GRAYS = 256 - len(COLOURS)


def png(image: Volume, label: Volume | None, labels: Labels) -> bytes:
    """A slice through the most foreground of a case, seen from the feet or from the front.

    image : its first channel is shown, three channels of a 2D image as red, green and blue
    """
    view = View.of(image)
    axis = view.as_taken
    volumes = [view.turned(channel) for channel in colours_of(image)]
    mask = None if label is None else view.turned(label.array[0])
    index = volumes[0].shape[axis] // 2 if mask is None else _fullest(mask, axis)
    planes = [view.plane(volume, axis, index) for volume in volumes]
    size = _size(planes[0].shape, view.edges_mm(axis))
    shown = [resized(stretched(plane), size, Image.Resampling.BILINEAR) for plane in planes]
    if mask is None:
        return _encoded(shown, np.zeros(shown[0].shape, np.uint8))
    values = labels.from_files(np.ascontiguousarray(view.plane(mask, axis, index)))
    drawn = np.where((values > 0) & (values != labels.ignore), (values - 1) % len(COLOURS) + 1, 0).astype(np.uint8)
    return _encoded(shown, _outlines(resized_label(drawn, size)))


def _fullest(mask: Plane, axis: int) -> int:
    """The slice with the most labelled voxels; the middle one where there are none."""
    counts = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def _size(shape: tuple[int, ...], edges_mm: tuple[float, ...]) -> tuple[int, int]:
    """(height, width) of the thumbnail, in the proportions of the body."""
    extent = np.multiply(shape, edges_mm)
    height, width = np.maximum(np.rint(EDGE_PX * extent / extent.max()), 1).astype(int)
    return int(height), int(width)


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
        return encoded(Image.fromarray(array))
    # one byte per pixel
    gray = (shown[0].astype(np.uint16) * (GRAYS - 1) // 255).astype(np.uint8)
    picture = Image.fromarray(np.where(outlines, GRAYS + outlines - 1, gray).astype(np.uint8))
    ramp = [(level * 255 // (GRAYS - 1),) * 3 for level in range(GRAYS)]
    picture.putpalette([part for entry in [*ramp, *rgb] for part in entry])
    return encoded(picture)
