"""Killed, or asked to end: what was computed is kept, and the rerun ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import victims
from tiny import TESTS

from segpipe.training import curves, interrupt, loop

pytest_plugins = ["phantom_fixtures"]

FILES = ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv", "progress.png")


def contents(out):
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The files of a training that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    victims.train(prepared, out)
    return contents(out)


@pytest.fixture(scope="module")
def disturbed(prepared, tmp_path_factory) -> Path:
    """All victims, as they were left."""
    out = tmp_path_factory.mktemp("victims")
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "victims.py"), str(prepared.root), str(out)]
    subprocess.run(command, env=environment, check=True)
    return out


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", victims.draw)
        yield


def counted_steps(monkeypatch):
    steps, train_step = [], loop.train_step

    def counted(training, step, batches):
        steps.append(step)
        return train_step(training, step, batches)

    monkeypatch.setattr(loop, "train_step", counted)
    return steps


def test_the_training_has_what_a_resume_must_restore(undisturbed):
    lines = undisturbed["metrics.csv"].decode().splitlines()
    assert len(lines) == 1 + victims.EPOCHS
    assert [bool(line.split(",")[lines[0].split(",").index("case_dice_mean")]) for line in lines[1:]] == [0, 1, 0]
    assert undisturbed["checkpoint_final.pth"] != undisturbed["checkpoint_best.pth"]


@pytest.mark.parametrize("name", victims.VICTIMS)
def test_a_rerun_continues_and_ends_in_the_same_files(prepared, undisturbed, disturbed, monkeypatch, caplog, name):
    """Weights, metrics.csv and even the bytes of the checkpoints; at most one epoch is computed twice."""
    caplog.set_level("INFO")
    victim = victims.VICTIMS[name]
    number = victim.number
    out = disturbed / victims.folder_of(name)
    status = json.loads((disturbed / "statuses.json").read_text())[name]
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert not any((out / file).exists() for file in FILES)  # nothing unfinished is published
    (log,) = (out / "state").glob("*/train.log")
    assert (signal.Signals(number).name in log.read_text()) == (number != signal.SIGKILL)
    steps = counted_steps(monkeypatch)
    victims.train(prepared, out)
    assert victim.said in caplog.text
    total = victims.STEPS * victims.EPOCHS
    assert steps == list(range(total - victim.n_steps, total))
    assert contents(out) == undisturbed
    assert victim.said in log.read_text()  # appended


@pytest.mark.parametrize(("name", "step"), [("SIGTERM within an epoch", 3), ("SIGTERM in an evaluation", 4)])
def test_the_log_says_which_signal_came_and_what_was_saved(disturbed, name, step):
    (log,) = (disturbed / victims.folder_of(name) / "state").glob("*/train.log")
    assert f"SIGTERM, saved after step {step}; a rerun continues there" in log.read_text()


def test_without_checkpoints_a_signal_saves_nothing_and_says_so(disturbed):
    out = disturbed / victims.folder_of("SIGTERM without checkpoints")
    (log,) = (out / "state").glob("*/train.log")
    assert "SIGTERM, nothing saved (runtime.disable_checkpointing)" in log.read_text()


# ---- the signals themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_signal_is_only_noted_and_the_handlers_of_before_come_back(number):
    before, seen = signal.signal(number, lambda *_: seen.append("the one of before")), []
    try:
        with interrupt.noted() as requests:
            assert requests.number is None
            signal.raise_signal(number)
            assert requests.number == number
        assert not seen
        signal.raise_signal(number)
        assert seen == ["the one of before"]
    finally:
        signal.signal(number, before)


def test_the_first_signal_counts():
    with interrupt.noted() as requests:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert requests.number == signal.SIGUSR1


@pytest.mark.parametrize("first", interrupt.SIGNALS)
def test_ctrl_c_after_any_signal_ends_at_once(first):
    with pytest.raises(KeyboardInterrupt), interrupt.noted():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_of_a_scheduler_never_ends_at_once():
    with interrupt.noted() as requests:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert requests.number == signal.SIGINT


def test_the_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    with pytest.raises(ZeroDivisionError), interrupt.noted():
        assert [signal.getsignal(number) for number in interrupt.SIGNALS] != before
        _ = 1 / 0
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def test_off_the_main_thread_nothing_is_installed():
    before, inside = [signal.getsignal(number) for number in interrupt.SIGNALS], []

    def work():
        with interrupt.noted() as requests:
            inside.append(([signal.getsignal(number) for number in interrupt.SIGNALS], requests.number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, None)]


def test_the_exit_status_is_that_of_a_process_ended_by_the_signal():
    """Snakemake takes the job as failed and, with --retries, starts it again; Slurm sees what it sent."""
    assert interrupt.Interrupted(signal.SIGTERM).code == 143
    assert interrupt.Interrupted(signal.SIGUSR1).code == 138
    assert interrupt.Interrupted(signal.SIGINT).code == 130
    assert isinstance(interrupt.Interrupted(signal.SIGTERM), SystemExit)
