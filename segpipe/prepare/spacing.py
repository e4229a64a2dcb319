"""Spacings and shapes: the target spacing of a dataset, the order of the axes, the shape after resampling.

Rules of nnunetv2/experiment_planning/experiment_planners/default_experiment_planner.py.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ANISOTROPY = 3  # an axis is coarse when its spacing is more than this times the others

Array = NDArray[np.float64]
Numbers = Sequence[float] | Array


def target_spacing(spacings_mm: Array, shapes: Array) -> tuple[Array, str]:
    """The median spacing; along a coarse axis with few slices the 10th percentile, so that fewer slices are lost.

    spacings_mm, shapes : (cases, 3)
    Returns the spacing of each axis, and why.
    """
    target: Array = np.median(spacings_mm, axis=0)
    shape = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    why = f"the median of {len(spacings_mm)} cases"
    if not target[worst] > ANISOTROPY * target[others].max():
        return target, f"{why}; no axis is coarse (more than {ANISOTROPY} times the others)"
    if not shape[worst] * ANISOTROPY < shape[others].min():
        return target, f"{why}; axis {worst} of the files is coarse, but not short ({shape[worst]:g} voxels)"
    median, finest = target[worst], target[others].max()
    percentile = np.percentile(spacings_mm[:, worst], 10)
    target[worst] = percentile if percentile >= finest else finest + 1e-5
    return target, (
        f"{why}; along axis {worst} of the files, which is coarse ({median:.4g} mm) and short ({shape[worst]:g} "
        "voxels), the 10th percentile"
    )


def axis_order(target_mm: Array) -> list[int]:
    """The axis with the largest spacing first, the others in the order of the files."""
    worst = int(np.argmax(target_mm))
    return [worst, *(axis for axis in range(3) if axis != worst)]


def resampled_shape(shape: Numbers, spacing_mm: Numbers, target_mm: Numbers) -> list[int]:
    """Voxels per axis after resampling, at least one."""
    return [max(1, round(old / new * n)) for n, old, new in zip(shape, spacing_mm, target_mm, strict=True)]
