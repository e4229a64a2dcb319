"""Which epoch is the best, and when to stop: pure functions of the rows of metrics.csv, so a resume decides alike."""

from typing import Any

from segpipe.errors import SegpipeError, problem
from segpipe.params.train import Best, EarlyStopping, Train
from segpipe.training.schedule import Length

Row = dict[str, Any]
LOSSES = ("train_loss", "val_loss", "averaged_val_loss")  # the columns that improve by falling


def columns(settings: Train, classes: list[str]) -> list[str]:
    """The columns of metrics.csv in their order."""
    dice = ["dice_mean", *(f"dice_{name}" for name in classes)]
    evaluated = ["val_loss", *dice]
    averaged = [f"averaged_{name}" for name in evaluated] if settings.ema.decay is not None else []
    whole = [f"case_{name}" for name in dice] if settings.full_validation.every is not None else []
    return ["epoch", "step", "learning_rate", "train_loss", *evaluated, *averaged, *whole, "dice_ema", "fitness_ema"]


def check_full_validation(settings: Train, length: Length) -> None:
    """Refuse whole cases that would never be validated.

    Raises SegpipeError where the training has fewer epochs than lie between.
    """
    every, n_epochs = settings.full_validation.every, length.epochs_after(0)
    if every is not None and every > n_epochs:
        raise SegpipeError(
            problem(
                "no epoch validates whole cases",
                where="params.yaml: train.full_validation.every",
                found=every,
                expected=f"at most {n_epochs}, the epochs of the training",
                cure="lower it, or set null",
            )
        )


def with_running_means(row: Row, rows: list[Row], settings: Best) -> Row:
    """The row of an epoch with the running means that follow from those before it.

    Where a metric of the fitness does not exist in this epoch, its running mean stays as it was.
    """
    earlier = rows[-1] if rows else {}
    row = {**row, "dice_ema": _running_mean(earlier.get("dice_ema"), row["dice_mean"], settings.smoothing)}
    values = [row[name] for name in settings.fitness]
    fitness = None
    if None not in values:
        fitness = sum(weight * value for weight, value in zip(settings.fitness.values(), values, strict=True))
    return {**row, "fitness_ema": _running_mean(earlier.get("fitness_ema"), fitness, settings.smoothing)}


def _running_mean(mean: float | None, value: float | None, smoothing: float) -> float | None:
    if mean is None or value is None:
        return value if mean is None else mean
    return smoothing * mean + (1 - smoothing) * value


def best_epoch(rows: list[Row]) -> int | None:
    """The first epoch with the highest running mean of the fitness, counted from 1; None where none has one."""
    known = [row for row in rows if row["fitness_ema"] is not None]
    return max(known, key=lambda row: row["fitness_ema"])["epoch"] if known else None


def stopped(rows: list[Row], settings: EarlyStopping) -> Row | None:
    """Why the training ends here, before its time; None while it goes on.

    It goes on after an epoch that has no value: what was not measured has not failed to improve.
    """
    if settings.patience is None or not rows or rows[-1][settings.monitor] is None:
        return None
    sign = -1 if settings.monitor in LOSSES else 1
    best, since = None, 0
    for row in rows:
        value = row[settings.monitor]
        if value is not None and (best is None or sign * (value - best) > settings.min_delta):
            best, since = value, row["epoch"]
    if len(rows) < max(settings.min_epochs, since + settings.patience):
        return None
    value = rows[-1][settings.monitor]
    return {
        "epoch": len(rows),
        "monitor": settings.monitor,
        "value": value,
        "best_value": best,
        "best_epoch": since,
        "reason": f"{settings.monitor} is {_readable(value)}, at its best {_readable(best)} in epoch "
        f"{since}; no better by {settings.min_delta:g} for {len(rows) - since} epochs (patience {settings.patience})",
    }


def _readable(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"
