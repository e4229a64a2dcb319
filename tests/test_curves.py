"""metrics.csv, TensorBoard and progress.png."""

import csv

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segpipe.training import curves

ROWS = [
    {"epoch": 1, "learning_rate": 0.01, "train_loss": 1.23456789, "val_loss": 1.0, "dice_a": None, "dice_ema": 0.0},
    {"epoch": 2, "learning_rate": 1e-7, "train_loss": -0.5, "val_loss": 1.0, "dice_a": 0.25, "dice_ema": 0.1},
]


def test_a_value_that_does_not_exist_is_an_empty_field(tmp_path):
    curves.write_csv(tmp_path / "metrics.csv", ROWS)
    with (tmp_path / "metrics.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first == {
        "epoch": "1",
        "learning_rate": "0.01",
        "train_loss": "1.23457",
        "val_loss": "1",
        "dice_a": "",
        "dice_ema": "0",
    }
    assert float(second["learning_rate"]) == 1e-7
    assert second["dice_a"] == "0.25"


def test_the_picture_is_drawn_with_and_without_values(tmp_path):
    curves.draw(tmp_path / "one.png", ROWS[:1], ["a"])
    curves.draw(tmp_path / "two.png", ROWS, ["a"])
    one, two = (imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert one.shape == two.shape
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("column", ["averaged_dice_mean", "case_dice_mean"])
def test_averaged_weights_and_whole_cases_are_drawn_beside_the_rest(tmp_path, column):
    """A value in some epochs only is a point, so it is seen without neighbours."""
    rows = [{**row, column: None} for row in ROWS] + [{**ROWS[1], "epoch": 3, column: 0.5}]
    curves.draw(tmp_path / "without.png", [*ROWS, {**ROWS[1], "epoch": 3}], ["a"])
    curves.draw(tmp_path / "with.png", rows, ["a"])
    curves.draw(tmp_path / "elsewhere.png", [*rows[:2], {**rows[2], column: 0.7}], ["a"])
    without, drawn, elsewhere = (imread(tmp_path / f"{name}.png") for name in ("without", "with", "elsewhere"))
    assert not np.array_equal(drawn, without)
    assert not np.array_equal(drawn, elsewhere)


def test_a_validation_loss_that_does_not_exist_is_a_gap(tmp_path):
    rows = [{**ROWS[0], "epoch": i + 1, "val_loss": loss} for i, loss in enumerate([1.0, None, 2.0])]
    curves.draw(tmp_path / "gap.png", rows, ["a"])
    curves.draw(tmp_path / "line.png", [rows[0], {**rows[1], "val_loss": 1.5}, rows[2]], ["a"])
    gap, line = (imread(tmp_path / f"{name}.png") for name in ("gap", "line"))
    assert not np.array_equal(gap, line)
    curves.write_csv(tmp_path / "metrics.csv", rows)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["val_loss"] for row in csv.DictReader(file)] == ["1", "", "2"]


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def shown(folder):
    """{tag: [(epoch, value)]} as TensorBoard shows it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_each_value_at_its_epoch(tmp_path):
    board = curves.Board(tmp_path, 0)
    for row in ROWS:
        board.write({**row, "step": row["epoch"] * 250})
    board.write({"epoch": 3, "step": 750, "train_loss": 0.5, "val_loss": None, "dice_mean": None})
    board.close()
    found = shown(tmp_path)
    assert set(found) == {"learning/learning_rate", "train/train_loss", "val/val_loss", "dice/dice_a", "dice/dice_ema"}
    assert found["dice/dice_a"] == [(2, 0.25)]  # none where there is none
    assert [epoch for epoch, _ in found["train/train_loss"]] == [1, 2, 3]
    assert [value for _, value in found["train/train_loss"]] == pytest.approx([1.23456789, -0.5, 0.5])
    assert found["val/val_loss"] == [(1, 1), (2, 1)]


def test_an_epoch_is_seen_while_the_training_goes_on(tmp_path):
    board = curves.Board(tmp_path, 0)
    board.write(ROWS[0])
    assert shown(tmp_path)["train/train_loss"] == [(1, pytest.approx(1.23456789))]
    board.close()


def test_an_epoch_that_is_computed_again_is_shown_once(tmp_path, monkeypatch):
    """The file names begin with the second; two within the same one would be read in any order."""
    killed = curves.Board(tmp_path, 0)
    for epoch in (1, 2, 3):
        killed.write({"epoch": epoch, "train_loss": float(epoch)})
    monkeypatch.setattr("time.time", lambda: 4e9)
    resumed = curves.Board(tmp_path, 1)
    for epoch in (2, 3, 4):
        resumed.write({"epoch": epoch, "train_loss": float(10 * epoch)})
    resumed.close()
    assert shown(tmp_path)["train/train_loss"] == [(1, 1), (2, 20), (3, 30), (4, 40)]
