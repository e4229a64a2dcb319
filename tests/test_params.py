"""params.yaml: each mistake stops the run with its file, key, value and what is expected."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segpipe import params
from segpipe.errors import SegpipeError

REPO = Path(__file__).resolve().parents[1]
Settings = dict[str, Any]


@pytest.fixture
def settings() -> Settings:
    content: Settings = yaml.safe_load((REPO / "params.yaml").read_text())
    return content


@pytest.fixture
def message(tmp_path: Path, settings: Settings) -> Callable[..., str]:
    """What `load` says to the project's settings after some changes, `key={"train.epochs": 3}`."""

    def load(changes: dict[str, Any]) -> str:
        set_all(settings, changes)
        return refusal(write(tmp_path, yaml.safe_dump(settings)))

    return load


def set_all(settings: Settings, changes: Settings) -> None:
    for key, value in changes.items():
        *sections, name = key.split(".")
        block = settings
        for section in sections:
            block = block[section]
        block[name] = value


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        params.load(path)
    return str(error.value)


def field(text: str, name: str) -> list[str]:
    """The lines `  name: ...` of a message's problems."""
    return [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(f"  {name}:")]


def test_the_projects_own_settings_are_read(settings: Settings) -> None:
    loaded = params.load(REPO / "params.yaml")
    assert loaded.model_dump(by_alias=True, mode="json") == settings
    assert params.section(loaded, "validate") == settings["validate"]
    assert loaded.dataset_name == "Dataset000_Phantoms"


def fields(model: type[BaseModel] = params.Params, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the schema, blocks too, with its path."""
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        yield key, info
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{key}.")


def test_every_key_of_the_schema_is_in_the_file_and_none_has_a_default(settings: Settings) -> None:
    assert [key for key, info in fields() if not info.is_required()] == []
    for key, _ in fields():
        block: Any = settings
        for name in key.split("."):
            assert name in block, key
            block = block[name]


def test_every_key_has_a_comment_beside_it_or_above_it() -> None:
    """A block's comment counts for a key that it names."""
    lines = (REPO / "params.yaml").read_text().splitlines()
    silent, above = [], ""
    for line, before in zip(lines, ["", *lines], strict=False):
        if line.startswith("#") or line.strip().startswith("#"):
            above = f"{above} {line}" if before.strip().startswith("#") else line
        key = re.match(r"\s*(\w+):", line)
        if key and " # " not in line and not before.strip().startswith("#") and key[1] not in above:
            silent.append(key[1])
    # said by their block's name, or by the comments of their own keys
    assert set(silent) <= {"overrides", "optimiser", "schedule", "loss"}


SECTIONS = [
    key for key, info in fields() if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
]


def test_the_blocks_of_the_training_are_found() -> None:
    blocks = ["optimiser", "schedule", "loss", "ema", "best", "early_stopping", "full_validation"]
    assert {f"train.{block}" for block in blocks} <= set(SECTIONS)


@pytest.mark.parametrize("section", ["", *SECTIONS])
def test_an_unknown_key_is_refused_in_every_section(message: Callable[..., str], section: str) -> None:
    key = f"{section}.zzzzz".lstrip(".")
    text = message({key: "some value"})
    assert field(text, "where") == [f"{text.split(':')[0]}: {key}"]
    assert "params.yaml: 1 problem" in text
    assert field(text, "found") == ["'some value'"]
    assert field(text, "cure")[0].startswith("remove it; valid keys: ")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("datset", "dataset"),
        ("validat", "validate"),
        ("phantoms.n_trian", "n_train"),
        ("check.geometry_tolerance", "geometry_tolerance_mm"),
        ("plan.gpu_memory", "gpu_memory_gb"),
        ("plan.overrides.batchsize", "batch_size"),
        ("splits.nfolds", "n_folds"),
        ("train.epoch", "epochs"),
        ("train.optimizer", "optimiser"),
        ("train.optimiser.learningrate", "learning_rate"),
        ("train.schedule.warmup", "warmup_steps"),
        ("train.loss.regions_weight", "region_weight"),
        ("train.ema.decai", "decay"),
        ("train.early_stopping.patients", "patience"),
        ("train.full_validation.evry", "every"),
        ("validate.checkpiont", "checkpoint"),
        ("runtime.devices", "device"),
        ("runtime.feedthreads", "feed_threads"),
    ],
)
def test_the_nearest_valid_key_is_suggested(message: Callable[..., str], key: str, nearest: str) -> None:
    text = message({key: 1})
    assert field(text, "cure") == [f"did you mean {nearest!r}?"]
    assert nearest in field(text, "expected")[0]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "many", "valid integer"),
        ("train.epochs", 3.0, "valid integer"),
        ("train.epochs", True, "valid integer"),
        ("train.augment", "yes", "valid boolean"),
        ("train.optimiser.learning_rate", "fast", "valid number"),
        ("train.max_steps", 50.5, "valid integer"),
        ("train.replacement", "no", "valid boolean"),
        ("train.best.fitness", ["dice_mean"], "valid dictionary"),
        ("train.optimiser.rate_factors", 1.0, "valid dictionary"),
        ("train.optimiser", None, "valid dictionary"),
        ("train.freeze", "encoder.*", "valid list"),
        ("train.callbacks", None, "valid list"),
        ("runtime.compile", True, "'auto', 'never', 'fused' or 'graphs'"),
        ("train.mirror_axes", 0, "valid list"),
        ("train", None, "valid dictionary"),
        ("plan.overrides", [1], "valid dictionary"),
        ("dataset", 7, "valid string"),
        ("folds", "all", "valid list"),
    ],
)
def test_a_wrong_type_is_refused_not_converted(
    message: Callable[..., str], key: str, value: object, expected: str
) -> None:
    text = message({key: value})
    assert field(text, "where")[0].endswith(f"params.yaml: {key}")
    assert field(text, "found") == [repr(value)]
    assert expected in field(text, "expected")[0]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.epochs", "all", "valid integer"),
        ("train.iterations_per_epoch", "passes", "'pass'"),
        ("train.iterations_per_epoch", 0, "greater than or equal to 1"),
        ("train.val_iterations_per_epoch", 0, "greater than or equal to 1"),
        ("train.accumulate", 0, "greater than or equal to 1"),
        ("train.on_extend", "resume", "'restart' or 'continue'"),
        ("train.optimiser.momentum", 1.0, "less than 1"),
        ("train.optimiser.learning_rate", 0.0, "greater than 0"),
        ("train.optimiser.learning_rate", float("nan"), "finite"),
        ("train.optimiser.clip_norm", 0.0, "greater than 0"),
        ("train.optimiser.weight_decay", -1e-5, "greater than or equal to 0"),
        ("train.optimiser.betas", [0.9], "at least 2 items"),
        ("train.optimiser.betas", [0.9, 0.99, 0.999], "at most 2 items"),
        ("train.schedule.per", "step", "'epoch' or 'iteration'"),
        ("train.schedule.warmup_steps", -1, "greater than or equal to 0"),
        ("train.schedule.poly_exponent", 0.0, "greater than 0"),
        ("train.schedule.final_factor", 0.0, "greater than 0"),
        ("train.schedule.final_factor", 1.1, "less than or equal to 1"),
        ("train.schedule.step_factor", 1.5, "less than or equal to 1"),
        ("train.loss.region", "iou", "'dice' or 'tversky'"),
        ("train.loss.voxel", "bce", "'cross_entropy', 'topk' or 'focal'"),
        ("train.loss.topk_percent", 0.0, "greater than 0"),
        ("train.loss.topk_percent", 101.0, "less than or equal to 100"),
        ("train.loss.boundary_width", 0, "greater than or equal to 1"),
        ("train.loss.deep_supervision", [], "at least 1 item"),
        ("train.ema.decay", 1.0, "less than 1"),
        ("train.ema.decay", 0.0, "greater than 0"),
        ("train.ema.ramp_steps", -1, "greater than or equal to 0"),
        ("train.best.smoothing", 1.0, "less than 1"),
        ("train.best.fitness", {}, "at least 1 item"),
        ("train.early_stopping.patience", 0, "greater than or equal to 1"),
        ("train.early_stopping.min_delta", -0.1, "greater than or equal to 0"),
        ("train.full_validation.every", 0, "greater than or equal to 1"),
        ("train.full_validation.step_size", 1.1, "less than or equal to 1"),
        ("train.full_validation.weights", "ema", "'raw' or 'averaged'"),
        ("train.initialisation", "kaiming", "'he', 'xavier' or 'orthogonal'"),
        ("train.seed", -1, "greater than or equal to 0"),
        ("train.seed", 2**63, "less than 9223372036854775808"),
        ("train.oversample_foreground", 1.5, "less than or equal to 1"),
        ("train.precision", "fp8", "'auto', 'bf16', 'fp16' or 'off'"),
        ("validate.checkpoint", "latest", "'final' or 'best'"),
        ("validate.step_size", 0.0, "greater than 0"),
        ("runtime.device", "gpu", "auto|cpu|cuda"),
        ("runtime.threads", 0, "greater than or equal to 1"),
        ("runtime.device", "cuda:", "auto|cpu|cuda"),
        ("runtime.feed_threads", -1, "greater than or equal to 0"),
        ("runtime.prefetch", 0, "greater than or equal to 1"),
        ("runtime.checkpoint_every", 0, "greater than or equal to 1"),
        ("splits.n_folds", 1, "greater than or equal to 2"),
        ("splits.seed", 2**32, "less than 4294967296"),
        ("check.geometry_tolerance_mm", -0.1, "greater than 0"),
        ("configurations", [], "at least 1 item"),
        ("dataset", "", "at least 1 character"),
    ],
)
def test_an_impossible_value_is_refused(message: Callable[..., str], key: str, value: object, expected: str) -> None:
    text = message({key: value})
    assert field(text, "where")[0].endswith(f"params.yaml: {key}")
    assert field(text, "found") == [repr(value)]
    assert expected in field(text, "expected")[0]
    assert "params.yaml: 1 problem\n" in text


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("train.optimiser.name", "adam", "adamw"),
        ("train.schedule.name", "cosin", "cosine"),
        ("train.loss.region", "twersky", "tversky"),
        ("train.iterations_per_epoch", "passes", "pass"),
        ("train.precision", "fp15", "fp16"),
        ("train.precision", "of", "off"),
    ],
)
def test_the_nearest_word_is_suggested(message: Callable[..., str], key: str, value: str, nearest: str) -> None:
    assert field(message({key: value}), "cure") == [f"did you mean {nearest!r}?"]


@pytest.mark.parametrize(("key", "value"), [("train.optimiser.name", "lion"), ("train.epochs", 0), ("dataset", 7)])
def test_where_no_word_is_near_the_comment_is_pointed_to(message: Callable[..., str], key: str, value: object) -> None:
    assert field(message({key: value}), "cure") == ["change the value; the comment beside it says what it is"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("3e-4", 3e-4),
        ("1E-3", 1e-3),
        ("2e0", 2.0),
        ("+5e-2", 0.05),
        ("1e+1", 10.0),
        ("1.5e-4", 1.5e-4),
        ("1.5e1", 15.0),
        (".5e-1", 0.05),
        ("5.e-2", 0.05),
    ],
)
def test_a_power_of_ten_is_a_number(tmp_path: Path, written: str, read: float) -> None:
    """YAML 1.1 takes those without a point, and without a sign after the e, for text."""
    text = (REPO / "params.yaml").read_text()
    text, n = re.subn(r" learning_rate: \S+", f" learning_rate: {written}", text)
    assert n == 1
    assert params.load(write(tmp_path, text)).train.optimiser.learning_rate == read


def test_off_is_a_word_and_not_false(tmp_path: Path) -> None:
    """As the comment of the setting says it, and as DVC writes it."""
    text = (REPO / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"(?m)^  precision: \w+", "  precision: off", text))
    read = params.load(path)
    assert (read.train.precision, read.validate_.precision) == ("off", "off")
    assert read.validate_.mirroring is True


@pytest.mark.parametrize("written", ["e5", "1e", "1e-", "3e-4x", "'3e-4'", "1e2e3", ".e1", "e", "-e3"])
def test_what_only_looks_like_a_power_of_ten_is_text(tmp_path: Path, written: str) -> None:
    text = re.sub(r" learning_rate: \S+", f" learning_rate: {written}", (REPO / "params.yaml").read_text())
    assert "valid number" in refusal(write(tmp_path, text))


def test_a_power_of_ten_is_no_integer(tmp_path: Path) -> None:
    text = re.sub(r"  epochs: \S+", "  epochs: 1e3", (REPO / "params.yaml").read_text())
    said = refusal(write(tmp_path, text))
    assert field(said, "found") == ["1000.0"]
    assert "valid integer" in said


def test_other_files_are_read_as_before() -> None:
    assert yaml.safe_load("3e-4") == "3e-4"


def test_an_item_of_a_list_is_named(message: Callable[..., str]) -> None:
    text = message({"configurations": ["2d", "3d_ful"]})
    assert field(text, "where")[0].endswith("params.yaml: configurations.1")
    assert field(text, "found") == ["'3d_ful'"]
    assert "'2d', '3d_fullres', '3d_lowres' or '3d_cascade_fullres'" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("many", "valid integer"),
        (0, "greater than or equal to 1"),
        ({"3d": 4}, "'2d', '3d_fullres', '3d_lowres' or '3d_cascade_fullres'"),
        ({"2d": 0}, "greater than or equal to 1"),
    ],
)
def test_an_override_of_neither_form_is_refused(message: Callable[..., str], value: object, expected: str) -> None:
    text = message({"plan.overrides.batch_size": value})
    assert "params.yaml: plan.overrides.batch_size" in field(text, "where")[0]
    assert expected in text


@pytest.mark.parametrize(
    ("key", "value", "one", "other"),
    [
        ("train.iterations_per_epoch", "many", "valid integer", "'pass'"),
        ("train.iterations_per_epoch", 0, "greater than or equal to 1", "'pass'"),
        ("train.optimiser.name", "adam", "'sgd' or 'adamw'", "an import path, package.module:name"),
        (
            "train.schedule.name",
            "linear",
            "'poly', 'cosine', 'exponential', 'step' or 'constant'",
            "an import path, package.module:name",
        ),
        ("plan.overrides.batch_size", "many", "valid integer", "valid dictionary"),
        ("plan.overrides.spacing_mm", 3, "valid list", "valid dictionary"),
    ],
)
def test_a_key_that_takes_several_types_is_one_problem_that_names_them_all(
    message: Callable[..., str], key: str, value: object, one: str, other: str
) -> None:
    text = message({key: value})
    assert "params.yaml: 1 problem\n" in text
    assert [where.split(": ")[1] for where in field(text, "where")] == [key]
    assert field(text, "found") == [repr(value)]
    (expected,) = field(text, "expected")
    assert one in expected
    assert other in expected


PATHS = {
    "train.optimiser.name": "x",
    "train.schedule.name": "x",
    "train.loss.custom": "x",
    "train.network": "x",
    "train.callbacks": ["x"],
}


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    "path", ["mine", "mine.loss", "mine:", ":loss", "my-code:loss", "mine.:loss", "mine:a.b", "1:a"]
)
def test_what_is_no_import_path_is_refused(message: Callable[..., str], key: str, path: str) -> None:
    text = message({key: [path] if isinstance(PATHS[key], list) else path})
    assert "params.yaml: 1 problem\n" in text
    assert key in field(text, "where")[0]
    assert "an import path, package.module:name" in field(text, "expected")[0]


@pytest.mark.parametrize("path", ["mine:loss", "my_code.losses.own:Loss2", "_a._b:_c"])
def test_import_paths_are_taken(tmp_path: Path, settings: Settings, path: str) -> None:
    settings["train"].update(network=path, callbacks=[path, path])
    settings["train"]["optimiser"]["name"] = settings["train"]["schedule"]["name"] = path
    settings["train"]["loss"]["custom"] = path
    train = params.load(write(tmp_path, yaml.safe_dump(settings))).train
    assert {train.network, *train.callbacks, train.optimiser.name, train.schedule.name, train.loss.custom} == {path}


# settings that must fit each other


@pytest.mark.parametrize(
    ("changes", "where", "says"),
    [
        ({"train.max_steps": 100}, "train", "epochs and max_steps: exactly one of the two must be null"),
        ({"train.epochs": None}, "train", "epochs and max_steps: exactly one of the two must be null"),
        ({"train.optimiser.rate_factors": {"heads": 1.0}}, "train.optimiser", "no factor for decoder, encoder"),
        (
            {"train.loss.region_weight": 0.0, "train.loss.voxel_weight": 0.0},
            "train.loss",
            "region_weight and voxel_weight are both 0",
        ),
        ({"train.loss.deep_supervision": [0.0, 0.0]}, "train.loss", "deep_supervision: all weights are 0"),
        (
            {"train.loss.region": "tversky", "train.loss.tversky_alpha": 0.0, "train.loss.tversky_beta": 0.0},
            "train.loss",
            "tversky_alpha and tversky_beta are both 0",
        ),
        ({"train.mirror_axes": [0, 1, 0]}, "train", "mirror_axes: [0, 1, 0] names an axis twice"),
        ({"train.full_validation.weights": "averaged"}, "train", "full_validation.weights: averaged needs ema.decay"),
        ({"validate.weights": "averaged"}, "(top level)", "validate.weights: averaged needs train.ema.decay"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(
    message: Callable[..., str], changes: Settings, where: str, says: str
) -> None:
    text = message(changes)
    assert "params.yaml: 1 problem\n" in text
    assert field(text, "where")[0].endswith(f"params.yaml: {where}")
    assert says in field(text, "found")[0]
    assert "\nsettings that exclude each other\n" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"train.epochs": None, "train.max_steps": 100},
        {"train.iterations_per_epoch": "pass"},
        {"train.ema.decay": 0.9, "train.full_validation.weights": "averaged", "validate.weights": "averaged"},
        {"train.loss.region_weight": 0.0},
        {"train.loss.voxel_weight": 0.0},
        {"train.loss.tversky_alpha": 0.0, "train.loss.tversky_beta": 0.0},  # of no region term that is used
        {"train.loss.region": "tversky", "train.loss.tversky_alpha": 0.0, "train.loss.tversky_beta": 1.0},
        {
            "train.loss.region": "tversky",
            "train.loss.region_weight": 0.0,
            "train.loss.tversky_alpha": 0.0,
            "train.loss.tversky_beta": 0.0,
        },
        {"train.mirror_axes": []},
        {"train.loss.deep_supervision": [0.0, 1.0]},
        {"train.optimiser.clip_norm": None},
        {"train.optimiser.momentum": 0.0},
        {"train.schedule.steps_at": []},
        {"train.best.fitness": {"dice_liver": 0.5, "val_loss": -0.1}},
        {"runtime.device": "cuda:1"},
    ],
)
def test_settings_that_fit_are_taken(tmp_path: Path, settings: Settings, changes: Settings) -> None:
    set_all(settings, changes)
    loaded = params.load(write(tmp_path, yaml.safe_dump(settings)))
    assert loaded.model_dump(by_alias=True, mode="json") == settings


def test_a_factor_of_a_part_that_does_not_exist_is_refused(message: Callable[..., str]) -> None:
    factors = {"encoder": 1.0, "decoder": 1.0, "head": 1.0}
    text = message({"train.optimiser.rate_factors": factors})
    assert "params.yaml: 1 problem\n" in text
    assert "train.optimiser.rate_factors.head" in field(text, "where")[0]
    assert "'encoder', 'decoder' or 'heads'" in text


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """The second `epochs` would win without a word."""
    text = (Path(__file__).parents[1] / "params.yaml").read_text().replace("train:\n", "train:\n  epochs: 3\n")
    said = refusal(write(tmp_path, text))
    assert "'epochs' stands here twice" in said
    assert "line " in said


def test_overrides_take_null_one_value_or_one_by_configuration(tmp_path: Path, settings: Settings) -> None:
    settings["plan"]["overrides"].update(spacing_mm=None, batch_size={"2d": 12}, patch_size=[8, 8, 8], features_base=3)
    overrides = params.load(write(tmp_path, yaml.safe_dump(settings))).plan.overrides
    assert overrides.of("spacing_mm", "2d") is None
    assert (overrides.of("batch_size", "2d"), overrides.of("batch_size", "3d_fullres")) == (12, None)
    assert overrides.of("patch_size", "3d_fullres") == [8, 8, 8]
    assert overrides.of("features_base", "3d_lowres") == 3


def test_a_fold_that_is_not_drawn_is_refused(message: Callable[..., str]) -> None:
    text = message({"folds": [0, 3], "splits.n_folds": 3})
    assert "folds: 3 does not exist; splits.n_folds: 3 gives the folds 0 to 2" in text


@pytest.mark.parametrize(("key", "value"), [("folds", [1, 1]), ("configurations", ["2d", "2d"])])
def test_nothing_is_listed_twice(message: Callable[..., str], key: str, value: object) -> None:
    assert f"{key}: {value} names something twice" in message({key: value})


def test_all_mistakes_are_reported_at_once(message: Callable[..., str]) -> None:
    text = message({"train.epochz": 3, "validate.checkpoint": "last", "phantoms.n_test": -1, "typo": 1})
    assert "params.yaml: 4 problems" in text
    keys = {where.rsplit(": ", 1)[1] for where in field(text, "where")}
    assert keys == {"train.epochz", "validate.checkpoint", "phantoms.n_test", "typo"}


@pytest.mark.parametrize("key", ["dataset", "train", "train.seed", "plan.overrides.batch_size"])
def test_a_missing_key_is_named(tmp_path: Path, settings: Settings, key: str) -> None:
    *sections, name = key.split(".")
    block = settings
    for section in sections:
        block = block[section]
    del block[name]
    text = refusal(write(tmp_path, yaml.safe_dump(settings)))
    assert field(text, "where") == [f"{tmp_path / 'params.yaml'}: {key}"]
    assert f"add the line '{name}: ...'" in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in text
    assert "no such file" in text


def test_a_yaml_error_names_file_and_line(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, "dataset: here\ntrain: [\n"))
    assert str(tmp_path / "params.yaml") in text
    assert "line 3" in text


@pytest.mark.parametrize("content", ["", "- a list", "just text"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    assert "valid dictionary" in refusal(write(tmp_path, content))


def test_settings_cannot_be_changed_after_reading() -> None:
    loaded = params.load(REPO / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 1


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("evaluate.nsd_tolerance_mm", 0.0, "greater than 0"),
        ("evaluate.nsd_tolerance_mm", {}, "at least 1 item"),
        ("evaluate.lesion_match", "all", "'any'"),
        ("evaluate.lesion_match", 1.5, "less than or equal to 1"),
        ("evaluate.lesion_connectivity", 8, "6, 18 or 26"),
        ("evaluate.confidence_level", 1.0, "less than 1"),
    ],
)
def test_a_way_to_score_that_does_not_exist_is_refused(
    message: Callable[..., str], key: str, value: object, expected: str
) -> None:
    assert expected in field(message({key: value}), "expected")[0]


def test_another_way_to_score_is_another_identity_and_another_level_is_none(settings: Settings, tmp_path: Path) -> None:
    before = params.load(write(tmp_path, yaml.safe_dump(settings))).evaluate.scoring()
    set_all(settings, {"evaluate.confidence_level": 0.9, "evaluate.bootstrap_seed": 1})
    assert params.load(write(tmp_path, yaml.safe_dump(settings))).evaluate.scoring() == before
    for key, value in (("nsd_tolerance_mm", {"liver": 1.0}), ("lesion_match", 0.1), ("lesion_connectivity", 6)):
        set_all(settings, {f"evaluate.{key}": value})
        after = params.load(write(tmp_path, yaml.safe_dump(settings))).evaluate.scoring()
        assert after != before
        before = after
