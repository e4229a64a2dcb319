"""The schema of params.yaml: every key, its type and its range. Nothing has a default; the file says it all."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segpipe.errors import SegpipeError, problem
from segpipe.params.fields import (
    CASCADE,
    FULLRES,
    Column,
    Configuration,
    Count,
    Normalisation,
    NotNegative,
    Patch,
    Positive,
    Section,
    Spacing,
    Task,
)
from segpipe.params.search import Search
from segpipe.params.train import Train


class Phantoms(Section):
    """The generated dataset."""

    n_train: Annotated[int, Field(ge=5)]
    n_test: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]


class Download(Section):
    """Decathlon tasks that are fetched when they are asked for."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    md5: dict[Task, Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]] | None


class Check(Section):
    """Integrity of the raw dataset."""

    geometry_tolerance_mm: Positive
    orientation: Literal["as-stored", "RAS"]
    outlier_mads: Positive
    outside_percent: Annotated[float, Field(ge=0, le=100)]


class Overrides(Section):
    """Planned values replaced by hand: null, one for all configurations, or one by configuration."""

    spacing_mm: Spacing | dict[Configuration, Spacing] | None
    patch_size: Patch | dict[Configuration, Patch] | None
    batch_size: Count | dict[Configuration, Count] | None
    features_base: Count | dict[Configuration, Count] | None

    def of(self, key: str, configuration: str) -> Any:
        """The override of `key` for one configuration, or None. The cascade takes what 3d_fullres has, unless named."""
        value = getattr(self, key)
        if not isinstance(value, dict):
            return value
        return value.get(FULLRES if configuration == CASCADE and CASCADE not in value else configuration)

    def name(self, configuration: str) -> bool:
        """Whether something is given for this very configuration."""
        return any(isinstance(value, dict) and configuration in value for _, value in self)


class Plan(Section):
    """From the fingerprint to the network."""

    preset: Literal["plain", "ResEncM", "ResEncL", "ResEncXL"]
    gpu_memory_gb: Annotated[float, Field(ge=1)] | None
    normalisation: dict[str, Normalisation] | None
    overrides: Overrides
    file: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def _a_file_is_taken_as_it_is(self) -> "Plan":
        others = [f"overrides.{key}" for key, value in self.overrides if value is not None]
        others += ["normalisation"] if self.normalisation is not None else []
        if self.file is not None and others:
            raise ValueError(f"a plan from a file ({self.file}) is taken as it is; set to null: {', '.join(others)}")
        return self


class Splits(Section):
    """The cross-validation."""

    n_folds: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    group: Column | None
    stratify: Column | None
    hold_out: Column | None
    file: Annotated[str, Field(min_length=1)] | None

    @model_validator(mode="after")
    def _one_way(self) -> "Splits":
        ways = [name for name in ("stratify", "hold_out", "file") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} exclude each other: set all but one to null")
        return self


class Validate(Section):
    """Whole-case prediction."""

    checkpoint: Literal["final", "best"]
    step_size: Annotated[float, Field(gt=0, le=1)]
    mirroring: bool | Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(min_length=1)]
    precision: Literal["trained", "auto", "bf16", "fp16", "off"]
    softmax_dtype: Literal["float16", "float32"]
    weights: Literal["raw", "averaged"]


class Evaluate(Section):
    """How a segmentation is scored against its reference."""

    nsd_tolerance_mm: Positive | Annotated[dict[str, Positive], Field(min_length=1)]
    lesion_match: Literal["any"] | Annotated[float, Field(gt=0, le=1)]
    lesion_connectivity: Literal[6, 18, 26]
    bootstrap_resamples: Annotated[int, Field(ge=100)]
    bootstrap_seed: Annotated[int, Field(ge=0)]
    confidence_level: Annotated[float, Field(gt=0, lt=1)]

    def scoring(self) -> dict[str, Any]:
        """What the numbers of one case depend on; the rest is about intervals of means."""
        return self.model_dump(mode="json", include={"nsd_tolerance_mm", "lesion_match", "lesion_connectivity"})

    def tolerances_mm(self, classes: Collection[str]) -> dict[str, float]:
        """Of every class or region. Raises SegpipeError where some are given, but not for exactly these."""
        given = self.nsd_tolerance_mm
        if not isinstance(given, dict):
            return dict.fromkeys(classes, given)
        if given.keys() != set(classes):
            raise SegpipeError(
                problem(
                    "tolerances of other classes",
                    where="params.yaml: evaluate.nsd_tolerance_mm",
                    found=", ".join(given),
                    expected=", ".join(classes),
                    cure="give one for each class, or one number for all",
                )
            )
        return given


class Calibrate(Section):
    """How far probabilities may be taken at their word."""

    bins: Annotated[int, Field(ge=2)]
    voxels: Count
    near_mm: NotNegative
    seed: Annotated[int, Field(ge=0)]


class Ensemble(Section):
    """Several configurations together."""

    weights: Annotated[dict[Configuration, Positive], Field(min_length=1)] | None

    def of(self, configurations: Sequence[str]) -> list[float]:
        """The weight of each configuration."""
        given = {str(name): weight for name, weight in (self.weights or {}).items()}
        return [given.get(name, 1.0) for name in configurations]


class Choose(Section):
    """The best configurations."""

    largest: Count
    measure: Literal["Dice", "IoU"]
    margin: NotNegative


class Postprocess(Section):
    """What is tried to better segmentations."""

    largest_component: bool
    minimum_ml: list[Positive]
    minimum_voxels: list[Count]


class Predict(Section):
    """imagesTs."""

    models: Literal["all", "best"]
    postprocess: bool
    probabilities: Literal["none", "npz", "nifti"]
    calibrated: bool
    uncertainty: bool


class Report(Section):
    """The page about a run."""

    cases: Count
    test_cases: Annotated[int, Field(ge=0)]
    fill_opacity: Annotated[float, Field(ge=0, le=1)]
    outlier_mads: Positive


class Runtime(Section):
    """How the work is done on this machine; part of no digest."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$")]
    num_gpus: Count
    threads: Count | None
    feed_threads: Annotated[int, Field(ge=0)] | None
    feeding: Literal["auto", "device", "host", "file"]
    prefetch: Count
    pin_memory: bool
    compile: Literal["auto", "never", "fused", "graphs"]
    channels_last: bool
    checkpoint_every: Count
    disable_checkpointing: bool
    share_cases_with: list[Annotated[str, Field(min_length=1)]]


class Params(Section):
    """The whole of params.yaml."""

    dataset: Annotated[str, Field(min_length=1)]
    configurations: Annotated[list[Configuration], Field(min_length=1)]
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    phantoms: Phantoms
    download: Download
    check: Check
    plan: Plan
    splits: Splits
    train: Train
    validate_: Validate = Field(alias="validate")
    evaluate: Evaluate
    calibrate: Calibrate
    ensemble: Ensemble
    choose: Choose
    postprocess: Postprocess
    predict: Predict
    report: Report
    search: Search
    runtime: Runtime

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "Params":
        named: dict[str, Sequence[object]] = {"configurations": self.configurations, "folds": self.folds}
        named["search.folds"] = self.search.folds
        for name, values in named.items():
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: {values} names something twice; name each once")
        for name, folds in (("folds", self.folds), ("search.folds", self.search.folds)):
            if max(folds) >= self.splits.n_folds:
                raise ValueError(
                    f"{name}: {max(folds)} does not exist; splits.n_folds: {self.splits.n_folds} "
                    f"gives the folds 0 to {self.splits.n_folds - 1}"
                )
        return self

    @model_validator(mode="after")
    def _each_configuration_has_a_weight(self) -> "Params":
        weights = self.ensemble.weights
        if weights is not None and set(weights) != set(self.configurations):
            wanted = ", ".join(self.configurations)
            raise ValueError(f"ensemble.weights: {', '.join(weights)}; give one for each configuration: {wanted}")
        return self

    @model_validator(mode="after")
    def _averaged_weights_exist(self) -> "Params":
        if self.validate_.weights == "averaged" and self.train.ema.decay is None:
            raise ValueError("validate.weights: averaged needs train.ema.decay, which is null")
        return self

    @property
    def trained(self) -> list[str]:
        """The configurations that are trained: those asked for, and the first stage of a cascade among them."""
        first = ["3d_lowres"] if "3d_cascade_fullres" in self.configurations else []
        return list(dict.fromkeys([*first, *self.configurations]))

    @property
    def dataset_name(self) -> str:
        """The last part of the dataset's path: what its preprocessed folder is called."""
        return Path(self.dataset).resolve().name
