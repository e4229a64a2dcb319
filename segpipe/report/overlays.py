"""Where to look at a case: planes through the place where most is wrong, cut to what surrounds the classes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from segpipe.data.image import Volume
from segpipe.data.labels import Labels, belongs
from segpipe.data.planes import View, colours_of
from segpipe.report.outlines import Drawn

AROUND = 0.4  # of the longest edge of the classes' box: what is shown around it
WINDOW = 0.2  # of that edge: errors are counted in cubes of this size
Map = NDArray[np.integer]
Box = tuple[slice, ...]


def planes(
    image: Volume, predicted: Map, reference: Map | None, labels: Labels, annotated: list[str] | None
) -> Iterator[tuple[str, Drawn]]:
    """(name of the plane, plane) of a case: axial, coronal and sagittal, or the image where it is 2D.

    predicted, reference : (Z, Y, X), values of the training
    annotated : the classes that a partly labelled case has annotations of; None: all
    """
    view = View.of(image)
    wrong = None if reference is None else errors(predicted, reference, labels, annotated)
    maps = {"prediction": predicted} | ({} if reference is None else {"reference": reference})
    turned = {kind: view.turned(_drawable(labelled, labels)) for kind, labelled in maps.items()}
    foreground = np.logical_or.reduce([labelled > 0 for labelled in turned.values()])
    box = shown_box(foreground, view.spacing_mm)
    place = where_to_look(None if wrong is None else view.turned(wrong), foreground, view.spacing_mm)
    channels = [view.turned(channel) for channel in colours_of(image)]
    for name, axis in view.planes.items():
        index = place[axis] - box[axis].start
        cut = {kind: view.plane(labelled[box], axis, index) for kind, labelled in turned.items()}
        yield name, Drawn([view.plane(one[box], axis, index) for one in channels], cut, view.edges_mm(axis))


def _drawable(labelled: Map, labels: Labels) -> Map:
    """The classes alone, without the ignore label and values that no class has."""
    drawable: Map = np.where((labelled > 0) & (labelled < labels.n_values), labelled, 0)
    return drawable


def errors(predicted: Map, reference: Map, labels: Labels, annotated: list[str] | None) -> NDArray[np.bool_]:
    """Voxels of which the class is wrong, as far as somebody annotated them."""
    wrong: NDArray[np.bool_] = predicted != reference
    if labels.ignore is not None:
        wrong &= reference != labels.ignore
    if annotated is not None:
        values = tuple(value for name in annotated for value in labels.names[name])
        wrong &= belongs(predicted, values) | belongs(reference, values)
    return wrong


def where_to_look(
    wrong: NDArray[np.bool_] | None, foreground: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> tuple[int, ...]:
    """The wrong voxel with the most errors around it; without errors the same of the foreground; else the middle."""
    for mask in (wrong, foreground):
        if mask is not None and mask.any():
            return _densest(mask, _box(mask), spacing_mm)
    return tuple(n // 2 for n in foreground.shape)


def _densest(mask: NDArray[np.bool_], box: Box, spacing_mm: tuple[float, ...]) -> tuple[int, ...]:
    inside = mask[box]
    window_mm = WINDOW * max(_edges_mm(box, spacing_mm))
    size = [2 * int(window_mm / edge / 2) + 1 for edge in spacing_mm]
    density = uniform_filter(inside.astype(np.float32), size, mode="constant")
    place = np.unravel_index(np.argmax(np.where(inside, density, -1)), inside.shape)
    return tuple(int(index) + edge.start for index, edge in zip(place, box, strict=True))


def shown_box(foreground: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> Box:
    """The foreground and some of what surrounds it, or everything where there is none."""
    if not foreground.any():
        return tuple(slice(0, n) for n in foreground.shape)
    box = _box(foreground)
    margin_mm = AROUND * max(_edges_mm(box, spacing_mm))
    margins = [int(np.ceil(margin_mm / edge)) for edge in spacing_mm]
    return tuple(
        slice(max(0, edge.start - margin), min(n, edge.stop + margin))
        for edge, margin, n in zip(box, margins, foreground.shape, strict=True)
    )


def _edges_mm(box: Box, spacing_mm: tuple[float, ...]) -> list[float]:
    """Edges of a box; one of a single voxel, the thickness of a 2D image, means nothing."""
    voxels = [edge.stop - edge.start for edge in box]
    return [n * mm for n, mm in zip(voxels, spacing_mm, strict=True) if n > 1] or [min(spacing_mm)]


def _box(mask: NDArray[np.bool_]) -> Box:
    """Around all voxels of a mask, of which there are some."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
