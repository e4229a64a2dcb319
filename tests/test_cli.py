"""The command `segpipe`: its verbs, what it loads, its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from volumes import REPO

from segpipe.cli import main as command


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
    before = os.times()
    done = segpipe("--help", cwd=tmp_path)
    assert done.returncode == 0
    for verb, summary in command.VERBS.items():
        assert f"  {verb} " in done.stdout
        assert summary.split()[0] in done.stdout
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_help_loads_nothing_heavy() -> None:
    assert not {"numpy", "scipy", "torch", "nibabel"} & loaded_by("segpipe.cli.main")


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


def test_the_unexpected_exits_with_1_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("segpipe.cli.check.run", lambda args: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        command.main(["check", "anything"])
    assert ended.value.code == 1
