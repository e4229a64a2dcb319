"""The lines that a training prints, and the file that keeps them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from logging import ERROR, FileHandler, Formatter, LogRecord, getLogger
from pathlib import Path
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


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Keep the messages of the block in a file, with the time and with the error that ends it."""
    handler = FileHandler(path)
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        handler.handle(LogRecord(__name__, ERROR, __file__, 0, "%s", (text,), None))
        raise
    finally:
        getLogger().removeHandler(handler)
        handler.close()


def _readable(value: float | None) -> str:
    return "-" if value is None else format(value, ".3f")
