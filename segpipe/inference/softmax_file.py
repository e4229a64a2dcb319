"""The saved softmax of a case: `<case>.npz`, key `probabilities`, (C, Z, Y, X) on the grid of its file."""

from pathlib import Path

import numpy as np

from segpipe import digest
from segpipe.inference.export import Probabilities


def save(path: Path, probabilities: Probabilities, dtype: str) -> None:
    """Write `<case>.npz`, key `probabilities`, (C, Z, Y, X): readable by numpy.load and by nnU-Net's ensembling."""
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, probabilities=probabilities.astype(dtype))


def load(path: Path) -> Probabilities:
    """Read what `save` (or nnU-Net) wrote."""
    with np.load(path) as content:
        probabilities: Probabilities = content["probabilities"]
    return probabilities
