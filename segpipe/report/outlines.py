"""A plane of a case as SVG: the image, and over it the outlines of what was predicted and of the reference.

Lines are drawn by the browser, so that they stay thin at any size; pixels have the proportions of the body.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import find_contours

from segpipe.data.page_parts import data_uri
from segpipe.data.planes import colour, encoded, resized, resized_label, stretched

LARGEST_PX = 320  # of the longer edge of what is drawn; larger planes are reduced
Labelled = NDArray[np.integer]


@dataclass(frozen=True)
class Drawn:
    """A plane, cut to what is shown.

    channels : one plane of gray values, or three of red, green and blue
    maps : by kind, `prediction` or `reference`, the values of the training; what is drawn has 1 and more
    edges_mm : height and width of a pixel
    """

    channels: Sequence[NDArray[np.generic]]
    maps: Mapping[str, Labelled]
    edges_mm: tuple[float, float]


def svg(drawn: Drawn, title: str) -> str:
    """The plane as an SVG element; `title` is escaped HTML."""
    shape = drawn.channels[0].shape
    height_mm, width_mm = (n * edge for n, edge in zip(shape, drawn.edges_mm, strict=True))
    size = _size(shape)
    scale = f"scale({width_mm / size[1]:.6g} {height_mm / size[0]:.6g})"
    lines = "".join(_lines(kind, reduced(labelled, size)) for kind, labelled in drawn.maps.items())
    return (
        f'<svg viewBox="0 0 {width_mm:.6g} {height_mm:.6g}" role="img"><title>{title}</title>'
        f'<image width="{width_mm:.6g}" height="{height_mm:.6g}" preserveAspectRatio="none" '
        f'href="{data_uri(_png(drawn.channels, size))}"></image><g transform="{scale}">{lines}</g></svg>'
    )


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) in pixels: as stored, or reduced."""
    factor = min(1.0, LARGEST_PX / max(shape))
    height, width = (max(1, round(n * factor)) for n in shape)
    return height, width


def _png(channels: Sequence[NDArray[np.generic]], size: tuple[int, int]) -> bytes:
    planes = [resized(stretched(channel), size, Image.Resampling.BILINEAR) for channel in channels]
    return encoded(Image.fromarray(np.stack(planes, axis=-1) if len(planes) == 3 else planes[0]))


def reduced(labelled: Labelled, size: tuple[int, int]) -> Labelled:
    """A label map of the pixels that are drawn; of more than 255 classes some look the same."""
    drawn = np.where(labelled > 0, (labelled - 1) % 255 + 1, 0).astype(np.uint8)
    return drawn if drawn.shape == size else resized_label(drawn, size)


def _lines(kind: str, labelled: Labelled) -> str:
    """One path per class."""
    return "".join(
        f'<path class="{kind}" style="--class:{colour(int(value))}" d="{path(labelled == value)}"></path>'
        for value in np.unique(labelled)
        if value > 0
    )


def path(mask: NDArray[np.bool_]) -> str:
    """The borders of a mask in SVG's words, in pixels from the upper left corner of the plane."""
    # find_contours counts from the centre of the first pixel, here that of a margin; halves become whole numbers
    contours = [np.rint(2 * contour - 1).astype(int) for contour in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    return "".join(_contour(points[:, ::-1]) for points in contours)


def _contour(points: NDArray[np.integer]) -> str:
    """A closed line of (x, y) in half pixels, without points between others on a straight line."""
    steps = np.diff(points, axis=0)
    turns = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1
    kept = points[[0, *turns]]
    moves = (f"l{_half(x1 - x0)} {_half(y1 - y0)}" for (x0, y0), (x1, y1) in pairwise(kept))
    return f"M{_half(kept[0, 0])} {_half(kept[0, 1])}{''.join(moves)}z"


def _half(n: int) -> str:
    return f"{n / 2:g}"
