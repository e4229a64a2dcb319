"""Trainings that are killed or asked to end, each in a process of its own: python tests/victims.py PREPARED OUT.

One process imports everything and forks the others before anything is computed, which saves most of the time.
"""

import hashlib
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import Prepared, params

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.prepare import store
from segpipe.training import checkpoint, job, loop

STEPS, EPOCHS = 2, 3  # per epoch; until it stops early

# A training with everything that a resume has to restore. No loss improves by 10, so it stops after three epochs.
FULL = {
    "train__epochs": 5,
    "train__iterations_per_epoch": STEPS,
    "train__val_iterations_per_epoch": 1,
    "train__accumulate": 2,
    "train__replacement": False,
    "train__optimiser__name": "adamw",
    "train__optimiser__learning_rate": 1e-3,
    "train__optimiser__decay_norm_and_bias": False,
    "train__schedule__name": "cosine",
    "train__schedule__per": "iteration",
    "train__schedule__warmup_steps": 3,
    "train__ema": {"decay": 0.9, "ramp_steps": 3},
    "train__best": {"fitness": {"case_dice_mean": 1.0}, "smoothing": 0.5},  # of the second epoch only: that is the best
    "train__early_stopping": {"patience": 2, "monitor": "val_loss", "min_delta": 10.0, "min_epochs": 0},
    "train__full_validation": {"every": 2, "weights": "averaged", "step_size": 1.0, "mirroring": False},
}


def draw(path: Path, rows, classes) -> None:
    """Instead of a picture, which takes as long as the rest of a small training."""
    digest.write_json(path, [rows, classes])


def scorer(store, cases, settings, mirror_axes, dtype, on_case, ranks):
    """Instead of predicting cases: a number that follows from the weights."""

    def score(network):
        for _ in cases:
            on_case()
        value = float(sum(parameter.detach().abs().sum() for parameter in network.parameters())) % 1
        return {f"case_dice_{name}": value for name in ("mean", "liver", "kidneys", "vessel")}

    return score


def train(prepared: Prepared, out: Path, **changes: object) -> None:
    job.train(prepared.store, prepared.splits, "0", out, params(**FULL, **changes), scorer)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def after_call(module, name: str, nth: int, do: Callable[[], None]) -> None:
    """Do something at the end of the n-th call of a function."""
    function, calls = getattr(module, name), []

    def wrapped(*arguments, **named):
        result = function(*arguments, **named)
        calls.append(1)
        if len(calls) == nth:
            do()
        return result

    setattr(module, name, wrapped)


def within_an_epoch(number: int) -> None:
    after_call(loop, "train_step", STEPS + 1, lambda: send(number))


def in_an_evaluation(number: int) -> None:
    """Of the second epoch, between that of the weights and that of their running mean."""
    after_call(loop.target, "overlaps", 3, lambda: send(number))


def between_whole_cases(number: int) -> None:
    after_call(loop, "evaluate", 2, lambda: send(number))


def while_latest_is_written(number: int) -> None:
    """After the second epoch, with half of the file on disk."""
    save, counts = torch.save, []

    def half(content, file) -> None:
        counts.append("resume" in content)
        if counts.count(True) == 2:
            assert threading.current_thread() is not threading.main_thread()
            whole = io.BytesIO()
            save(content, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            send(number)
        save(content, file)

    checkpoint.torch.save = half


def twice(number: int) -> None:
    """The second signal comes while the first is being obeyed."""
    within_an_epoch(number)
    after_call(job._Job, "_resumable", STEPS, lambda: send(number))


@dataclass(frozen=True)
class Victim:
    """What happens to a training, how many steps its rerun computes, and how that one's first line goes on."""

    number: signal.Signals
    moment: Callable[[int], None]
    n_steps: int
    said: str
    changes: dict[str, object] = field(default_factory=dict)


TERM, USR1, INT, KILL = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL
AGAIN = STEPS * (EPOCHS - 1)  # where the checkpoint of the first epoch is the last one
VICTIMS = {
    "killed within an epoch": Victim(KILL, within_an_epoch, AGAIN, "continues after epoch 1 ("),
    "killed in an evaluation": Victim(KILL, in_an_evaluation, AGAIN, "continues after epoch 1 ("),
    "killed while it writes latest": Victim(KILL, while_latest_is_written, AGAIN, "continues after epoch 1 ("),
    "SIGTERM within an epoch": Victim(TERM, within_an_epoch, AGAIN - 1, "after epoch 1 and 1 steps ("),
    "SIGUSR1 within an epoch": Victim(USR1, within_an_epoch, AGAIN - 1, "after epoch 1 and 1 steps ("),
    "SIGINT within an epoch": Victim(INT, within_an_epoch, AGAIN - 1, "after epoch 1 and 1 steps ("),
    "SIGTERM twice": Victim(TERM, twice, AGAIN - 1, "after epoch 1 and 1 steps ("),
    "SIGTERM in an evaluation": Victim(TERM, in_an_evaluation, AGAIN - STEPS, "after epoch 1 and 2 steps ("),
    "SIGTERM between whole cases": Victim(TERM, between_whole_cases, AGAIN - STEPS, "after epoch 1 and 2 steps ("),
    "SIGTERM without checkpoints": Victim(
        TERM, within_an_epoch, STEPS * EPOCHS, "fold 0: starts (", {"runtime__disable_checkpointing": True}
    ),
}


def folder_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def main(root: Path, out: Path) -> None:
    """Run all victims; what became of each goes to statuses.json."""
    settings, prepared = params(), root / "prepared"
    cases = Cases.read(prepared / "cases.json", root / settings.dataset)
    manifest = prepared / "3d_fullres/manifest.json"
    opened = store.ensure(cases, prepared / "plan.json", manifest, settings.runtime)
    logging.basicConfig(level=logging.INFO)
    torch.use_deterministic_algorithms(False)  # imports for seconds what each training imports
    before = {number: signal.getsignal(number) for number in (TERM, USR1, INT)}
    statuses = {}
    for name, victim in VICTIMS.items():
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                victim.moment(victim.number)
                train(Prepared(root, opened, prepared / "splits.json"), out / folder_of(name), **victim.changes)
            except SystemExit as end:
                # the handlers of before are back, which end a process
                restored = all(signal.getsignal(n) == handler for n, handler in before.items())
                status = end.code if restored else 3
            except BaseException:
                traceback.print_exc()
                status = 1
            os._exit(status)
        _, status = os.waitpid(pid, 0)
        statuses[name] = os.waitstatus_to_exitcode(status)
    (out / "statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
