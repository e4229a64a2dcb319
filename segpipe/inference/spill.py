"""Arrays that may be larger than the memory."""

import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segpipe import machine

SHARE = 8  # of the free memory, that an array takes at most


def zeros(shape: Sequence[int], dtype: str, folder: Path) -> NDArray[np.floating]:
    """An array of zeros in memory, or where it is large in a nameless file in `folder`, which nothing leaves behind."""
    if prod(shape) * np.dtype(dtype).itemsize <= machine.available_bytes() // SHARE:
        return np.zeros(shape, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=tuple(shape))
