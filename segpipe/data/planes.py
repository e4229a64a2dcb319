"""What pictures of cases share: planes as radiologists look at them, gray values, colours of classes."""

import io
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.image import Volume

# of the outlines, by value; the first ones are told apart by most colour-blind readers (Okabe and Ito)
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2", "#ff5050", "#80ff80", "#b080ff")
THICK = 1.5  # times the middle spacing: slices of such a stack are shown as they were taken
AXIAL = 2

Plane = NDArray[np.generic]
Scalar = TypeVar("Scalar", bound=np.generic)


def colour(value: int) -> str:
    """Of a value of the training."""
    return COLOURS[(value - 1) % len(COLOURS)]


@dataclass(frozen=True)
class View:
    """How a volume is looked at: planes across the axes that lead to the right, to the front and up, in this order.

    turn : (3, 2), from the axes x, y, z of the file; None for a 2D image, which is looked at as it is stored
    spacing_mm : along these axes
    """

    turn: NDArray[np.float64] | None
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, image: Volume) -> "View":
        """That of an image, and of what lies on its grid."""
        z, y, x = image.spacing_mm
        if image.is_2d:
            return cls(None, (x, y, z))
        turn = io_orientation(image.affine)
        right, front, up = np.array([x, y, z])[np.argsort(turn[:, 0])]
        return cls(turn, (float(right), float(front), float(up)))

    @property
    def planes(self) -> dict[str, int]:
        """The planes there are, by name: the axis that each lies across."""
        return {"image": AXIAL} if self.turn is None else {"axial": AXIAL, "coronal": 1, "sagittal": 0}

    @property
    def as_taken(self) -> int:
        """The axis across the slices of a stack of thick ones; the one that leads up for all others."""
        spacing_mm = np.array(self.spacing_mm)
        thick = self.turn is not None and spacing_mm.max() > THICK * np.median(spacing_mm)
        return int(spacing_mm.argmax()) if thick else AXIAL

    def turned(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """An array (Z, Y, X) as (right, front, up)."""
        turned: NDArray[Scalar] = array.T if self.turn is None else apply_orientation(array.T, self.turn)
        return turned

    def plane(self, turned: NDArray[Scalar], axis: int, index: int) -> NDArray[Scalar]:
        """Rows and columns across an axis, seen from the feet, the front or the patient's right."""
        cut = np.moveaxis(turned, axis, 0)[index].T
        if self.turn is None:
            return cut
        return cut[::-1] if axis == 0 else cut[::-1, ::-1]  # up: front or head; left: the patient's right

    def edges_mm(self, axis: int) -> tuple[float, float]:
        """Of a plane's pixels: height and width."""
        across, up = (self.spacing_mm[other] for other in range(3) if other != axis)
        return up, across


def colours_of(image: Volume) -> Plane:
    """The channels that are shown, (C, Z, Y, X): the first, or all three of a 2D image as red, green and blue."""
    return image.array if image.is_2d and len(image.array) == 3 else image.array[:1]


def stretched(plane: Plane) -> NDArray[np.uint8]:
    """Gray values from the darkest to the brightest half percent."""
    gray = plane.astype(np.float64)
    low, high = np.percentile(gray, [0.5, 99.5])
    scaled = (gray - low) / (high - low if high > low else 1)
    shades: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return shades


def resized(plane: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.uint8]:
    """A plane of another size, (height, width)."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size[::-1], how))


def resized_label(drawn: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The nearest pixel; where it shrinks, a small lesion between these pixels is not lost."""
    shown = resized(drawn, size, Image.Resampling.NEAREST).copy()
    if size < drawn.shape:
        rows, columns = np.nonzero(drawn)
        shown[rows * size[0] // drawn.shape[0], columns * size[1] // drawn.shape[1]] = drawn[rows, columns]
    return shown


def encoded(picture: Image.Image) -> bytes:
    """As PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=False)
    return buffer.getvalue()
