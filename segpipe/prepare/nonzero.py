"""Where an image is not zero: what a case is cropped to, and what lies inside of it.

nnunetv2/preprocessing/cropping/cropping.py. Holes of the nonzero region never reach its bounding box, so it is found
without filling them, and they are filled in the box alone.
"""

import numpy as np
from numpy.typing import NDArray

# Of the voxels: below it, going inwards from the border is the faster way. Of 160 x 256 x 256 voxels, 1 % outside took
# it 27 ms as noise and 46 ms as a slab at the border, all parts in one pass 70 ms; at 5 % 41 and 118 ms against 70 ms.
FEW = 0.01

Box = tuple[slice, slice, slice]
Mask = NDArray[np.bool_]


def nonzero(image: NDArray[np.float32]) -> Mask:
    """Where any channel differs from zero. image : (C, Z, Y, X); returns (Z, Y, X)."""
    mask: Mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def bounding_box(mask: Mask) -> Box:
    """The smallest box around a mask; the whole volume where the mask is empty."""
    box = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, mask.shape[axis]))
    return box[0], box[1], box[2]


def fill_holes(mask: Mask) -> Mask:
    """The mask with what it encloses: voxels that no path over faces outside of it leads from to the border.

    As scipy.ndimage.binary_fill_holes, which spreads from the border voxel by voxel, in a third of its time.
    """
    outside = ~mask
    n_outside = int(np.count_nonzero(outside))
    if n_outside == 0:
        return mask
    few = n_outside < FEW * mask.size
    return mask | (_enclosed_of_few(outside) if few else _enclosed(outside))


def _enclosed(outside: Mask) -> Mask:
    """The voxels of those parts that do not reach the border. All parts are numbered in one pass."""
    from scipy.ndimage import label  # noqa: PLC0415  # a tenth of a second that many datasets do not need

    parts, n_parts = label(outside)
    encloses = np.ones(n_parts + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            encloses[parts.take(end, axis)] = False
    encloses[0] = False
    enclosed = np.empty_like(outside)
    for plane, numbers in zip(enclosed, parts, strict=True):  # as one, the numbers would be copied as int64
        plane[:] = encloses[numbers]
    return enclosed


def _enclosed_of_few(outside: Mask) -> Mask:
    """The same, by going inwards from the border: a CT has single voxels of zero, and no pass over the rest is made."""
    left = np.ascontiguousarray(np.pad(outside, 1))  # np.pad keeps the order of a transposed mask
    inner = left[1:-1, 1:-1, 1:-1]
    places = np.argwhere(inner)
    at_border = ((places == 0) | (places == np.array(inner.shape) - 1)).any(axis=1)
    # a voxel is a byte: strides are distances between neighbours
    steps = np.array([step for stride in left.strides for step in (stride, -stride)])
    reached = np.ravel_multi_index(tuple(places[at_border].T + 1), left.shape)
    flat = left.reshape(-1)
    while reached.size:
        flat[reached] = False
        near = (reached[:, None] + steps).ravel()
        reached = np.unique(near[flat[near]])
    return inner
