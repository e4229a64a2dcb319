"""Named ways of predicting: how much accuracy for how much time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """How cases are predicted. Fields as validate.step_size, validate.mirroring and validate.precision have them."""

    step_size: float
    mirroring: bool | list[int]
    precision: str


# What they cost and lose: docs/benchmarks.md (benchmarks/prediction_presets.py).
PRESETS = {
    "accurate": Way(step_size=0.5, mirroring=True, precision="trained"),  # nnU-Net's
    "fast": Way(step_size=0.75, mirroring=False, precision="auto"),
}
