"""The command `segpipe`: its verbs, what it loads, its exit codes."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from volumes import REPO, nnunet_dataset

from segpipe import params
from segpipe.cli import main as command
from segpipe.cli.settings import load_params
from segpipe.errors import SegpipeError


@pytest.fixture(autouse=True)
def _no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handlers are pytest's own."""
    monkeypatch.setattr(command, "start_log", lambda path: None)


def segpipe(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    call = "import sys; from segpipe.cli.main import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", call, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_names_every_verb_at_once(tmp_path: Path) -> None:
    done, seconds = helped(tmp_path)
    assert done.returncode == 0
    for verb, summary in command.VERBS.items():
        assert re.search(rf"^    {verb}\s+{summary.split()[0]}", done.stdout, re.M)
    others = (helped(tmp_path)[1] for _ in range(4))  # a busy machine may need longer once
    assert seconds < 0.5 or min(others) < 0.5


def helped(folder: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """`segpipe --help`, and the seconds that it computed."""
    before = os.times()
    done = segpipe("--help", cwd=folder)
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


def test_help_of_any_verb_loads_nothing_heavy() -> None:
    code = """
import sys
from segpipe.cli.main import VERBS, main
for call in [["--help"], ["--version"], ["predict"], *([verb, "--help"] for verb in VERBS)]:
    try:
        main(call)
    except SystemExit as ended:
        assert ended.code == (2 if call == ["predict"] else 0), call
"""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sys.modules)"], cwd=REPO, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"argparse", "segpipe.cli.arguments"} <= loaded
    assert not {"numpy", "scipy", "torch", "nibabel", "pydantic", "segpipe.data", "segpipe.cli.predict"} & loaded


def test_the_check_loads_no_torch() -> None:
    loaded = loaded_by("segpipe.cli.check")
    assert "segpipe.data.check" in loaded
    assert not {"torch", "matplotlib"} & loaded


@pytest.mark.parametrize("verb", command.VERBS)
def test_a_verb_has_its_module_and_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: segpipe {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["chek"], ["--nonsense"], ["check"], ["check", "a", "--nonsense"]])
def test_a_wrong_call_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "usage: segpipe" in capsys.readouterr().err


def test_bad_input_exits_with_2_and_one_message(tmp_path: Path) -> None:
    done = segpipe("check", "absent", cwd=tmp_path)
    assert done.returncode == 2
    assert "no dataset.json\n  where:    absent/dataset.json" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("broken", [False, True])
def test_a_page_that_cannot_be_written_is_one_message(tmp_path: Path, broken: bool) -> None:
    """What was found is said nevertheless."""
    root = nnunet_dataset(tmp_path / "Dataset001_Small", n_train=5)
    (tmp_path / "file").touch()
    if broken:
        (root / "labelsTr/a.nii.gz").unlink()
    done = segpipe("check", root, "--out", "file/folder", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{1 + broken} problem" in done.stderr
    assert "no page\n  where:    file/folder/check.html" in done.stderr
    assert ("missing file" in done.stderr) == broken
    assert "Traceback" not in done.stderr
    assert "Dataset001_Small: 5 training" in done.stdout


def test_the_unexpected_exits_with_1_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("segpipe.cli.check.run", lambda args: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        command.main(["check", "anything"])
    assert ended.value.code == 1
    assert "ZeroDivisionError" in caplog.text


def test_settings_are_those_of_here_or_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    nothing_said = argparse.Namespace(params=None)
    assert load_params(nothing_said) == params.load(REPO / "params.yaml")
    assert f"taking {REPO / 'params.yaml'}" in caplog.text
    text = (REPO / "params.yaml").read_text().replace("n_folds: 5", "n_folds: 6")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text(text.replace("n_folds: 6", "n_folds: 7"))
    assert load_params(nothing_said).splits.n_folds == 6
    assert load_params(argparse.Namespace(params=tmp_path / "other.yaml")).splits.n_folds == 7
    with pytest.raises(SegpipeError, match="absent"):
        load_params(argparse.Namespace(params=tmp_path / "absent.yaml"))


def test_a_log_that_cannot_be_written_is_told_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    call = "from segpipe.cli.scripts import run; run(lambda args, params: None)"
    done = subprocess.run(
        [sys.executable, "-c", call, "--log", str(tmp_path / "file/run.log")],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the log file cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "call",
    [
        ["evaluate", "{labels}", "{labels}", "--out", "{folder}"],
        ["evaluate", "{labels}", "{labels}", "--csv", "{file}/table.csv"],
        ["ensemble", "{labels}", "{labels}", "-o", "{file}"],
        ["postprocess", "{labels}", "--rules", "{file}", "-o", "{file}"],
    ],
)
def test_where_results_cannot_be_written_is_said_first(tmp_path: Path, call: list[str]) -> None:
    dataset = nnunet_dataset(tmp_path / "Dataset001_Test")
    (tmp_path / "file").write_text("in the way")
    places = {"labels": dataset / "labelsTr", "folder": tmp_path, "file": tmp_path / "file"}
    done = segpipe(*(part.format(**places) for part in call), cwd=tmp_path)
    assert done.returncode == 2
    assert "results cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_images_beside_segmentations_are_not_scored(tmp_path: Path) -> None:
    labels = nnunet_dataset(tmp_path / "Dataset001_Test") / "labelsTr"
    shutil.copytree(labels, tmp_path / "predicted")
    for path in list((tmp_path / "predicted").iterdir()):
        for end in ("probabilities", "uncertainty"):
            shutil.copy(path, path.with_name(path.name.replace(".nii.gz", f"_{end}.nii.gz")))
    done = segpipe("evaluate", tmp_path / "predicted", labels, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"means over {len(list(labels.iterdir()))} cases" in done.stdout
