"""params.yaml: each mistake stops the run with its file, key, value and what is expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
        for key, value in changes.items():
            *sections, name = key.split(".")
            block = settings
            for section in sections:
                block = block[section]
            block[name] = value
        return refusal(write(tmp_path, yaml.safe_dump(settings)))

    return load


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


SECTIONS = ["phantoms", "check", "plan", "plan.overrides", "splits", "train", "validate", "runtime"]


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
        ("validate.checkpiont", "checkpoint"),
        ("runtime.devices", "device"),
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
        ("train.learning_rate", "1e-3", "valid number"),
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
        ("train.momentum", 1.0, "less than 1"),
        ("train.learning_rate", 0.0, "greater than 0"),
        ("train.learning_rate", float("nan"), "finite"),
        ("train.oversample_foreground", 1.5, "less than or equal to 1"),
        ("train.precision", "fp8", "'auto', 'bf16', 'fp16' or 'off'"),
        ("validate.checkpoint", "latest", "'final' or 'best'"),
        ("validate.step_size", 0.0, "greater than 0"),
        ("runtime.device", "gpu", "auto|cpu|cuda"),
        ("runtime.threads", 0, "greater than or equal to 1"),
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


def test_an_item_of_a_list_is_named(message: Callable[..., str]) -> None:
    text = message({"configurations": ["2d", "3d_ful"]})
    assert field(text, "where")[0].endswith("params.yaml: configurations.1")
    assert field(text, "found") == ["'3d_ful'"]
    assert "'2d', '3d_fullres' or '3d_lowres'" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("many", "valid integer"),
        (0, "greater than or equal to 1"),
        ({"3d": 4}, "'2d', '3d_fullres' or '3d_lowres'"),
        ({"2d": 0}, "greater than or equal to 1"),
    ],
)
def test_an_override_of_neither_form_is_refused(message: Callable[..., str], value: object, expected: str) -> None:
    text = message({"plan.overrides.batch_size": value})
    assert "params.yaml: plan.overrides.batch_size" in field(text, "where")[0]
    assert expected in text


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
