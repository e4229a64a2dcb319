"""The lines that a training prints."""

from datetime import timedelta
from statistics import mean

from segpipe.training.loop import Training


def epoch(training: Training, classes: list[str], step_seconds: list[float]) -> str:
    """The line of the last epoch. step_seconds : per step of the last epochs, the present one last"""
    row = training.rows[-1]
    left = timedelta(seconds=round((training.length.total_steps - row["step"]) * mean(step_seconds)))
    dice = " ".join(f"{name} {_readable(row[f'dice_{name}'])}" for name in classes)
    further = {"averaged": row.get("averaged_dice_mean"), "cases": row.get("case_dice_mean")}
    more = "".join(f"  {name} {value:.3f}" for name, value in further.items() if value is not None)
    return (
        f"epoch {row['epoch']}/{training.epochs}  loss {row['train_loss']:.3f}  val {_readable(row['val_loss'])}  "
        f"dice {dice}  ema {_readable(row['dice_ema'])}{more}  lr {row['learning_rate']:.5f}  "
        f"{step_seconds[-1]:.3f} s/it  left {left}"
    )


def _readable(value: float | None) -> str:
    return "-" if value is None else format(value, ".3f")
