"""The block `train`: everything that decides a training's weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segpipe.params.fields import BelowOne, Count, Fraction, ImportPath, NotNegative, Positive, Section

Part = Literal["encoder", "decoder", "heads"]


class Optimiser(Section):
    """The optimiser and its parameter groups."""

    name: Literal["sgd", "adamw"] | ImportPath
    learning_rate: Positive
    momentum: BelowOne
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)]
    weight_decay: NotNegative
    decay_norm_and_bias: bool
    rate_factors: dict[Part, Positive]
    clip_norm: Positive | None

    @model_validator(mode="after")
    def _every_part_has_a_factor(self) -> "Optimiser":
        missing = {"encoder", "decoder", "heads"} - set(self.rate_factors)
        if missing:
            raise ValueError(f"rate_factors: no factor for {', '.join(sorted(missing))}")
        return self


class Schedule(Section):
    """The learning rate over the training."""

    name: Literal["poly", "cosine", "exponential", "step", "constant"] | ImportPath
    per: Literal["epoch", "iteration"]
    warmup_steps: Annotated[int, Field(ge=0)]
    poly_exponent: Positive
    final_factor: Annotated[float, Field(gt=0, le=1)]
    step_factor: Annotated[float, Field(gt=0, le=1)]
    steps_at: list[Annotated[float, Field(gt=0, lt=1)]]


class Loss(Section):
    """A term over regions, a term over voxels, and where each counts."""

    custom: ImportPath | None
    region: Literal["dice", "tversky"]
    region_weight: NotNegative
    voxel: Literal["cross_entropy", "topk", "focal"]
    voxel_weight: NotNegative
    tversky_alpha: NotNegative
    tversky_beta: NotNegative
    topk_percent: Annotated[float, Field(gt=0, le=100)]
    focal_gamma: NotNegative
    class_weights: dict[str, NotNegative] | None
    boundary_weight: NotNegative
    boundary_width: Count
    deep_supervision: Annotated[list[NotNegative], Field(min_length=1)] | None

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "Loss":
        if self.region_weight == self.voxel_weight == 0:
            raise ValueError("region_weight and voxel_weight are both 0: nothing would be learnt")
        if self.region == "tversky" and self.region_weight > 0 and self.tversky_alpha == self.tversky_beta == 0:
            raise ValueError("tversky_alpha and tversky_beta are both 0: the region term would be constant")
        if self.deep_supervision is not None and sum(self.deep_supervision) == 0:
            raise ValueError("deep_supervision: all weights are 0: nothing would be learnt")
        return self


class Ema(Section):
    """The running mean of the weights."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None
    ramp_steps: Annotated[int, Field(ge=0)]


class Best(Section):
    """What makes an epoch the best."""

    fitness: Annotated[dict[str, float], Field(min_length=1)]
    smoothing: BelowOne


class EarlyStopping(Section):
    """When a training ends before its time."""

    patience: Count | None
    monitor: str
    min_delta: NotNegative
    min_epochs: Annotated[int, Field(ge=0)]


class FullValidation(Section):
    """Whole cases, predicted while training."""

    every: Count | None
    weights: Literal["raw", "averaged"]
    step_size: Annotated[float, Field(gt=0, le=1)]
    mirroring: bool


class Train(Section):
    """The training core."""

    epochs: Count | None
    max_steps: Count | None
    iterations_per_epoch: Count | Literal["pass"]
    val_iterations_per_epoch: Count
    on_extend: Literal["restart", "continue"]
    oversample_foreground: Fraction
    replacement: bool
    augment: bool
    mirror_axes: list[Annotated[int, Field(ge=0, le=2)]] | None
    accumulate: Count
    optimiser: Optimiser
    schedule: Schedule
    loss: Loss
    ema: Ema
    best: Best
    early_stopping: EarlyStopping
    full_validation: FullValidation
    network: ImportPath | None
    initialisation: Literal["he", "xavier", "orthogonal"]
    pretrained_weights: str | None
    freeze: list[str]
    callbacks: list[ImportPath]
    precision: Literal["auto", "bf16", "fp16", "off"]
    deterministic: bool
    seed: Annotated[int, Field(ge=0, lt=2**63)]

    @model_validator(mode="after")
    def _one_length(self) -> "Train":
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("epochs and max_steps: exactly one of the two must be null")
        if self.mirror_axes is not None and len(set(self.mirror_axes)) < len(self.mirror_axes):
            raise ValueError(f"mirror_axes: {self.mirror_axes} names an axis twice")
        if self.full_validation.weights == "averaged" and self.ema.decay is None:
            raise ValueError("full_validation.weights: averaged needs ema.decay")
        return self

    def import_paths(self) -> dict[str, str]:
        """What is named by an import path, by the setting that names it."""
        named = {
            "train.loss.custom": self.loss.custom,
            "train.optimiser.name": self.optimiser.name,
            "train.schedule.name": self.schedule.name,
            "train.network": self.network,
            **{f"train.callbacks[{i}]": path for i, path in enumerate(self.callbacks)},
        }
        return {setting: path for setting, path in named.items() if path is not None and ":" in path}
