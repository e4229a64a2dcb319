"""Which epoch is the best, and when to stop: decided by the rows alone."""

import pytest
from tiny import params

from segpipe.errors import SegpipeError
from segpipe.training import selection
from segpipe.training.schedule import Length
from segpipe.training.selection import best_epoch, columns, stopped, with_running_means

CLASSES = ["liver", "tumour"]


def train(**changes):
    return params(**{f"train__{key}": value for key, value in changes.items()}).train


def rows_of(of=None, **values):
    """The rows of some epochs, columns given as lists; dice_mean is 0.5 where it is not given."""
    of, rows = of or train().best, []
    for i in range(len(next(iter(values.values())))):
        row = {"epoch": i + 1, "dice_mean": 0.5, **{key: value[i] for key, value in values.items()}}
        rows.append(with_running_means(row, rows, of))
    return rows


def best(fitness=None, smoothing=0.9):
    return train(best={"fitness": fitness or {"dice_mean": 1.0}, "smoothing": smoothing}).best


def early(patience, monitor="dice_mean", min_delta=0.0, min_epochs=0):
    settings = {"patience": patience, "monitor": monitor, "min_delta": min_delta, "min_epochs": min_epochs}
    return train(early_stopping=settings).early_stopping


def first_stop(rows, of):
    """The epoch after which a training with these rows would have ended."""
    return next((n for n in range(len(rows) + 1) if stopped(rows[:n], of)), None)


# columns


def test_columns_by_settings():
    start, dice = ["epoch", "step", "learning_rate", "train_loss"], ["dice_mean", "dice_liver", "dice_tumour"]
    end = ["dice_ema", "fitness_ema"]
    assert columns(train(), CLASSES) == [*start, "val_loss", *dice, *end]
    everything = train(ema__decay=0.9, full_validation__every=2)
    averaged = ["averaged_val_loss", *(f"averaged_{name}" for name in dice)]
    assert columns(everything, CLASSES) == [
        *start,
        "val_loss",
        *dice,
        *averaged,
        *(f"case_{name}" for name in dice),
        *end,
    ]


# the fitness and its running mean


def test_the_running_means_are_exponential():
    dice, loss = [0.5, 0.9, 0.0, 0.4], [1.0, 0.5, 2.0, 0.25]
    rows = rows_of(best({"dice_liver": 0.5, "val_loss": -0.1}, smoothing=0.8), dice_liver=dice, val_loss=loss)
    mean = None
    for row, d, v in zip(rows, dice, loss, strict=True):
        fitness = 0.5 * d - 0.1 * v
        mean = fitness if mean is None else 0.8 * mean + 0.2 * fitness
        assert row["fitness_ema"] == pytest.approx(mean)
    rows = rows_of(best(smoothing=0.8), dice_mean=dice)
    assert [row["dice_ema"] for row in rows] == pytest.approx([0.5, 0.58, 0.464, 0.4512])
    assert [row["fitness_ema"] for row in rows] == [row["dice_ema"] for row in rows]


def test_without_smoothing_the_fitness_counts_as_it_is():
    rows = rows_of(best({"dice_tumour": 2.0}, smoothing=0.0), dice_tumour=[0.1, 0.7, 0.3])
    assert [row["fitness_ema"] for row in rows] == pytest.approx([0.2, 1.4, 0.6])
    assert best_epoch(rows) == 2


def test_the_running_mean_of_the_dice_may_be_the_fitness():
    rows = rows_of(best({"dice_ema": 1.0}, smoothing=0.5), dice_mean=[0.0, 1.0])
    assert [row["dice_ema"] for row in rows] == pytest.approx([0.0, 0.5])
    assert [row["fitness_ema"] for row in rows] == pytest.approx([0.0, 0.25])


def test_an_epoch_without_a_metric_of_the_fitness_keeps_the_mean():
    of = best({"case_dice_mean": 1.0, "dice_mean": 0.0}, smoothing=0.5)
    rows = rows_of(of, case_dice_mean=[None, 0.4, None, None, 0.8, None])
    assert [row["fitness_ema"] for row in rows] == [None, 0.4, 0.4, 0.4, pytest.approx(0.6), pytest.approx(0.6)]
    assert best_epoch(rows) == 5
    assert best_epoch(rows[:4]) == 2
    assert best_epoch(rows[:1]) is None
    assert best_epoch([]) is None


def test_a_dice_that_does_not_exist_leaves_both_means():
    rows = rows_of(best({"dice_liver": 1.0}, smoothing=0.5), dice_liver=[0.2, None, 0.6])
    assert [row["fitness_ema"] for row in rows] == pytest.approx([0.2, 0.2, 0.4])


def test_of_equal_epochs_the_first_is_the_best():
    rows = rows_of(best(smoothing=0.0), dice_mean=[0.1, 0.6, 0.3, 0.6, 0.6])
    assert best_epoch(rows) == 2


def test_the_best_is_by_the_mean_not_by_a_single_epoch():
    rows = rows_of(best(smoothing=0.9), dice_mean=[0.5, 0.9, 0.7, 0.7, 0.7])
    assert best_epoch(rows) == 5


# early stopping


def test_without_patience_a_training_never_stops():
    assert first_stop(rows_of(dice_mean=[0.5] * 50), early(None)) is None


@pytest.mark.parametrize(
    ("patience", "dice", "stop"),
    [
        (1, [0.1, 0.2, 0.2, 0.9], 3),  # the same again is no improvement
        (2, [0.1, 0.2, 0.2, 0.3, 0.3, 0.2], 6),
        (3, [0.1, 0.2, 0.2, 0.2, 0.3, 0.3], None),
        (2, [0.9, 0.1, 0.2, 0.3], 3),  # better than before is not better than the best
        (4, [0.5, 0.4, 0.3, 0.2, 0.1], 5),
    ],
)
def test_patience_counts_epochs_without_an_improvement(patience, dice, stop):
    assert first_stop(rows_of(dice_mean=dice), early(patience)) == stop


@pytest.mark.parametrize(("min_delta", "stop"), [(0.0, None), (0.01, 4), (0.002, None)])
def test_an_improvement_below_min_delta_is_none(min_delta, stop):
    """Small ones add up all the same: they are counted from the best that was one."""
    rows = rows_of(dice_mean=[0.5, 0.5015, 0.503, 0.5045, 0.506, 0.5075])
    assert first_stop(rows, early(3, min_delta=min_delta)) == stop


@pytest.mark.parametrize(("min_epochs", "stop"), [(0, 3), (3, 3), (4, 4), (6, 6), (9, None)])
def test_a_training_never_stops_before_min_epochs(min_epochs, stop):
    rows = rows_of(dice_mean=[0.5] * 8)
    assert first_stop(rows, early(2, min_epochs=min_epochs)) == stop


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss", "averaged_val_loss"])
def test_of_a_loss_the_lower_is_the_better(monitor):
    falling, rising = [1.0, 0.5, 0.3, 0.2, 0.1], [-1.0, -0.5, -0.3, -0.2, -0.1]
    assert first_stop(rows_of(**{monitor: falling}), early(2, monitor)) is None
    assert first_stop(rows_of(**{monitor: rising}), early(2, monitor)) == 3
    assert first_stop(rows_of(**{monitor: falling}), early(2, monitor, min_delta=0.6)) == 5  # 0.3 was the last good one


@pytest.mark.parametrize("monitor", ["dice_liver", "dice_ema", "averaged_dice_mean", "dice_bone_loss"])
def test_of_a_dice_the_higher_is_the_better_whatever_the_class_is_called(monitor):
    rising, falling = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    own = {"dice_mean" if monitor == "dice_ema" else monitor: rising}
    assert first_stop(rows_of(**own), early(2, monitor)) is None
    own = dict.fromkeys(own, falling)
    assert first_stop(rows_of(**own), early(2, monitor)) == 3


def test_the_smoothed_dice_is_monitored_as_it_is_written():
    dice = [0.5, 0.9, 0.5, 0.5, 0.5]  # falls at once, its mean rises first
    assert first_stop(rows_of(best(smoothing=0.9), dice_mean=dice), early(3, "dice_mean")) == 5
    assert first_stop(rows_of(best(smoothing=0.9), dice_mean=dice), early(4, "dice_ema")) is None


def test_an_epoch_without_a_value_is_no_improvement():
    rows = rows_of(dice_liver=[0.5, None, 0.4, 0.4])
    assert first_stop(rows, early(2, "dice_liver")) == 3
    rows = rows_of(dice_liver=[0.5, None, 0.6, 0.4])
    assert first_stop(rows, early(2, "dice_liver")) is None


def test_what_was_not_measured_ends_no_training():
    """Whole cases are scored every third epoch, with a patience of two."""
    rows = rows_of(case_dice_mean=[None, None, 0.5, None, None, 0.6, None, None, 0.6])
    assert first_stop(rows, early(2, "case_dice_mean")) == 9
    assert first_stop(rows_of(case_dice_mean=[None] * 20), early(2, "case_dice_mean")) is None


def test_what_is_told_of_the_end():
    rows = rows_of(dice_liver=[0.5, 0.75, 0.6, 0.75])
    assert stopped(rows, early(2, "dice_liver", min_delta=0.125)) == {
        "epoch": 4,
        "monitor": "dice_liver",
        "value": 0.75,
        "best_value": 0.75,
        "best_epoch": 2,
        "reason": "dice_liver is 0.75, at its best 0.75 in epoch 2; no better by 0.125 for 2 epochs (patience 2)",
    }
    assert stopped([], early(2)) is None
    row = stopped(rows_of(val_loss=[0.123456, 0.2]), early(1, "val_loss"))
    assert row is not None
    assert row["reason"] == "val_loss is 0.2, at its best 0.1235 in epoch 1; no better by 0 for 1 epochs (patience 1)"


# whole cases that would never be validated


@pytest.mark.parametrize(("every", "fits"), [(None, True), (1, True), (3, True), (4, False), (100, False)])
@pytest.mark.parametrize("total", [15, 11])  # the third epoch may be short
def test_more_epochs_between_whole_cases_than_there_are_is_refused(every, fits, total):
    settings = train(full_validation__every=every)
    if fits:
        selection.check_full_validation(settings, Length(5, total))
    else:
        with pytest.raises(SegpipeError) as error:
            selection.check_full_validation(settings, Length(5, total))
        text = str(error.value)
        assert "params.yaml: train.full_validation.every" in text
        assert f"found:    {every}" in text
        assert "at most 3, the epochs of the training" in text
