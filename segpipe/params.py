"""The schema of params.yaml: every key, its type and its range. Nothing has a default; the file says it all."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segpipe.errors import SegpipeError, problem, raise_all

PARAMS_FILE = Path("params.yaml")

Configuration = Literal["2d", "3d_fullres", "3d_lowres"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Spacing = Annotated[list[Positive], Field(min_length=2, max_length=3)]
Patch = Annotated[list[Annotated[int, Field(ge=4)]], Field(min_length=2, max_length=3)]


class Section(BaseModel):
    """A block of params.yaml: no unknown keys, no silent conversions, never changed after reading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Phantoms(Section):
    """The generated dataset."""

    n_train: Annotated[int, Field(ge=5)]
    n_test: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]


class Check(Section):
    """Integrity of the raw dataset."""

    geometry_tolerance_mm: Positive


class Overrides(Section):
    """Planned values replaced by hand: null, one for all configurations, or one by configuration."""

    spacing_mm: Spacing | dict[Configuration, Spacing] | None
    patch_size: Patch | dict[Configuration, Patch] | None
    batch_size: Count | dict[Configuration, Count] | None
    features_base: Count | dict[Configuration, Count] | None

    def of(self, key: str, configuration: str) -> Any:
        """The override of `key` for one configuration, or None."""
        value = getattr(self, key)
        return value.get(configuration) if isinstance(value, dict) else value


class Plan(Section):
    """From the fingerprint to the network."""

    gpu_memory_gb: Annotated[float, Field(ge=1)]
    overrides: Overrides


class Splits(Section):
    """The cross-validation."""

    n_folds: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class Train(Section):
    """The training core."""

    epochs: Count
    iterations_per_epoch: Count
    val_iterations_per_epoch: Count
    learning_rate: Positive
    poly_exponent: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    gradient_clip_norm: Positive
    oversample_foreground: Fraction
    best_ema: Annotated[float, Field(ge=0, lt=1)]
    augment: bool
    mirror_axes: list[Annotated[int, Field(ge=0, le=2)]] | None
    precision: Literal["auto", "bf16", "fp16", "off"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class Validate(Section):
    """Whole-case prediction."""

    checkpoint: Literal["final", "best"]
    step_size: Annotated[float, Field(gt=0, le=1)]
    mirroring: bool
    softmax_dtype: Literal["float16", "float32"]


class Runtime(Section):
    """How the work is done on this machine; part of no digest."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$")]
    threads: Count | None
    prefetch: Count


class Params(Section):
    """The whole of params.yaml."""

    dataset: Annotated[str, Field(min_length=1)]
    configurations: Annotated[list[Configuration], Field(min_length=1)]
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    phantoms: Phantoms
    check: Check
    plan: Plan
    splits: Splits
    train: Train
    validate_: Validate = Field(alias="validate")
    runtime: Runtime

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "Params":
        for name in ("configurations", "folds"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: {values} names something twice; name each once")
        if max(self.folds) >= self.splits.n_folds:
            raise ValueError(
                f"folds: {max(self.folds)} does not exist; splits.n_folds: {self.splits.n_folds} "
                f"gives the folds 0 to {self.splits.n_folds - 1}"
            )
        return self

    @property
    def dataset_name(self) -> str:
        """The last part of the dataset's path: what its preprocessed folder is called."""
        return Path(self.dataset).resolve().name


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; the standard reader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((node.value[i][0] for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice.value!r} stands here twice", twice.start_mark)
        return super().construct_mapping(node, deep)


def load(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises SegpipeError naming file, key, value, what is expected and the nearest valid key, for all errors at once.
    """
    try:
        raw = yaml.load(path.read_text(), _UniqueKeys)
    except FileNotFoundError:
        raise SegpipeError(
            problem(
                "no settings",
                where=path,
                found="no such file",
                expected="params.yaml in the working directory",
                cure="run from the project's folder, or copy params.yaml there",
            )
        ) from None
    except yaml.YAMLError as error:
        raise SegpipeError(
            problem(
                "params.yaml is not YAML",
                where=path,
                found=error,
                expected="key: value lines",
                cure="correct the line named above",
            )
        ) from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise_all(str(path), dict.fromkeys(_explain(path, item) for item in error.errors()))
        raise


def section(params: Params, name: str) -> dict[str, Any]:
    """One block as plain data, as it enters digests and Snakemake's params."""
    return params.model_dump(by_alias=True, mode="json")[name]


def _explain(path: Path, item: Any) -> str:
    """One line of pydantic's list as a problem in our words."""
    # where a key takes several types pydantic adds the one that it tried
    keys = [str(key) for key in item["loc"] if not re.match(r"constrained-|(list|dict)\[", str(key))]
    key = ".".join(keys) or "(top level)"
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(item["loc"][:-1])
        near = difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.5)
        cure = f"did you mean {near[0]!r}?" if near else f"remove it; valid keys: {', '.join(valid)}"
        return problem(
            "unknown key",
            where=f"{path}: {key}",
            found=repr(item["input"]),
            expected=f"one of {', '.join(valid)}",
            cure=cure,
        )
    if item["type"] == "missing":
        return problem(
            "missing key",
            where=f"{path}: {key}",
            found="nothing",
            expected="a value",
            cure=f"add the line '{keys[-1]}: ...' (the params.yaml of a fresh clone shows all of them)",
        )
    return problem(
        "impossible value",
        where=f"{path}: {key}",
        found=repr(item["input"]) if keys else "see below",
        expected=item["msg"],
        cure="change the value; the comment beside it names unit and range",
    )


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys that a block of the schema takes."""
    model: type[BaseModel] = Params
    for key in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        model = fields[key].annotation  # type: ignore[assignment]
    return [field.alias or name for name, field in model.model_fields.items()]
