"""metrics.csv and progress.png."""

import csv

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
    one, two = ((tmp_path / name).read_bytes() for name in ("one.png", "two.png"))
    assert one.startswith(b"\x89PNG")
    assert two.startswith(b"\x89PNG")
    assert one != two
