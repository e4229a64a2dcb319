"""Tiny models of nnU-Net and what it predicts with them (data/make_nnunet_models.py)."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tiny import DATA

from segpipe.cli.main import main

INTEROP = DATA / "interop"
IMAGES = INTEROP / "images"


def segpipe(*arguments: object) -> None:
    """A call of the command."""
    main([str(argument) for argument in arguments])


def imported(kind: str, folder: Path) -> Path:
    """One of the zip files as a MODEL: regions (a cascade), or resenc (2d, two folds)."""
    segpipe("import-nnunet", INTEROP / f"{kind}.zip", "--out", folder / kind)
    return folder / kind


def of_nnunet(kind: str) -> NDArray[np.float32]:
    """Probabilities of the case, (heads, Z, Y, X)."""
    probabilities: NDArray[np.float32] = np.load(INTEROP / f"{kind}.npz")["probabilities"].astype(np.float32)
    return probabilities
