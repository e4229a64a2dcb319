"""A training and its files: what survives an interruption, what is saved when, what is published."""

import errno
import json
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
import victims
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import params

from segpipe import device, digest
from segpipe.data import splits
from segpipe.errors import SegpipeError
from segpipe.inference import validation
from segpipe.training import checkpoint, curves, divergence, job, loop, selection
from segpipe.training.identity import identify
from segpipe.training.setup import Setup

pytest_plugins = ["phantom_fixtures"]

FILES = ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv", "progress.png")
CLASSES = ["liver", "kidneys", "vessel"]
SHORT = {"train__epochs": 2, "train__iterations_per_epoch": 1, "train__val_iterations_per_epoch": 1}


@pytest.fixture
def _no_pictures(monkeypatch):
    monkeypatch.setattr(curves, "draw", victims.draw)


def state_of(prepared, out, settings):
    fold = splits.read(prepared.splits, "0")
    return out / "state" / identify(prepared.store, fold, settings, out / "state").digest


def train(prepared, out, settings, *whole_cases):
    job.train(prepared.store, prepared.splits, "0", out, settings, *whole_cases)
    return state_of(prepared, out, settings)


def contents(out, names=FILES):
    return {name: (out / name).read_bytes() for name in names}


def loaded(out):
    return (checkpoint.load(out / f"checkpoint_{name}.pth") for name in ("best", "final"))


def rows_of(out):
    header, *lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


# ---- interruptions ---------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """The power is gone."""


def stop_when(monkeypatch, condition):
    """Raise before the first step or validation batch for which `condition(training)` holds."""

    def between(self):
        if condition(self.training):
            raise Interrupted

    monkeypatch.setattr(job._Job, "_between", between)


def stop_before_saving(monkeypatch, name, number):
    """Raise instead of saving a file for the n-th time."""
    save, counts = checkpoint.save, []

    def stop(path, content):
        counts.append(path.name)
        if path.name == name and counts.count(name) == number:
            raise Interrupted
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", stop)


def stop_before_renaming(monkeypatch, number):
    """Raise instead of making a new best the best for the n-th time."""
    rename, counts = checkpoint._rename, []

    def stop(path, target):
        counts.append(path.name)
        if len(counts) == number:
            raise Interrupted
        rename(path, target)

    monkeypatch.setattr(checkpoint, "_rename", stop)


def stop_drawing(monkeypatch):
    def stop(*_):
        raise Interrupted

    monkeypatch.setattr(curves, "draw", stop)


INTERRUPTIONS = {
    "in the first epoch": (lambda m: stop_when(m, lambda training: training.step == 1), 6),
    "between two epochs": (lambda m: stop_when(m, lambda t: t.step == 4 and not t.losses), 2),
    "within the third epoch": (lambda m: stop_when(m, lambda training: training.step == 5), 2),
    "in the second evaluation": (lambda m: stop_when(m, lambda t: t.step == 4 and len(t.losses) == 2), 4),
    "before the best": (lambda m: stop_before_saving(m, "best_new.pth", 1), 4),
    "between best and latest": (lambda m: stop_before_saving(m, "latest.pth", 2), 4),
    "between latest and the rename": (lambda m: stop_before_renaming(m, 2), 2),
    "before the last latest": (lambda m: stop_before_saving(m, "latest.pth", 3), 2),
    "before the picture": (stop_drawing, 0),
    "before the finished best": (lambda m: stop_before_saving(m, "best.pth", 1), 0),
    "before the final file": (lambda m: stop_before_saving(m, "final.pth", 1), 0),
}


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", victims.draw)
        out = tmp_path_factory.mktemp("undisturbed")
        victims.train(prepared, out)
    return out


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_training_ends_in_the_same_files(prepared, undisturbed, tmp_path, monkeypatch, interruption):
    """Weights bit by bit, metrics.csv, and even the bytes of the checkpoints; at most one epoch is computed twice."""
    stop, n_steps = INTERRUPTIONS[interruption]
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop(patch)
        victims.train(prepared, tmp_path)
    assert not any((tmp_path / name).exists() for name in FILES)  # nothing unfinished is published
    steps, train_step = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *arguments: steps.append(1) or train_step(*arguments))
    victims.train(prepared, tmp_path)
    assert len(steps) == n_steps
    assert contents(tmp_path) == contents(undisturbed)


def test_a_finished_training_is_published_again_without_training(prepared, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", None)
    monkeypatch.setattr(loop, "evaluate", None)
    settings = params()
    source = state_of(prepared, trained / "fold_0", settings)
    state = tmp_path / "state" / source.name
    state.mkdir(parents=True)
    for name in ("final.pth", "best.pth", "metrics.csv", "progress.png"):
        (state / name).write_bytes((source / name).read_bytes())
    train(prepared, tmp_path, settings)
    assert contents(tmp_path) == contents(trained / "fold_0")


@pytest.mark.usefixtures("_no_pictures")
def test_other_settings_never_touch_a_training_and_find_their_own_again(prepared, tmp_path, monkeypatch):
    first, other = params(**SHORT), params(**SHORT, train__optimiser__learning_rate=0.02)
    state = train(prepared, tmp_path, first)
    published, before = contents(tmp_path), {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}
    assert train(prepared, tmp_path, other) != state
    assert contents(tmp_path) != published
    assert before == {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}
    monkeypatch.setattr(loop, "train_step", None)
    train(prepared, tmp_path, first)
    assert contents(tmp_path) == published


# ---- what is saved when ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch):
    """(file, epoch) in the order in which the checkpoints were saved."""
    save, order = checkpoint.save, []

    def noted(path, content):
        save(path, content)
        order.append((path.name, content["epoch"]))

    monkeypatch.setattr(checkpoint, "save", noted)
    return order


@pytest.mark.usefixtures("_no_pictures")
def test_best_is_saved_before_latest_and_final_comes_last(prepared, tmp_path, saved):
    victims.train(prepared, tmp_path)
    assert saved == [
        ("latest.pth", 1),
        ("best_new.pth", 2),
        ("latest.pth", 2),  # only now is it renamed to best.pth
        ("latest.pth", 3),
        ("best.pth", 2),  # with what happened after it
        ("final.pth", 3),
    ]


@pytest.mark.usefixtures("_no_pictures")
def test_with_checkpointing_disabled_only_what_is_published_is_saved(prepared, undisturbed, tmp_path, saved):
    victims.train(prepared, tmp_path, runtime__disable_checkpointing=True)
    assert saved == [("best.pth", 2), ("final.pth", 3)]
    assert not list(tmp_path.rglob("latest.pth"))
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.usefixtures("_no_pictures")
def test_latest_is_saved_as_often_as_wanted_and_at_the_end(prepared, undisturbed, tmp_path, saved):
    victims.train(prepared, tmp_path, runtime__checkpoint_every=2)
    assert [epoch for name, epoch in saved if name == "latest.pth"] == [2, 3]
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.usefixtures("_no_pictures")
def test_a_kill_loses_no_more_than_the_epochs_since_the_last_checkpoint(prepared, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_drawing(patch)  # after epoch 3
        victims.train(prepared, tmp_path, runtime__checkpoint_every=2)
    (path,) = tmp_path.rglob("latest.pth")
    assert checkpoint.load(path)["epoch"] == 3
    path.unlink()
    victims.train(prepared, tmp_path)  # best.pth of the second epoch is there already
    assert contents(tmp_path) == contents(undisturbed)


@pytest.mark.usefixtures("_no_pictures")
def test_latest_can_be_predicted_with_as_the_published_ones(prepared, tmp_path):
    """The same content, and beside it what a resume needs."""
    state = train(prepared, tmp_path, params(**SHORT))
    latest, final = checkpoint.load(state / "latest.pth"), checkpoint.load(state / "final.pth")
    assert set(latest) - set(final) == {"resume"}
    assert all(torch.equal(latest["network"][name], final["network"][name]) for name in final["network"])
    assert set(latest["resume"]) == {"optimiser", "scaler", "rows", "losses"}


# ---- the checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_pictures")
def test_best_is_the_epoch_with_the_highest_running_mean(prepared, tmp_path, monkeypatch):
    dice = iter([0.0, 0.8, 0.7, 0.0, 0.6])
    weights = []

    def scripted(training, between):
        weights.append({key: value.clone() for key, value in training.network.state_dict().items()})
        value = next(dice)
        return {"val_loss": 0.0, "dice_mean": value, **{f"dice_{name}": value for name in CLASSES}}

    monkeypatch.setattr(loop, "evaluate", scripted)
    train(prepared, tmp_path, params(**{**SHORT, "train__epochs": 5}, train__best__smoothing=0.5))
    best, final = loaded(tmp_path)
    # means 0, 0.4, 0.55, 0.275, 0.4375: neither the epoch of the highest Dice nor the last one above all means
    assert best["epoch"] == best["row"]["epoch"] == best["step"] == best["facts"]["best_epoch"] == 3
    assert best["row"]["fitness_ema"] == pytest.approx(0.55)
    assert final["epoch"] == final["step"] == 5
    for content, expected in ((best, weights[2]), (final, weights[4])):
        assert all(torch.equal(content["network"][key], expected[key]) for key in expected)
    assert not all(torch.equal(best["network"][key], final["network"][key]) for key in final["network"])


@pytest.mark.usefixtures("_no_pictures")
def test_where_no_epoch_has_a_fitness_the_last_one_is_the_best(prepared, tmp_path, monkeypatch, caplog):
    scripted(monkeypatch, [None, None])  # no class is in any validation patch
    train(prepared, tmp_path, params(**SHORT))
    best, final = loaded(tmp_path)
    assert best["epoch"] == final["epoch"] == 2
    assert best["facts"]["best_epoch"] is None
    assert "no epoch had a fitness; the last one counts as the best" in caplog.text


def test_a_checkpoint_predicts_alone_and_has_no_optimiser(prepared, trained):
    content = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    assert set(content) == {
        "format",
        "digest",
        "settings_digest",
        "configuration",
        "plan",
        "dataset",
        "labels",
        "channel_names",
        "mirror_axes",
        "precision",
        "settings",
        "epoch",
        "step",
        "row",
        "facts",
        "network",
        "averaged",
    }
    assert content["labels"] == prepared.cases.content["labels"]
    assert content["settings"]["epochs"] == 3
    assert content["step"] == 9
    assert content["averaged"] is None
    assert content["plan"]["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]
    assert content["plan"]["intensities"]["0"]["std"] > 0
    tensors = {key for key, value in content.items() if isinstance(value, torch.Tensor)}
    assert not tensors
    size = sum(value.numel() * value.element_size() for value in content["network"].values())
    assert (trained / "fold_0/checkpoint_final.pth").stat().st_size < size * 2


def test_the_averaged_weights_lie_beside_the_raw_ones(undisturbed):
    for content in loaded(undisturbed):
        assert content["averaged"].keys() == content["network"].keys()
        assert not all(torch.equal(content["averaged"][name], content["network"][name]) for name in content["network"])
    best, final = loaded(undisturbed)
    assert not all(torch.equal(best["averaged"][name], final["averaged"][name]) for name in final["averaged"])


@pytest.mark.usefixtures("_no_pictures")
def test_the_facts_say_what_happened(prepared, tmp_path):
    state = train(prepared, tmp_path, params(**SHORT, train__freeze=["encoder.*"]))
    best, final = loaded(tmp_path)
    assert best["facts"] == final["facts"]
    facts = final["facts"]
    frozen = facts.pop("frozen_parameters")
    named = Setup.of(prepared.store, splits.read(prepared.splits, "0"), params(**SHORT)).network.named_parameters()
    sizes = {name: parameter.numel() for name, parameter in named}
    assert frozen == sum(size for name, size in sizes.items() if name.startswith("encoder."))
    assert facts == {
        "epochs": 2,
        "steps": 2,
        "planned_steps": 2,
        "best_epoch": best["epoch"],
        "stopped_early": None,
        "continued_from": [],
        "parameters": sum(sizes.values()),
        "pretrained": None,
    }
    # a later training starts from the published weights: all of them but the heads
    settings = params(**SHORT, train__pretrained_weights=str(state / "final.pth"))
    pretrained = Setup.of(prepared.store, splits.read(prepared.splits, "0"), settings).facts["pretrained"]
    assert pretrained.pop("file") == "final.pth"
    assert sum(pretrained.values()) >= len(sizes)


def test_stopping_early_is_in_both_checkpoints(undisturbed):
    rows = rows_of(undisturbed)
    last, first = (f"{float(rows[i]['val_loss']):.4g}" for i in (-1, 0))
    reason = (
        f"val_loss is {last}, at its best {first} in epoch 1; no better by 10 for {victims.EPOCHS - 1} epochs "
        "(patience 2)"
    )
    assert len(rows) == victims.EPOCHS
    for content in loaded(undisturbed):
        stop = content["facts"]["stopped_early"]
        assert stop["epoch"] == victims.EPOCHS
        assert stop["monitor"] == "val_loss"
        assert stop["value"] == pytest.approx(float(rows[-1]["val_loss"]), rel=1e-5)
        assert stop["best_value"] == pytest.approx(float(rows[0]["val_loss"]), rel=1e-5)
        assert stop["best_epoch"] == 1
        assert stop["reason"] == reason
        assert content["facts"]["steps"] == victims.STEPS * victims.EPOCHS
        assert content["facts"]["planned_steps"] == victims.STEPS * 5


@pytest.mark.usefixtures("_no_pictures")
def test_the_log_says_how_it_ended_and_how_large_the_files_are(prepared, tmp_path, caplog):
    caplog.set_level("INFO")
    state = train(prepared, tmp_path, params(**SHORT))
    assert "stopped early" not in caplog.text
    sizes = ", ".join(f"{name}.pth [0-9.]+ MB" for name in ("best", "final", "latest"))
    assert re.search(rf"fold 0: finished after epoch 2, best is epoch \d; {sizes}\n", caplog.text)
    assert "finished after epoch 2" in (state / "train.log").read_text()


@pytest.mark.usefixtures("_no_pictures")
def test_best_is_there_when_it_stops_early(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    stop_drawing(monkeypatch)  # what comes first after the loop
    with pytest.raises(Interrupted):
        victims.train(prepared, tmp_path)
    (state,) = (tmp_path / "state").glob("*/")
    assert checkpoint.load(state / "best.pth")["epoch"] == 2
    assert checkpoint.load(state / "latest.pth")["epoch"] == 3
    monkeypatch.setattr(curves, "draw", victims.draw)
    victims.train(prepared, tmp_path)
    assert "fold 0: stopped early after epoch 3: val_loss is " in caplog.text


# ---- what else is called ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_pictures")
def test_whole_cases_are_scored_in_their_epochs_with_what_the_settings_say(prepared, tmp_path):
    made, scored = [], []

    def whole_cases(*arguments):
        made.append(arguments)

        def score(network):
            scored.append(network)
            return {f"case_dice_{name}": 0.25 * len(scored) for name in ("mean", *CLASSES)}

        return score

    changes = {"train__epochs": 5, "train__mirror_axes": [1], "train__ema__decay": 0.5}
    whole = {"train__full_validation__every": 2, "train__full_validation__weights": "averaged"}
    settings = params(**{**SHORT, **changes, **whole})
    train(prepared, tmp_path, settings, whole_cases)
    ((store, cases, given, mirror_axes, dtype, on_case, ranks),) = made
    assert store is prepared.store
    assert cases == splits.read(prepared.splits, "0")["val"]
    assert given == settings.train.full_validation
    assert mirror_axes == [1]
    assert dtype == torch.float32
    assert on_case.__func__ is job._Job._between
    assert ranks.n == 1
    assert [row["case_dice_mean"] for row in rows_of(tmp_path)] == ["", "0.25", "", "0.5", ""]
    assert [row["case_dice_vessel"] for row in rows_of(tmp_path)] == ["", "0.25", "", "0.5", ""]
    content = checkpoint.load(tmp_path / "checkpoint_final.pth")
    final = scored[-1].state_dict()  # the running mean goes on being the same network
    assert all(torch.equal(final[name], content["averaged"][name]) for name in final)


@pytest.mark.usefixtures("_no_pictures")
def test_the_raw_weights_are_scored_where_the_settings_say_so(prepared, tmp_path):
    scored = []

    def whole_cases(*_):
        return lambda network: (
            scored.append(network) or dict.fromkeys([f"case_dice_{name}" for name in ("mean", *CLASSES)], 1.0)
        )

    train(prepared, tmp_path, params(**SHORT, train__ema__decay=0.5, train__full_validation__every=1), whole_cases)
    content = checkpoint.load(tmp_path / "checkpoint_final.pth")
    state = scored[-1].state_dict()
    assert all(torch.equal(state[name], content["network"][name]) for name in state)


@pytest.mark.usefixtures("_no_pictures")
def test_callbacks_are_called_in_order_after_each_epoch(prepared, tmp_path, monkeypatch):
    called = []
    callbacks = [lambda training, row, name=name: called.append((name, training, row)) for name in "ab"]
    monkeypatch.setattr(Setup, "callbacks", lambda self: callbacks)
    train(prepared, tmp_path, params(**SHORT))
    assert [(name, row["epoch"]) for name, _, row in called] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert all(row is training.rows[row["epoch"] - 1] for _, training, row in called)
    assert all(isinstance(training, loop.Training) for _, training, _ in called)


@pytest.mark.usefixtures("_no_pictures")
def test_callbacks_come_from_their_import_paths(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_callback.py").write_text(
        "def note(training, row):\n    open('called', 'a').write(f'{row[\"epoch\"]} {training.step}\\n')\n"
    )
    train(prepared, tmp_path / "out", params(**SHORT, train__callbacks=["own_callback:note"]))
    assert (tmp_path / "called").read_text() == "1 1\n2 2\n"


# ---- files beside the checkpoints ------------------------------------------------------------------------------------


def test_metrics_csv_holds_results_only(trained):
    """No times, hosts or paths: equal trainings have equal files."""
    text = (trained / "fold_0/metrics.csv").read_text()
    header, *rows = text.splitlines()
    assert header == (
        "epoch,step,learning_rate,train_loss,val_loss,dice_mean,dice_liver,dice_kidneys,dice_vessel,dice_ema,fitness_ema"
    )
    assert [row.split(",")[:2] for row in rows] == [["1", "3"], ["2", "6"], ["3", "9"]]
    assert re.fullmatch(r"[0-9.,e\n-]+", "\n".join(rows))
    assert (trained / "fold_0/progress.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_csv_has_the_columns_that_settings_may_name(undisturbed):
    settings = params(**victims.FULL).train
    assert list(rows_of(undisturbed)[0]) == selection.columns(settings, CLASSES)


def test_the_picture_is_drawn_with_everything_that_there_can_be(undisturbed, tmp_path):
    rows = [{key: float(value) if value else None for key, value in row.items()} for row in rows_of(undisturbed)]
    curves.draw(tmp_path / "progress.png", rows, CLASSES)
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_times_and_messages_are_kept_beside_the_results(prepared, undisturbed, tmp_path, caplog):
    caplog.set_level("INFO")
    state = train(prepared, tmp_path, params(**SHORT))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "state"])
    header, *times = (state / "timings.csv").read_text().splitlines()
    assert header == "epoch,seconds_per_step,finished_at"
    assert [line.split(",")[0] for line in times] == ["1", "2"]
    run = digest.read_json(state / "run.json")
    assert (run["device"], run["gpus"], run["ranks"]) == ("cpu", [], 1)
    assert run["precision"] == "float32"
    assert run["start"] == "starts"
    assert run["resumed_after_epoch"] == run["resumed_after_step"] == 0
    assert run["runtime"]["prefetch"] == 4
    assert run["feeding"]["tier"] == "file"
    assert run["feeding"]["dataset_bytes"] > 5 * 1000 * 5
    log = (state / "train.log").read_text()
    assert log.count("feeding from tier file: cases of ") == 1
    at = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.search(rf"{at}training 3d_fullres fold 0: starts \(cpu, float32, digest {state.name}\)$", log, re.M)
    assert re.search(
        rf"{at}epoch 2/2  loss [0-9.-]+  val [0-9.-]+  dice liver \S+ kidneys \S+ vessel \S+  ema \S+  lr \S+  "
        r"\S+ s/it  left 0:00:00$",
        log,
        re.M,
    )
    assert "\x1b" not in log
    assert log.isascii()
    record = digest.read_json(state / "identity.json")
    assert record["digest"] == state.name


def test_a_log_is_its_own_trainings_only(prepared, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(curves, "draw", victims.draw)
    caplog.set_level("INFO")
    first = train(prepared, tmp_path, params(**SHORT))
    before = (first / "train.log").read_text()
    train(prepared, tmp_path, params(**SHORT, train__seed=1))
    assert (first / "train.log").read_text() == before


@pytest.mark.usefixtures("_no_pictures")
def test_a_long_epoch_says_how_far_it_is(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(job, "STEP_LINE_EVERY_S", -1.0)
    train(prepared, tmp_path, params(**{**SHORT, "train__iterations_per_epoch": 2}))
    lines = [line for line in caplog.messages if re.fullmatch(r"epoch \d/2  step \d/4", line)]
    # before each step, and before the one validation batch
    assert lines == [
        "epoch 1/2  step 0/4",
        "epoch 1/2  step 1/4",
        "epoch 1/2  step 2/4",
        "epoch 2/2  step 2/4",
        "epoch 2/2  step 3/4",
        "epoch 2/2  step 4/4",
    ]


@pytest.mark.usefixtures("_no_pictures")
def test_it_says_so_no_more_than_twice_a_minute(prepared, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    now, train_step = [0.0], loop.train_step

    def ten_seconds(*arguments):
        now[0] += 10
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", ten_seconds)
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    train(prepared, tmp_path, params(**{**SHORT, "train__epochs": 1, "train__iterations_per_epoch": 10}))
    lines = [line for line in caplog.messages if re.fullmatch(r"epoch 1/1  step \d+/10", line)]
    assert lines == ["epoch 1/1  step 4/10", "epoch 1/1  step 8/10"]


def test_tensorboard_shows_the_rows_and_no_epoch_twice(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "draw", victims.draw)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_before_saving(patch, "latest.pth", 2)
        victims.train(prepared, tmp_path)
    monkeypatch.setattr("time.time", lambda: 4e9)  # the names of the event files begin with the second
    victims.train(prepared, tmp_path)
    (folder,) = tmp_path.glob("state/*/tensorboard")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(folder))
    events.Reload()
    final = checkpoint.load(tmp_path / "checkpoint_final.pth")
    assert final["row"]["epoch"] == 3
    for tag in ("val/val_loss", "dice/dice_liver", "case/case_dice_mean"):
        column = tag.split("/")[1]
        expected = [(int(row["epoch"]), float(row[column])) for row in rows_of(tmp_path) if row[column]]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [epoch for epoch, _ in found] == [epoch for epoch, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_trained_on_their_own_cases(trained):
    assert contents(trained / "fold_0")["metrics.csv"] != contents(trained / "fold_1")["metrics.csv"]


def test_fold_all_trains_on_every_case(prepared, tmp_path, monkeypatch):
    seen = []

    def fit(training, *_):
        seen.append(training.feed)
        raise Interrupted

    monkeypatch.setattr(loop, "fit", fit)
    with pytest.raises(Interrupted):
        job.train(prepared.store, prepared.splits, "all", tmp_path, params())
    assert seen[0].train_cases == seen[0].val_cases == prepared.cases.training


@pytest.mark.usefixtures("_no_pictures")
def test_the_loss_falls(prepared, tmp_path):
    changes = {"train__epochs": 6, "train__iterations_per_epoch": 8, "train__augment": False}
    train(prepared, tmp_path, params(**changes, train__optimiser__learning_rate=0.03))
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path)]
    assert losses[-1] < losses[0] - 0.3


def test_a_training_that_diverges_leaves_its_batch_and_says_where(prepared, tmp_path, monkeypatch):
    settings = params(**SHORT)
    broken_at(monkeypatch, 1)
    with pytest.raises(SegpipeError, match="epoch 2, step 1"):
        train(prepared, tmp_path, settings)
    state = state_of(prepared, tmp_path, settings)
    assert checkpoint.load(state / "latest.pth")["epoch"] == 1  # all that was good is kept
    assert checkpoint.load(state / "diverged.pth")["step"] == 1
    assert json.loads((state / "run.json").read_text())


# ---- the best, where an epoch is repeated and comes out differently --------------------------------------------------


def scripted(monkeypatch, dice):
    """Evaluate to these numbers, one per epoch; the weights of each epoch that was evaluated."""
    weights = {}

    def evaluate(training, between):
        epoch = len(training.rows) + 1
        weights[epoch] = {key: value.clone() for key, value in training.network.state_dict().items()}
        return {"val_loss": 0.0, "dice_mean": dice[epoch - 1], **{f"dice_{name}": 0.5 for name in CLASSES}}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    return weights


REPEATED = {
    # every, what stops it, Dice of the first attempt, Dice of the rerun, best, epochs that the rerun computes
    "every epoch, between best_new and latest": (
        (1, lambda m: stop_before_saving(m, "latest.pth", 3)),
        ([0.2, 0.1, 0.9, 0.1], [None, None, 0.15, 0.1]),
        (1, [3, 4]),
    ),
    "every epoch, between latest and the rename": (
        (1, lambda m: stop_before_renaming(m, 3)),
        ([0.2, 0.1, 0.9, 0.1], [None, None, None, 0.1]),
        (3, [4]),
    ),
    "every third, between best_new and latest": (
        (3, lambda m: stop_before_saving(m, "latest.pth", 2)),
        ([0.1, 0.2, 0.1, 0.9, 0.1, 0.1, 0.1], [None, None, None, 0.1, 0.15, 0.1, 0.1]),
        (2, [4, 5, 6, 7]),
    ),
    "every third, before any latest": (
        (3, lambda m: stop_before_saving(m, "latest.pth", 1)),
        ([0.1, 0.9, 0.1, 0.1], [0.1, 0.2, 0.3, 0.1]),
        (3, [1, 2, 3, 4]),
    ),
    "every third, between latest and the rename": (
        (3, lambda m: stop_before_renaming(m, 2)),
        ([0.1, 0.2, 0.1, 0.9, 0.1, 0.1, 0.1], [None] * 6 + [0.1]),
        (4, [7]),
    ),
}


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("checkpoints", [True, False], ids=["", "then without checkpoints"])
@pytest.mark.parametrize("case", REPEATED)
def test_the_best_is_an_epoch_that_metrics_csv_has(prepared, tmp_path, monkeypatch, case, checkpoints):
    """As on a GPU, where an epoch that is computed twice is not the same epoch."""
    (every, stop), (first, second), (best_epoch, computed) = REPEATED[case]
    changes = {**SHORT, "train__epochs": len(first), "train__best__smoothing": 0.0, "runtime__checkpoint_every": every}
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop(patch)
        lost = scripted(patch, first)
        train(prepared, tmp_path, params(**changes))
    weights = scripted(monkeypatch, second)
    train(prepared, tmp_path, params(**changes, runtime__disable_checkpointing=not checkpoints))
    assert list(weights) == computed
    best, final = loaded(tmp_path)
    rows = rows_of(tmp_path)
    assert best["epoch"] == best["facts"]["best_epoch"] == final["facts"]["best_epoch"] == best_epoch
    assert {name: f"{best['row'][name]:.6g}" for name in rows[0]} == rows[best_epoch - 1]
    assert float(rows[best_epoch - 1]["dice_mean"]) == max(float(row["dice_mean"]) for row in rows)
    expected = {**lost, **weights}[best_epoch]
    assert all(torch.equal(best["network"][key], expected[key]) for key in expected)
    assert not list(tmp_path.rglob("best_new.pth"))


# ---- signals and failures --------------------------------------------------------------------------------------------


def on_a_device(monkeypatch):
    """Look at the losses as seldom as on a GPU."""
    check = divergence.check

    class Pretended:
        device = SimpleNamespace(type="cuda")

        def __init__(self, training):
            self.training = training

        def __getattr__(self, name):
            return getattr(self.training, name)

    monkeypatch.setattr(divergence, "check", lambda training, *rest: check(Pretended(training), *rest))


def broken_at(monkeypatch, step):
    loss = loop._training_loss

    def broken(training, batch, elsewhere):
        value = loss(training, batch, elsewhere)
        return value * float("nan") if training.step == step else value

    monkeypatch.setattr(loop, "_training_loss", broken)


LONG_EPOCHS = {**SHORT, "train__iterations_per_epoch": 4}


@pytest.mark.usefixtures("_no_pictures")
def test_a_signal_never_saves_what_has_diverged(prepared, tmp_path, monkeypatch):
    """On a device the step that diverged may not have been looked at yet."""
    on_a_device(monkeypatch)
    broken_at(monkeypatch, 5)
    saved = []
    after_step(monkeypatch, 4, lambda: saved.extend(path.read_bytes() for path in tmp_path.rglob("latest.pth")))
    after_step(monkeypatch, 6, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SegpipeError, match="epoch 2, step 5"):
        train(prepared, tmp_path, params(**LONG_EPOCHS))
    (latest,) = tmp_path.rglob("latest.pth")
    assert checkpoint.load(latest)["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint.load(latest)["network"].values())
    assert checkpoint.load(latest.with_name("diverged.pth"))["step"] == 5
    assert "SIGTERM, saved" not in latest.with_name("train.log").read_text()


def after_step(monkeypatch, step, do):
    train_step = loop.train_step

    def wrapped(training, number, batches):
        result = train_step(training, number, batches)
        if number == step:
            do()
        return result

    monkeypatch.setattr(loop, "train_step", wrapped)


@pytest.mark.usefixtures("_no_pictures")
def test_ctrl_c_twice_ends_at_once_and_saves_nothing(prepared, tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # started in the background of a shell, tests ignore it
    after_step(monkeypatch, 5, twice)
    with pytest.raises(KeyboardInterrupt):
        train(prepared, tmp_path, params(**LONG_EPOCHS))
    (latest,) = tmp_path.rglob("latest.pth")
    assert checkpoint.load(latest)["step"] == 4
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("_no_pictures")
def test_the_log_says_why_a_training_ended(prepared, tmp_path, monkeypatch):
    broken_at(monkeypatch, 0)
    with pytest.raises(SegpipeError) as raised:
        train(prepared, tmp_path, params(**SHORT))
    log = next(tmp_path.rglob("train.log"))
    assert f"TrainingFailed: {raised.value}" in log.read_text()
    monkeypatch.undo()
    monkeypatch.setattr(loop, "fit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(prepared, tmp_path, params(**SHORT))
    assert log.read_text().endswith("ZeroDivisionError: division by zero\n")

    def fit(*_):
        error = ValueError("broken")
        error.add_note("in a batch of case a")
        raise error

    monkeypatch.setattr(loop, "fit", fit)
    with pytest.raises(ValueError, match="broken"):
        train(prepared, tmp_path, params(**SHORT))
    assert log.read_text().endswith("ValueError: broken\nin a batch of case a\n")
    assert "the training diverged" in log.read_text()  # appended


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("name", ["best_new.pth", "latest.pth", "final.pth"])
def test_a_full_disk_is_one_message_with_where_and_cure(prepared, tmp_path, monkeypatch, name):
    save = checkpoint.save

    def full(path, content):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, content)

    with monkeypatch.context() as patch, pytest.raises(SegpipeError) as raised:
        patch.setattr(checkpoint, "save", full)
        train(prepared, tmp_path, params(**SHORT))
    said = str(raised.value)
    assert re.search(rf"where: +{tmp_path}.*/{name}\n +found: +No space left on device\n", said)
    assert "make room, then give the same command again" in said
    assert said in next(tmp_path.rglob("train.log")).read_text()
    train(prepared, tmp_path, params(**SHORT))  # as it says
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "state"}


@pytest.mark.usefixtures("_no_pictures")
def test_too_small_a_device_is_named_with_what_needs_less(prepared, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has")

    monkeypatch.setattr(loop, "train_step", full)
    with pytest.raises(SegpipeError) as raised:
        train(prepared, tmp_path, params(**SHORT))
    said = str(raised.value)
    assert "batches of 2 patches of [16, 16, 16] voxels" in said
    assert "found:    CUDA out of memory\n" in said
    assert "lower plan.gpu_memory_gb" in said


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("other", [True, False])
def test_another_precision_than_before_is_warned_of(prepared, tmp_path, monkeypatch, caplog, other):
    settings = params(**{**SHORT, "train__epochs": 3}, train__precision="auto")
    monkeypatch.setattr(device, "precision", lambda *_: torch.float32)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_when(patch, lambda training: training.step == 2 and not training.losses)
        train(prepared, tmp_path, settings)
    if other:
        monkeypatch.setattr(device, "precision", lambda *_: torch.bfloat16)
    train(prepared, tmp_path, settings)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    text = "goes on in bfloat16 what was begun in float32; train.precision would fix it"
    assert [message.partition(": ")[2] for message in warned] == [text] * other


@pytest.mark.usefixtures("_no_pictures")
def test_of_pretrained_weights_only_the_name_is_kept(prepared, trained, tmp_path):
    """Where files lie is no result."""
    path = tmp_path / "somewhere/weights.pth"
    path.parent.mkdir()
    path.write_bytes((trained / "fold_0/checkpoint_final.pth").read_bytes())
    out = tmp_path / "out"
    settings = params(**SHORT, train__pretrained_weights=str(path))
    train(prepared, out, settings)
    for content in loaded(out):
        assert content["settings"]["pretrained_weights"] == content["facts"]["pretrained"]["file"] == "weights.pth"
    for name in ("best", "final"):
        assert b"somewhere" not in (out / f"checkpoint_{name}.pth").read_bytes()
    validation.validate(
        prepared.store, prepared.splits, "0", out / "checkpoint_final.pth", tmp_path / "validation", settings
    )
    summary = (tmp_path / "validation/summary.json").read_text()
    assert "somewhere" not in summary
    assert '"weights.pth"' in summary
