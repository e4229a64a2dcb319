"""`segpipe init`: an experiment with settings of its own."""

import difflib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from volumes import REPO

from segpipe import params
from segpipe.cli import main as command

SOURCE = (REPO / "params.yaml").read_text()
GENERATED = "data/raw/Dataset000_Phantoms"
TASK = "data/raw/Task04_Hippocampus"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a project with the settings of this one."""
    monkeypatch.setattr(command, "start_log", lambda path: None)
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text(SOURCE)
    (folder / "Snakefile").touch()
    return folder


def init(*arguments: object) -> None:
    command.main(["init", *map(str, arguments)])


def refused(caplog: pytest.LogCaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        init(*arguments)
    assert ended.value.code == 2
    return caplog.text


def made(folder: str = "experiments/a") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(folder, "params.yaml").read_text())
    return content


def set_in_source(**values: Any) -> None:
    text = params.changed(SOURCE, {key.replace("__", "."): value for key, value in values.items()}, "params.yaml")
    Path("params.yaml").write_text(text)


# what is written


def test_all_but_what_is_set_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    init("experiments/a", "--set", "train.epochs=100", "folds=[0, 1]", "--set", "train.optimiser.learning_rate=1e-3")
    new = Path("experiments/a/params.yaml").read_text()
    lines = difflib.unified_diff(SOURCE.splitlines(), new.splitlines(), n=0)
    added = [line[1:].strip() for line in list(lines)[2:] if line[0] == "+"]
    assert [line.partition(" #")[0] for line in added] == [
        "folds: [0, 1]",
        "epochs: 100",
        "learning_rate: 0.001",
        "share_cases_with: [../.., ../*]",
    ]
    assert new.count("#") == SOURCE.count("#")
    assert params.load(Path("experiments/a/params.yaml")).train.epochs == 100
    said = capsys.readouterr().out
    assert "train.epochs: 100   (was 50)\n" in said
    assert "run it:   snakemake --cores all --directory experiments/a\n" in said
    assert "segpipe compare experiments/*" in said


def test_a_change_of_chosen_keys_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    init("experiments/a", "--set", "train.best.fitness={dice_liver: 1.0}")
    assert "train.best.fitness: {dice_liver: 1.0}   (was {dice_mean: 1.0})\n" in capsys.readouterr().out


def test_what_moves_along_is_no_change_and_values_are_yaml(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    set_in_source(dataset="data/raw/Dataset001_Own")
    (project / "other/imagesTr").mkdir(parents=True)
    init("experiments/a", "--set", "train.augment=false", "train.ema.decay=0.9")
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] == " "] == [
        "  train.augment: false   (was true)",
        "  train.ema.decay: 0.9   (was null)",
    ]
    init("experiments/b", "--dataset", "other")
    said = capsys.readouterr().out
    assert "  dataset: ../../other   (was data/raw/Dataset001_Own)\n" in said


def test_the_call_that_compares_is_named_where_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    init("alone")
    assert "segpipe compare" not in capsys.readouterr().out  # the project's own files lie beside it
    init("experiments/a")
    assert "compare:  segpipe compare experiments/*\n" in capsys.readouterr().out
    Path("experiments/notes.txt").touch()
    init("experiments/b")
    assert "segpipe compare" not in capsys.readouterr().out


def test_what_is_wrong_with_the_source_is_said_of_it(caplog: pytest.LogCaptureFixture) -> None:
    set_in_source(train__augment=3)
    said = refused(caplog, "experiments/a", "--set", "train.seed=none")
    assert "where:    params.yaml: train.augment\n" in said
    assert "where:    --set train.seed\n" in said


def test_one_experiment_from_another() -> None:
    init("experiments/a", "--set", "train.epochs=7")
    init("experiments/b", "--from", "experiments/a", "--set", "train.seed=1")
    assert made("experiments/b") == {**made(), "train": {**made()["train"], "seed": 1}}
    init("elsewhere/c", "--from", "experiments/b/params.yaml")
    assert made("elsewhere/c")["runtime"]["share_cases_with"] == ["../..", "../../experiments/*"]


def test_without_a_project_here_the_installed_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    init("my folder")
    assert made("my folder")["train"] == yaml.safe_load(SOURCE)["train"]
    call = f"snakemake --cores all --directory 'my folder' --snakefile {REPO / 'Snakefile'}"
    assert call in capsys.readouterr().out


# paths


@pytest.mark.parametrize("key", ["plan.file", "splits.file", "train.pretrained_weights"])
def test_files_of_the_source_and_given_ones_are_found(key: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {f"plan__overrides__{name}": None for name in ("patch_size", "batch_size", "features_base")}
    set_in_source(**overrides, **{key.replace(".", "__"): "given/file"})
    (project / "given").mkdir()
    (project / "given/file").touch()
    init("experiments/a")
    monkeypatch.chdir(project / "given")
    init("../experiments/b", "--from", "..", "--set", f"{key}=file")
    init("../experiments/c", "--from", "..", "--set", f"{key}={project}/given/file")
    section, name = key.split(".")
    monkeypatch.chdir(project)
    assert made("experiments/a")[section][name] == "../../given/file"
    assert made("experiments/b")[section][name] == "../../given/file"
    assert made("experiments/c")[section][name] == f"{project}/given/file"


def test_weights_that_a_search_may_choose_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "train.pretrained_weights"
    set_in_source(search__ranges={"train.epochs": [5, 6], key: [None, "own/a.pth", "/there/b.pth"]})
    init("experiments/a", "--set", "search.trials=3")
    assert made()["search"]["ranges"] == {"train.epochs": [5, 6], key: [None, "../../own/a.pth", "/there/b.pth"]}
    (project / "own").mkdir()
    monkeypatch.chdir(project / "own")
    init("../experiments/b", "--from", "..", "--set", f"search.ranges={{{key}: [a.pth, ../b.pth]}}")
    monkeypatch.chdir(project)
    assert made("experiments/b")["search"]["ranges"] == {key: ["../../own/a.pth", "../../b.pth"]}


def test_dots_are_counted_from_where_a_link_leads(project: Path, tmp_path: Path) -> None:
    (tmp_path / "large/deep/disk").mkdir(parents=True)
    (project / "experiments").symlink_to(tmp_path / "large/deep/disk")
    set_in_source(dataset="data/raw/Dataset001_Own")
    init("experiments/a")
    assert made()["dataset"] == "../../../../project/data/raw/Dataset001_Own"
    assert os.path.realpath(Path("experiments/a", made()["dataset"])) == str(project / "data/raw/Dataset001_Own")
    init("experiments/b", "--from", "experiments/a")
    assert made("experiments/b") == made("experiments/a")


@pytest.mark.parametrize(
    ("of_source", "there", "given", "expected"),
    [
        (GENERATED, True, None, GENERATED),  # settings `phantoms` of its own
        (GENERATED, True, GENERATED, f"../../{GENERATED}"),
        (GENERATED, False, GENERATED, GENERATED),
        (TASK, False, None, TASK),
        (TASK, True, None, f"../../{TASK}"),
        (GENERATED, False, TASK, TASK),
        ("data/raw/Dataset001_Own", False, None, "../../data/raw/Dataset001_Own"),  # it may be on another machine
    ],
)
def test_where_the_dataset_lies(of_source: str, there: bool, given: str | None, expected: str, project: Path) -> None:
    set_in_source(dataset=of_source)
    if there:
        (project / of_source / "imagesTr").mkdir(parents=True)
    init("experiments/a", *(["--dataset", given] if given else []))
    assert made()["dataset"] == expected


# modules


def test_own_modules_come_along_with_what_they_import(project: Path) -> None:
    (project / "own").mkdir()
    (project / "own/losses.py").write_text("import numpy\nfrom helpers import two\nimport segpipe.errors\n")
    (project / "own/more.py").touch()
    (project / "own/notes.txt").touch()
    (project / "helpers.py").write_text("import own.more\n")
    (project / "unrelated.py").touch()
    (project / "segpipe").mkdir()
    (project / "segpipe/errors.py").touch()
    set_in_source(train__loss__custom="own.losses:Loss")
    init("experiments/a", "--set", "train.callbacks=['numpy:save']")
    files = {
        path.relative_to("experiments/a").as_posix() for path in Path("experiments/a").rglob("*") if path.is_file()
    }
    assert files == {"params.yaml", "own/losses.py", "own/more.py", "helpers.py"}
    (project / "helpers.py").write_text("three = 3\n")
    assert "helpers" in Path("experiments/a/own/losses.py").read_text()
    assert Path("experiments/a/helpers.py").read_text() == "import own.more\n"


def test_modules_that_a_search_may_choose_come_along(project: Path) -> None:
    for name in ("losses", "networks", "notes"):
        (project / f"{name}.py").touch()
    choices = {"train.loss.custom": [None, "losses:Loss"], "train.callbacks": [[], ["notes:note", "numpy:save"]]}
    set_in_source(search__ranges={**choices, "train.network": ["networks:Own", None], "train.epochs": {"low": 1}})
    init("experiments/a")
    assert {path.name for path in Path("experiments/a").iterdir()} == {
        *("params.yaml", "losses.py", "networks.py", "notes.py"),
    }


def test_a_module_replaces_no_other(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    (project / "losses.py").write_text("one = 1\n")
    (project / "experiments/a").mkdir(parents=True)
    (project / "experiments/a/losses.py").write_text("two = 2\n")
    set_in_source(train__loss__custom="losses:one")
    assert "another module of that name\n  where:    experiments/a/losses.py" in refused(caplog, "experiments/a")
    assert not Path("experiments/a/params.yaml").exists()
    (project / "experiments/a/losses.py").write_text("one = 1\n")
    init("experiments/a")


# what is refused


def test_everything_that_is_wrong_is_said_at_once_and_nothing_written(caplog: pytest.LogCaptureFixture) -> None:
    wrong = ["train.epohs=3", "train.seed=none", "splits.file=nowhere.json", "validate.checkpoint=bset"]
    said = refused(caplog, "experiments/a", "--set", *wrong, "--dataset", "data/raw/Dataset001_Absent")
    assert "experiments/a cannot be made: 5 problems" in said
    assert "did you mean 'epochs'?" in said
    assert "did you mean 'best'?" in said
    for option in ("--set train.epohs", "--set train.seed", "--set validate.checkpoint"):
        assert f"where:    {option}\n" in said
    assert "where:    --set splits.file\n  found:    nowhere.json" in said
    assert "no such path\n  where:    --dataset\n  found:    data/raw/Dataset001_Absent" in said
    assert not Path("experiments").exists()


def test_an_experiment_is_never_overwritten(caplog: pytest.LogCaptureFixture) -> None:
    init("experiments/a")
    before = Path("experiments/a/params.yaml").read_text()
    assert "there is an experiment already" in refused(caplog, "experiments/a", "--set", "train.epochs=3")
    assert Path("experiments/a/params.yaml").read_text() == before
    assert "there is an experiment already" in refused(caplog, ".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["params.yaml"], "not a folder"),
        (["a", "--from", "nowhere"], "no settings to start from\n  where:    nowhere"),
        (["a", "--set", "train.epochs=[1"], "not a value\n  where:    --set train.epochs\n  found:    [1\n"),
        (["a", "--set", "train.epochs=[1", "folds={"], "a cannot be made: 2 problems"),
        (["a", "--set", "train.loss=3"], "where:    --set train.loss\n"),
        (["a", "--set", "train.optimiser={name: sgd}"], "where:    --set train.optimiser (train.optimiser.betas)\n"),
        (["a", "--set", "train.max_steps=3"], "where:    --set train.max_steps (train)\n"),
        (["a", "--set", "folds=[7]"], "where:    --set folds\n"),
        (["/proc/a"], "the experiment cannot be made\n  where:    /proc/a"),
        (["params.yaml/a"], "the experiment cannot be made\n  where:    params.yaml/a"),
        (["a", "--dataset", "."], "not a dataset\n  where:    --dataset\n  found:    ."),
    ],
)
def test_other_bad_input(arguments: list[str], message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert message in refused(caplog, *arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["Snakefile", "params.yaml"]


@pytest.mark.parametrize("given", [["a", "--set", "train.epochs"], ["a", "--set", "folds=[0]", "folds=[1]"], []])
def test_a_wrong_call(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        init(*given)
    assert ended.value.code == 2
    assert "usage: segpipe init" in capsys.readouterr().err


def test_neither_init_nor_compare_loads_torch() -> None:
    code = "import segpipe.cli.init, segpipe.cli.compare, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "segpipe.experiments.new" in loaded
    assert not {"torch", "matplotlib", "scipy.stats"} & loaded
