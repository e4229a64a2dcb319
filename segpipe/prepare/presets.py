"""nnU-Net's planners: their networks, and what is known to fit into which memory.

Numbers of nnunetv2/experiment_planning/experiment_planners, default_experiment_planner.py and residual_unets/.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.prepare.topology import Layers

MIN_BATCH = 2
REFERENCE_BATCH = {2: 12, 3: 2}  # what `feature_maps` of a preset are of, by number of axes


@dataclass(frozen=True)
class Preset:
    """One planner.

    encoder, decoder : convolutions (resenc's encoder: blocks) per stage; the last one stands for all further stages
    gb : its memory target, in which `feature_maps` fit, by number of axes, at REFERENCE_BATCH
    planned_batch : of which a patch must fit into memory, by number of axes
    max_dataset_share : of all voxels, seen in one batch
    """

    architecture: str
    encoder: tuple[int, ...]
    decoder: int
    gb: float
    feature_maps: dict[int, float]
    planned_batch: dict[int, int]
    max_dataset_share: float

    def layers(self, features: Sequence[int]) -> Layers:
        """The layers of a network with these channels."""
        depths = [*self.encoder, *[self.encoder[-1]] * len(features)][: len(features)]
        return Layers(features, depths, [self.decoder] * (len(features) - 1), self.architecture == "resenc")


def _resenc(gb: float, feature_maps_2d: float, feature_maps_3d: float) -> Preset:
    return Preset("resenc", (1, 3, 4, 6), 1, gb, {2: feature_maps_2d, 3: feature_maps_3d}, REFERENCE_BATCH, 1.0)


PRESETS = {
    "plain": Preset("plain", (2,), 2, 8, {2: 85e6, 3: 560e6}, {2: MIN_BATCH, 3: MIN_BATCH}, 0.05),
    "ResEncM": _resenc(8, 135e6, 680e6),
    "ResEncL": _resenc(24, 380e6, 2100e6),
    "ResEncXL": _resenc(40, 560e6, 3600e6),
}
