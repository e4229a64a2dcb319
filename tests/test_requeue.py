"""Which jobs of Slurm come back by themselves. `scontrol` is one that writes down what it is asked."""

import signal
from pathlib import Path

import pytest

from segpipe import digest, launched
from segpipe.cli import requeue
from segpipe.cli.outcome import exit_codes


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A step of job 4711 that has worked for an hour; the file that its calls of scontrol are in."""
    calls = tmp_path / "calls"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setattr(requeue, "_started_s", requeue.time.monotonic() - 3600)
    return calls


def end(with_: BaseException) -> int:
    """The exit status of a script in which this is raised."""
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise with_
    return int(str(ended.value.code))


def test_a_job_whose_time_is_up_is_requeued_and_ends_as_the_signal_says(asked: Path) -> None:
    assert end(SystemExit(128 + signal.SIGUSR1)) == 138
    assert asked.read_text() == "requeue 4711\n"


def test_a_job_that_finds_its_results_being_written_is_requeued(asked: Path, tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with digest.exclusive(lock, "epoch 3"), pytest.raises(SystemExit, match="2"), exit_codes():
        digest.exclusive(lock, "mine").__enter__()
    assert asked.read_text() == "requeue 4711\n"


@pytest.mark.parametrize("status", [0, 1, 2, 128 + signal.SIGTERM])
def test_a_job_that_ends_or_is_cancelled_is_not(asked: Path, status: int) -> None:
    assert end(SystemExit(status)) == status
    assert not asked.exists()


def test_a_limit_too_short_for_any_work_fails_the_job(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "_started_s", requeue.time.monotonic())
    assert end(SystemExit(138)) == 138
    assert not asked.exists()


def test_of_several_ranks_the_launcher_requeues(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launched.LAUNCHER, "1")
    end(SystemExit(138))
    assert not asked.exists()


@pytest.mark.parametrize("absent", ["SLURM_JOB_ID", "SLURM_STEP_ID"])
def test_what_is_no_step_of_a_job_is_not(asked: Path, absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(absent)
    end(SystemExit(138))
    assert not asked.exists()


def test_a_cluster_that_does_not_requeue_fails_the_job_as_before(asked: Path, caplog: pytest.LogCaptureFixture) -> None:
    (asked.parent / "scontrol").write_text("#!/bin/sh\necho Requested operation is presently disabled >&2\nexit 1\n")
    assert end(SystemExit(138)) == 138
    assert "job 4711 of Slurm could not be requeued" in caplog.text
    assert "Requested operation is presently disabled" in caplog.text
