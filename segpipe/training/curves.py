"""The training's numbers as a table and as a picture."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from segpipe import digest

Row = dict[str, Any]


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line per epoch; an empty field where a value does not exist."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
    digest.write_text(path, text.getvalue())


def add_timing(path: Path, epoch: int, seconds_per_step: float) -> None:
    """Note how long an epoch took. Times are no part of the result: they are kept beside it."""
    if not path.exists():
        path.write_text("epoch,seconds_per_step,finished_at\n")
    with path.open("a") as file:
        file.write(f"{epoch},{seconds_per_step:.4f},{time.time():.1f}\n")


def _short(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


class Board:
    """The rows for TensorBoard: `tensorboard --logdir results` shows all trainings, each a run."""

    def __init__(self, folder: Path, n_rows: int) -> None:
        # what a killed process wrote of later epochs is not shown twice
        self._writer = SummaryWriter(folder, purge_step=n_rows + 1)

    def write(self, row: Row) -> None:
        """Add an epoch."""
        for key, value in row.items():
            if key not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(f"{key.split('_')[0]}/{key}", value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Nothing follows."""
        self._writer.close()


def draw(path: Path, rows: list[Row], classes: list[str]) -> None:
    """Losses, Dice per class with its running mean, and the learning rate over the epochs."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    losses, dice, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]

    def line(axes: Any, key: str, label: str, **style: Any) -> None:
        axes.plot(epochs, [float("nan") if row[key] is None else row[key] for row in rows], label=label, **style)

    line(losses, "train_loss", "training")
    line(losses, "val_loss", "validation")
    for name in classes:
        line(dice, f"dice_{name}", name, linewidth=1)
    line(dice, "dice_ema", "running mean", color="black", linewidth=2)
    for key, label in (("averaged_dice_mean", "of averaged weights"), ("case_dice_mean", "on whole cases")):
        if key in rows[0]:
            style = {"linestyle": "--", "marker": "."} if "averaged" in key else {"linestyle": "", "marker": "x"}
            line(dice, key, label, color="black", **style)
    line(rate, "learning_rate", "learning rate")
    for axes, title in ((losses, "loss"), (dice, "Dice on validation patches"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    dice.set_ylim(0, 1)
    losses.legend()
    dice.legend(fontsize="small")
    with digest.new_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
