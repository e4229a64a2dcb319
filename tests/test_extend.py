"""Training for longer than before: from the start, or on from the finished training, as train.on_extend says."""

import shutil

import pytest
import torch
import victims
from tiny import params

from segpipe import digest
from segpipe.data import splits
from segpipe.params import section
from segpipe.training import checkpoint, curves, job, loop
from segpipe.training.identity import identify

pytest_plugins = ["phantom_fixtures"]

SHORT, LONG = 3, 5
EMA = {"train__ema": {"decay": 0.9, "ramp_steps": 0}, "train__iterations_per_epoch": 2}
FIRST_IS_BEST = {"train__best": {"fitness": {"dice_mean": 1.0}, "smoothing": 0.0}, **EMA}


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", victims.draw)
        patch.setattr(loop, "evaluate", worse_and_worse)
        yield


def worse_and_worse(training, between, evaluate=loop.evaluate):
    """The first epoch is the best."""
    return {**evaluate(training, between), "dice_mean": 1 / (len(training.rows) + 1)}


def settings(epochs, on_extend="continue", **changes):
    return params(train__epochs=epochs, train__on_extend=on_extend, **{**FIRST_IS_BEST, **changes})


def train(prepared, out, epochs, fold="0", on_extend="continue", **changes):
    job.train(prepared.store, prepared.splits, fold, out, settings(epochs, on_extend, **changes))


def identity_of(prepared, out, epochs, fold="0", on_extend="continue", **changes):
    fold = splits.read(prepared.splits, fold)
    return identify(prepared.store, fold, settings(epochs, on_extend, **changes), out / "state")


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(out):
    return {name: (out / name).read_bytes() for name in ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv")}


@pytest.fixture(scope="module")
def parent(prepared, tmp_path_factory):
    """A finished training of three epochs. Only to be copied."""
    out = tmp_path_factory.mktemp("parent")
    train(prepared, out, SHORT)
    return out


@pytest.fixture
def out(parent, tmp_path):
    return shutil.copytree(parent, tmp_path / "out")


@pytest.fixture(scope="module")
def extended(prepared, parent, tmp_path_factory):
    """The same after it was continued to five. Only for tests that change nothing."""
    out = shutil.copytree(parent, tmp_path_factory.mktemp("extended") / "out")
    train(prepared, out, LONG)
    return out


def steps_of(monkeypatch):
    steps, train_step = [], loop.train_step

    def counted(training, step, batches):
        steps.append(step)
        return train_step(training, step, batches)

    monkeypatch.setattr(loop, "train_step", counted)
    return steps


# ---- restart ---------------------------------------------------------------------------------------------------------


def test_restart_trains_from_the_beginning_and_says_what_else_there_is(prepared, out, monkeypatch, caplog):
    caplog.set_level("INFO")
    state = out / "state" / identity_of(prepared, out, SHORT).digest
    before = files(state)
    monkeypatch.setattr(loop, "train_step", stop_at(0))
    with pytest.raises(Interrupted):
        train(prepared, out, LONG, on_extend="restart")
    assert "starts from the beginning (train.on_extend: continue would extend the finished shorter training)" in (
        caplog.text
    )
    identity = identity_of(prepared, out, LONG, on_extend="restart")
    assert identity.parent is None
    assert identity.lineage == []
    assert (out / "state" / identity.digest).is_dir()
    assert identity.digest != state.name
    assert files(state) == before


def test_without_a_shorter_training_the_start_is_just_a_start(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(loop, "train_step", stop_at(0))
    with pytest.raises(Interrupted):
        train(prepared, tmp_path, LONG, on_extend="restart")
    assert "fold 0: starts (cpu" in caplog.text


class Interrupted(Exception):
    """The power is gone."""


def stop_at(step):
    train_step = loop.train_step

    def stopping(training, number, batches):
        if number == step:
            raise Interrupted
        return train_step(training, number, batches)

    return stopping


# ---- continue --------------------------------------------------------------------------------------------------------


def test_a_continued_training_computes_only_what_is_new(prepared, out, monkeypatch, caplog):
    caplog.set_level("INFO")
    parent = out / "state" / identity_of(prepared, out, SHORT).digest
    before, rows, steps = files(parent), (out / "metrics.csv").read_text(), steps_of(monkeypatch)
    train(prepared, out, LONG)
    assert steps == [6, 7, 8, 9]
    assert f"extends a finished training of 6 steps ({parent.name}) to 10" in caplog.text
    assert (out / "metrics.csv").read_text().startswith(rows)  # what was computed stays as it was
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + LONG
    assert files(parent) == before
    run = digest.read_json(out / "state" / identity_of(prepared, out, LONG).digest / "run.json")
    assert run["resumed_after_step"] == 6
    assert run["start"].startswith("extends")


def test_it_goes_on_from_everything_that_the_parent_had(prepared, parent, extended):
    """Weights, their running mean, momentum: the first new epoch is that of a training which never ended."""
    before, after = (checkpoint.load(folder / "checkpoint_final.pth") for folder in (parent, extended))
    assert after["epoch"] == LONG
    assert after["step"] == 10
    training = job.Setup.of(prepared.store, splits.read(prepared.splits, "0"), settings(LONG)).training(None, None)
    (latest,) = (parent / "state").glob("*/latest.pth")
    content = checkpoint.load(latest)
    training.network.load_state_dict(content["network"])
    training.averaged.load_state_dict(content["averaged"])
    training.optimiser.load_state_dict(content["resume"]["optimiser"])
    training.rows = content["resume"]["rows"]
    loop.fit(training, lambda: None, lambda *_: None)
    for key in ("network", "averaged"):
        state = getattr(training, key).state_dict()
        assert all(torch.equal(after[key][name], state[name]) for name in state), key
        assert not all(torch.equal(after[key][name], before[key][name]) for name in state), key


def test_the_rate_is_that_of_the_longer_training(prepared, extended):
    """The schedule is a function of the step and the length: it does not start again, nor stay at its end."""
    lines = [line.split(",") for line in (extended / "metrics.csv").read_text().splitlines()]
    rates = [float(line[lines[0].index("learning_rate")]) for line in lines[1:]]
    assert rates[SHORT:] == pytest.approx([0.01 * (1 - epoch / LONG) ** 0.9 for epoch in (3, 4)], rel=1e-5)


def test_what_it_continues_is_in_its_digest_and_in_its_checkpoints(prepared, extended):
    first, scratch = (identity_of(prepared, extended, n, on_extend="restart") for n in (SHORT, LONG))
    identity = identity_of(prepared, extended, LONG)
    lineage = [{"digest": first.digest, "settings": first.settings, "steps": 6}]
    assert identity.lineage == lineage
    assert identity.digest not in (first.digest, scratch.digest)
    assert identity.settings not in (first.settings, scratch.settings)
    record = digest.read_json(extended / "state" / identity.digest / "identity.json")
    assert record == {
        "settings": identity.settings,
        "digest": identity.digest,
        "base": scratch.digest,
        "but_length": first.but_length,
        "total_steps": 10,
        "parent": first.digest,
        "lineage": lineage,
        "steps": 10,
        "train": section(settings(LONG), "train"),
    }
    assert identity.base == scratch.base == scratch.digest
    for name in ("final", "best"):
        content = checkpoint.load(extended / f"checkpoint_{name}.pth")
        assert content["facts"]["continued_from"] == lineage
        assert content["facts"]["epochs"] == LONG
        assert content["digest"] == identity.digest
        assert content["settings_digest"] == identity.settings


def test_the_best_of_the_parent_stays_the_best(parent, extended):
    """Its weights, under the name of the training that is finished now."""
    before, after = (checkpoint.load(folder / "checkpoint_best.pth") for folder in (parent, extended))
    assert before["epoch"] == after["epoch"] == after["row"]["epoch"] == after["facts"]["best_epoch"] == 1
    for key in ("network", "averaged"):
        assert all(torch.equal(before[key][name], after[key][name]) for name in before[key])
    assert after["settings"]["epochs"] == LONG
    assert after["digest"] != before["digest"]


def test_a_better_epoch_of_the_continuation_is_the_best(prepared, tmp_path):
    better = {"train__best": {"fitness": {"val_loss": -1.0}, "smoothing": 0.0}}
    train(prepared, tmp_path, 1, **better)
    train(prepared, tmp_path, 2, **better)
    best = checkpoint.load(tmp_path / "checkpoint_best.pth")
    final = checkpoint.load(tmp_path / "checkpoint_final.pth")
    assert best["epoch"] == 2
    assert all(torch.equal(best["network"][name], final["network"][name]) for name in best["network"])


@pytest.mark.parametrize("where", ["before its first step", "within its first epoch", "after its first epoch"])
def test_a_killed_continuation_ends_in_the_same_files(prepared, out, extended, monkeypatch, where):
    step = {"before its first step": 6, "within its first epoch": 7, "after its first epoch": 8}[where]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(step))
        train(prepared, out, LONG)
    steps = steps_of(monkeypatch)
    train(prepared, out, LONG)
    assert steps == list(range(8 if step == 8 else 6, 10))
    assert published(out) == published(extended)


def test_a_continuation_is_found_again(prepared, extended, tmp_path, monkeypatch):
    out = shutil.copytree(extended, tmp_path / "out")
    before = published(out)
    monkeypatch.setattr(loop, "train_step", None)
    train(prepared, out, SHORT)  # the parent, published again
    assert published(out) != before
    train(prepared, out, LONG)
    assert published(out) == before


def test_max_steps_can_be_raised_and_end_within_an_epoch(prepared, tmp_path, monkeypatch):
    steps = steps_of(monkeypatch)
    for n in (3, 6):  # epochs of two steps: the last epoch of the first training has one
        train(prepared, tmp_path, None, train__max_steps=n)
    assert steps == [0, 1, 2, 3, 4, 5]
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["2", "3", "4", "6"]


def test_a_training_can_be_continued_twice(prepared, extended, tmp_path, monkeypatch):
    out = shutil.copytree(extended, tmp_path / "out")
    steps = steps_of(monkeypatch)
    train(prepared, out, LONG + 1)
    assert steps == [10, 11]  # from the longest one
    lineage = checkpoint.load(out / "checkpoint_final.pth")["facts"]["continued_from"]
    assert [training["steps"] for training in lineage] == [6, 10]
    assert [training["digest"] for training in lineage] == [
        identity_of(prepared, extended, n).digest for n in (SHORT, LONG)
    ]
    assert lineage[1]["settings"] == identity_of(prepared, extended, LONG).settings
    assert checkpoint.load(out / "checkpoint_best.pth")["epoch"] == 1


def test_an_early_stopped_training_that_is_continued_stays_stopped(prepared, tmp_path, monkeypatch):
    stopping = {"train__early_stopping": {"patience": 1, "monitor": "val_loss", "min_delta": 9.0, "min_epochs": 0}}
    train(prepared, tmp_path, SHORT, **stopping)
    weights = checkpoint.load(tmp_path / "checkpoint_final.pth")["network"]
    steps = steps_of(monkeypatch)
    train(prepared, tmp_path, LONG, **stopping)
    assert not steps
    content = checkpoint.load(tmp_path / "checkpoint_final.pth")
    assert content["facts"]["stopped_early"]["epoch"] == 2
    assert content["facts"]["planned_steps"] == 10
    assert [training["steps"] for training in content["facts"]["continued_from"]] == [4]  # done, of 6 planned
    assert all(torch.equal(weights[name], content["network"][name]) for name in weights)


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_continued_alike_belong_together_and_not_with_one_from_the_start(prepared, out, tmp_path, monkeypatch):
    """An ensemble refuses folds whose settings digests differ."""
    fold_1 = tmp_path / "fold_1"
    train(prepared, fold_1, SHORT, fold="1")
    one, two = identity_of(prepared, out, LONG), identity_of(prepared, fold_1, LONG, fold="1")
    scratch = identity_of(prepared, tmp_path / "nothing yet", LONG, fold="1")
    assert one.parent is not None
    assert two.parent is not None
    assert one.settings == two.settings != scratch.settings
    assert one.digest != two.digest
    # neither do folds that were continued from another length
    longer_before = tmp_path / "fold_1b"
    train(prepared, longer_before, SHORT - 1, fold="1")
    assert identity_of(prepared, longer_before, LONG, fold="1").settings not in (one.settings, scratch.settings)


# ---- what is no parent -----------------------------------------------------------------------------------------------


def test_the_same_or_a_shorter_length_is_no_extension(prepared, out):
    for epochs in (SHORT, SHORT - 1):
        identity = identity_of(prepared, out, epochs)
        assert identity.parent is None
        assert identity == identity_of(prepared, out, epochs, on_extend="restart")


@pytest.mark.parametrize("missing", ["latest.pth", "identity.json"])
def test_a_training_without_what_is_needed_to_go_on_is_no_parent(prepared, out, missing):
    state = out / "state" / identity_of(prepared, out, SHORT).digest
    assert identity_of(prepared, out, LONG).parent == state.name
    (state / missing).unlink()
    assert identity_of(prepared, out, LONG).parent is None


def test_an_unfinished_training_is_no_parent(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(4))
        train(prepared, tmp_path, SHORT)
    assert list(tmp_path.glob("state/*/latest.pth"))
    monkeypatch.setattr(loop, "train_step", stop_at(0))
    with pytest.raises(Interrupted):
        train(prepared, tmp_path, LONG)
    assert identity_of(prepared, tmp_path, LONG).lineage == []
    assert "starts from the beginning: no finished, shorter training differs in its length alone (cpu" in caplog.text


def test_a_training_that_ended_without_checkpoints_is_no_parent(prepared, tmp_path, monkeypatch):
    """Of an earlier attempt there is a `latest`, which is not its end."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(4))
        train(prepared, tmp_path, SHORT)
    (latest,) = tmp_path.glob("state/*/latest.pth")
    assert checkpoint.load(latest)["epoch"] == 2
    train(prepared, tmp_path, SHORT, runtime__disable_checkpointing=True)
    assert checkpoint.load(tmp_path / "checkpoint_final.pth")["epoch"] == SHORT
    assert not latest.exists()
    assert identity_of(prepared, tmp_path, LONG).parent is None


@pytest.mark.parametrize("changes", [{"train__seed": 1}, {"train__iterations_per_epoch": 1}, {"fold": "1"}])
def test_a_training_with_other_settings_is_no_parent(prepared, out, changes):
    assert identity_of(prepared, out, LONG, **changes).parent is None


def test_a_training_from_the_start_that_was_only_begun_gives_way_to_the_extension(prepared, out, extended, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(3))
        train(prepared, out, LONG, on_extend="restart")
    begun = out / "state" / identity_of(prepared, out, LONG, on_extend="restart").digest
    before = files(begun)
    assert begun / "latest.pth" in begun.iterdir()
    steps = steps_of(monkeypatch)
    train(prepared, out, LONG)
    assert steps == [6, 7, 8, 9]
    assert published(out) == published(extended)
    assert files(begun) == before


def test_a_finished_training_from_the_start_is_not_computed_again_as_an_extension(prepared, out, monkeypatch):
    train(prepared, out, SHORT + 1, on_extend="restart")
    before = published(out)
    monkeypatch.setattr(loop, "train_step", None)
    train(prepared, out, SHORT + 1)
    assert published(out) == before


@pytest.mark.parametrize("step", [6, 8], ids=["before its first epoch", "after its first epoch"])
def test_a_continuation_keeps_its_parent_when_another_training_ends(prepared, out, extended, monkeypatch, step):
    """It would start again, from the other one."""
    before = identity_of(prepared, out, LONG)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(step))
        train(prepared, out, LONG)
    train(prepared, out, SHORT + 1, on_extend="restart")
    assert identity_of(prepared, out, LONG) == before
    (other,) = {state.name for state in (out / "state").glob("*/")} - {before.digest, before.parent}
    assert identity_of(prepared, out, LONG + 1).parent == other  # which is longer
    steps = steps_of(monkeypatch)
    train(prepared, out, LONG)
    assert steps == list(range(step, 10))
    assert published(out) == published(extended)


@pytest.mark.parametrize("disabled", [False, True], ids=["", "without checkpoints"])
def test_a_finished_continuation_outlives_its_parent(prepared, out, monkeypatch, disabled):
    train(prepared, out, LONG, runtime__disable_checkpointing=disabled)
    before = published(out)
    shutil.rmtree(out / "state" / identity_of(prepared, out, SHORT).digest)
    monkeypatch.setattr(loop, "train_step", None)
    train(prepared, out, LONG)
    assert published(out) == before


def test_a_continuation_that_has_nothing_left_to_go_on_from_looks_for_another_parent(prepared, out, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "train_step", stop_at(6))
        train(prepared, out, LONG)
    (out / "state" / identity_of(prepared, out, SHORT).digest / "latest.pth").unlink()
    assert identity_of(prepared, out, LONG).parent is None


def test_of_two_finished_trainings_the_longer_one_is_continued(prepared, extended):
    for epochs, parent in ((LONG + 1, LONG), (LONG - 1, SHORT)):
        assert identity_of(prepared, extended, epochs).parent == identity_of(prepared, extended, parent).digest
