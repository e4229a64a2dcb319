"""The plan: what every later step needs to know of how a dataset is preprocessed and of the network that it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe import digest


@dataclass(frozen=True)
class Configuration:
    """All that preprocessing, training and prediction need to know of one configuration.

    Axes in the plan's order; a 2d configuration has two.

    architecture : plain (convolutions only) or resenc (residual blocks in the encoder)
    n_conv_per_stage : convolutions of the encoder's stages; of a resenc encoder residual blocks
    previous_stage : configuration whose segmentation is a further input, one channel per foreground class; None without
    """

    architecture: str
    spacing_mm: list[float]
    patch_size: list[int]
    batch_size: int
    median_shape: list[float]
    features_per_stage: list[int]
    kernel_sizes: list[list[int]]
    strides: list[list[int]]
    n_conv_per_stage: list[int]
    n_conv_per_stage_decoder: list[int]
    normalisation: list[str]
    use_mask_for_norm: list[bool]
    batch_dice: bool
    previous_stage: str | None
    reasons: list[str]


def read(path: Path) -> dict[str, Any]:
    """plan.json, with its configurations as `Configuration`."""
    plan: dict[str, Any] = digest.read_json(path)
    plan["configurations"] = {name: Configuration(**value) for name, value in plan["configurations"].items()}
    return plan
