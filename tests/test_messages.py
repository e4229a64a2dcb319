"""The line of an epoch."""

from types import SimpleNamespace

import pytest

from segpipe.training import messages

ROW = {
    "epoch": 2,
    "step": 500,
    "learning_rate": 0.0012345,
    "train_loss": -0.12345,
    "val_loss": -0.25,
    "dice_mean": 0.5,
    "dice_liver": 0.75,
    "dice_tumour": 0.25,
    "dice_ema": 0.4567,
    "fitness_ema": 0.4567,
}


def line(seconds=(0.5, 0.25), total=1000, **changes):
    training = SimpleNamespace(rows=[{}, {**ROW, **changes}], epochs=4, length=SimpleNamespace(total_steps=total))
    return messages.epoch(training, ["liver", "tumour"], list(seconds))


def test_the_line_has_what_one_wants_to_see():
    assert line() == (
        "epoch 2/4  loss -0.123  val -0.250  dice liver 0.750 tumour 0.250  ema 0.457  lr 0.00123  "
        "0.250 s/it  left 0:03:08"
    )


def test_what_does_not_exist_is_a_dash():
    assert line(val_loss=None, dice_tumour=None, dice_ema=None) == (
        "epoch 2/4  loss -0.123  val -  dice liver 0.750 tumour -  ema -  lr 0.00123  0.250 s/it  left 0:03:08"
    )


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ({"averaged_dice_mean": 0.6}, "ema 0.457  averaged 0.600  lr"),
        ({"case_dice_mean": 0.7}, "ema 0.457  cases 0.700  lr"),
        ({"case_dice_mean": 0.7, "averaged_dice_mean": 0.6}, "ema 0.457  averaged 0.600  cases 0.700  lr"),
        ({"case_dice_mean": None, "averaged_dice_mean": None}, "ema 0.457  lr"),  # whole cases have their epochs
        ({"averaged_dice_mean": 0.0}, "ema 0.457  averaged 0.000  lr"),
    ],
)
def test_averaged_weights_and_whole_cases_are_shown_where_they_are(columns, shown):
    assert shown in line(**columns)


def test_the_time_that_is_left_is_by_the_mean_of_the_last_epochs():
    assert line(seconds=[1.0, 2.0, 3.0], total=500 + 3600).endswith("3.000 s/it  left 2:00:00")
    assert line(total=500).endswith("left 0:00:00")
