"""HD95 of boundary voxels by distance transforms: what surfaces weighted by area are timed against."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure


def hd95_of_boundary_voxels_mm(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float:
    """Of two masks in a box around both, neither of them empty."""
    faces = generate_binary_structure(a.ndim, 1)[tuple(slice(None) if n > 1 else slice(1, 2) for n in a.shape)]
    surfaces = [mask & ~binary_erosion(mask, faces) for mask in (a, b)]
    distances = [distance_transform_edt(~surface, sampling=tuple(spacing_mm)) for surface in surfaces]
    return float(max(np.percentile(distances[1][surfaces[0]], 95), np.percentile(distances[0][surfaces[1]], 95)))
