"""A training and its files: what identifies it, what survives an interruption, what is published."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import TESTS, params, prepare

from segpipe import digest
from segpipe.data import splits
from segpipe.training import checkpoint, job, loop

pytest_plugins = ["phantom_fixtures"]

FILES = ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv", "progress.png")


def state_of(prepared, out, settings=None) -> Path:
    fold = splits.read(prepared.splits, "0")
    return out / "state" / job.identify(prepared.store, fold, settings or params()).digest


def contents(out):
    return {name: (out / name).read_bytes() for name in FILES}


class Interrupted(Exception):
    """The power is gone."""


def stop_when(monkeypatch, condition):
    """Raise before the first training step for which `condition(epoch, step)` holds."""

    def on_step(self, epoch, step):
        if condition(epoch, step):
            raise Interrupted

    monkeypatch.setattr(job._Job, "_on_step", on_step)


def stop_before_saving(monkeypatch, name, number):
    """Raise instead of saving a file for the n-th time."""
    save, counts = checkpoint.save, []

    def stop(path, content):
        counts.append(path.name)
        if counts.count(name) == number:
            raise Interrupted
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", stop)


INTERRUPTIONS = {
    "in the first epoch": lambda m: stop_when(m, lambda epoch, step: (epoch, step) == (0, 2)),
    "after two epochs": lambda m: stop_when(m, lambda epoch, step: (epoch, step) == (2, 0)),
    "within the third epoch": lambda m: stop_when(m, lambda epoch, step: (epoch, step) == (2, 1)),
    "between best and latest": lambda m: stop_before_saving(m, "latest.pth", 1),
    "before the second latest": lambda m: stop_before_saving(m, "latest.pth", 2),
    "before the final file": lambda m: stop_before_saving(m, "final.pth", 1),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_training_ends_in_the_same_files(prepared, trained, tmp_path, monkeypatch, interruption):
    """Weights bit by bit, metrics.csv, and even the bytes of the checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        INTERRUPTIONS[interruption](patch)
        job.train(prepared.store, prepared.splits, "0", tmp_path, params())
    assert not any((tmp_path / name).exists() for name in FILES)  # nothing unfinished is published
    job.train(prepared.store, prepared.splits, "0", tmp_path, params())
    assert contents(tmp_path) == contents(trained / "fold_0")


KILLED = """
import os, signal
from pathlib import Path
from segpipe.training import job
from tiny import params, prepare

def kill(self, epoch, step):
    if (epoch, step) == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)

job._Job._on_step = kill
prepared = prepare(Path("."), params())
job.train(prepared.store, prepared.splits, "0", Path("out"), params())
"""


def test_a_killed_training_ends_in_the_same_files(trained, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    prepared = prepare(tmp_path, params())
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job._Job, "_on_step", lambda self, epoch, step: steps.append((epoch, step)))
        job.train(prepared.store, prepared.splits, "0", tmp_path / "out", params())
    assert steps == [(2, 0), (2, 1), (2, 2)]
    assert contents(tmp_path / "out") == contents(trained / "fold_0")


def test_a_finished_training_is_published_again_without_training(prepared, tmp_path, monkeypatch):
    job.train(prepared.store, prepared.splits, "0", tmp_path, params())
    before = contents(tmp_path)
    for name in FILES:
        (tmp_path / name).unlink()
    monkeypatch.setattr(loop, "train_step", None)
    monkeypatch.setattr(loop, "evaluate", None)
    job.train(prepared.store, prepared.splits, "0", tmp_path, params())
    assert contents(tmp_path) == before


def test_other_settings_never_touch_a_training_and_find_their_own_again(prepared, tmp_path, monkeypatch):
    first, other = params(), params(train__learning_rate=0.02)
    job.train(prepared.store, prepared.splits, "0", tmp_path, first)
    published = contents(tmp_path)
    state = {path.name: path.read_bytes() for path in state_of(prepared, tmp_path, first).iterdir()}
    job.train(prepared.store, prepared.splits, "0", tmp_path, other)
    assert state_of(prepared, tmp_path, other) != state_of(prepared, tmp_path, first)
    assert contents(tmp_path) != published
    assert state == {path.name: path.read_bytes() for path in state_of(prepared, tmp_path, first).iterdir()}
    monkeypatch.setattr(loop, "train_step", None)
    job.train(prepared.store, prepared.splits, "0", tmp_path, first)
    assert contents(tmp_path) == published


# ---- identity --------------------------------------------------------------------------------------------------------


def test_identity_follows_what_decides_the_weights(prepared):
    fold_0, fold_1 = (splits.read(prepared.splits, fold) for fold in ("0", "1"))
    base = job.identify(prepared.store, fold_0, params())
    assert job.identify(prepared.store, fold_0, params()) == base
    same = {"runtime__threads": 2, "runtime__prefetch": 9, "validate__step_size": 0.7, "folds": [1]}
    for key, value in same.items():
        assert job.identify(prepared.store, fold_0, params(**{key: value})) == base, key
    others = {"epochs": 4, "seed": 1, "learning_rate": 0.1, "augment": False, "mirror_axes": [0], "precision": "bf16"}
    for key, value in others.items():
        changed = job.identify(prepared.store, fold_0, params(**{f"train__{key}": value}))
        assert changed.settings != base.settings, key
        assert changed.digest != base.digest, key
    other_fold = job.identify(prepared.store, fold_1, params())
    assert other_fold.settings == base.settings
    assert other_fold.digest != base.digest


def test_identity_follows_the_data_and_the_plan(prepared, tmp_path):
    fold = splits.read(prepared.splits, "0")
    base = job.identify(prepared.store, fold, params())
    data = job.identify(replace(prepared.store, digest="other cases"), fold, params())
    assert data.settings == base.settings
    assert data.digest != base.digest
    overrides = {"spacing_mm": [3.0] * 3, "patch_size": [16] * 3, "batch_size": 3, "features_base": 4}
    batch = prepare(tmp_path, params(plan__overrides=overrides))
    plan = job.identify(batch.store, fold, params())
    assert batch.store.digest == prepared.store.digest  # the same cases, another plan
    assert plan.settings != base.settings


def test_every_module_that_decides_a_training_is_in_its_digest():
    """All of segpipe/training but what watches and keeps."""
    keeps = {"__init__.py", "job.py", "checkpoint.py", "curves.py"}
    modules = {path.name for path in (digest.PACKAGE / "training").glob("*.py")} - keeps
    assert {f"training/{name}" for name in modules} == set(digest.DECIDING_MODULES["train"])


# ---- files -----------------------------------------------------------------------------------------------------------


def test_best_is_the_epoch_with_the_highest_running_mean(prepared, tmp_path, monkeypatch):
    dice = iter([0.0, 0.8, 0.7, 0.0, 0.6])
    classes = ("liver", "kidneys", "vessel")
    weights = []

    def scripted(training):
        weights.append({key: value.clone() for key, value in training.network.state_dict().items()})
        value = next(dice)
        return {"val_loss": 0.0, "dice_mean": value, **{f"dice_{name}": value for name in classes}}

    monkeypatch.setattr(loop, "evaluate", scripted)
    job.train(prepared.store, prepared.splits, "0", tmp_path, params(train__epochs=5, train__best_ema=0.5))
    best, final = (checkpoint.load(tmp_path / f"checkpoint_{name}.pth") for name in ("best", "final"))
    # means 0, 0.4, 0.55, 0.275, 0.4375: neither the epoch of the highest Dice nor the last one above all means
    assert best["epoch"] == best["row"]["epoch"] == 3
    assert best["row"]["dice_ema"] == pytest.approx(0.55)
    assert final["epoch"] == 5
    for content, expected in ((best, weights[2]), (final, weights[4])):
        assert all(torch.equal(content["network"][key], expected[key]) for key in expected)
    assert not all(torch.equal(best["network"][key], final["network"][key]) for key in final["network"])


def test_a_checkpoint_predicts_alone_and_has_no_optimiser(prepared, trained):
    content = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    assert set(content) == {
        "format",
        "digest",
        "settings_digest",
        "configuration",
        "plan",
        "labels",
        "channel_names",
        "mirror_axes",
        "precision",
        "settings",
        "epoch",
        "row",
        "network",
    }
    assert content["labels"] == prepared.cases.labels
    assert content["settings"]["epochs"] == 3
    assert content["plan"]["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]
    assert content["plan"]["intensities"]["0"]["std"] > 0
    tensors = {key for key, value in content.items() if isinstance(value, torch.Tensor)}
    assert not tensors
    size = sum(value.numel() * value.element_size() for value in content["network"].values())
    assert (trained / "fold_0/checkpoint_final.pth").stat().st_size < size * 2


def test_a_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"network": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_metrics_csv_holds_results_only(trained):
    """No times, hosts or paths: equal trainings have equal files."""
    text = (trained / "fold_0/metrics.csv").read_text()
    header, *rows = text.splitlines()
    assert header == "epoch,learning_rate,train_loss,val_loss,dice_mean,dice_liver,dice_kidneys,dice_vessel,dice_ema"
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
    assert re.fullmatch(r"[0-9.,e\n-]+", "\n".join(rows))
    assert (trained / "fold_0/progress.png").read_bytes().startswith(b"\x89PNG")


def test_times_and_messages_are_kept_beside_the_results(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    job.train(prepared.store, prepared.splits, "0", tmp_path, params())
    state = state_of(prepared, tmp_path)
    assert len((state / "timings.csv").read_text().splitlines()) == 3
    assert digest.read_json(state / "run.json")["device"] == "cpu"
    log = (state / "train.log").read_text()
    assert "epoch 3/3" in log
    assert "finished" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "state"])


def test_folds_are_trained_on_their_own_cases(prepared, trained):
    assert contents(trained / "fold_0")["metrics.csv"] != contents(trained / "fold_1")["metrics.csv"]


def test_fold_all_trains_on_every_case(prepared, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "fit", lambda training, *_: seen.append(training.feed) or interrupted())
    with pytest.raises(Interrupted):
        job.train(prepared.store, prepared.splits, "all", tmp_path, params())
    assert seen[0].train_cases == seen[0].val_cases == prepared.cases.training


def interrupted():
    raise Interrupted


def test_the_loss_falls(prepared, tmp_path):
    settings = params(train__epochs=6, train__iterations_per_epoch=8, train__augment=False, train__learning_rate=0.03)
    job.train(prepared.store, prepared.splits, "0", tmp_path, settings)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    losses = [float(row[2]) for row in rows]
    assert losses[-1] < losses[0] - 0.3
