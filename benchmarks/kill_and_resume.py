"""Kill a training with SIGKILL at random moments, run it again, and compare with one that nobody disturbed.

    python benchmarks/kill_and_resume.py > docs/kill_and_resume.md

The training: six epochs on the generated phantoms on the CPU, with the running mean of the weights and without
replacement. Twenty times it is started anew, killed at a random moment and run again to its end; then one training is
killed ten times before it may get to its end. Exits with 1 where a file differs or an epoch is lost.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

REPO = Path(__file__).resolve().parents[1]
FILES = ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv")
PREPARED = "data/preprocessed/Dataset000_Phantoms"
EPOCHS = 6
TRAIN = {
    "epochs": EPOCHS,
    "iterations_per_epoch": 20,
    "val_iterations_per_epoch": 2,
    "replacement": False,
    "ema": {"decay": 0.95, "ramp_steps": 20},
}


@dataclass(frozen=True)
class Run:
    """One training that was killed once. moment_s : after its first line; repeated : finished epochs computed again."""

    moment_s: float
    finished: int
    resumed_after: int
    repeated: int
    equal: bool


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        undisturbed_s = until_its_end(folder, "undisturbed")
        expected = digests(folder / "undisturbed")
        runs: list[Run] = []
        while len(runs) < arguments.kills:
            run = killed(folder, f"killed_{len(runs)}", moments.uniform(0, undisturbed_s), expected)
            runs += [run] if run else []
        again_and_again(folder, undisturbed_s / 3, arguments.kills // 2)
        survived = digests(folder / "again_and_again") == expected
    print(report(runs, undisturbed_s, survived))
    sys.exit(not (survived and all(run.equal and run.repeated <= 1 for run in runs)))


def prepare(folder: Path) -> None:
    """Settings, and everything that comes before the training."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["train"].update(TRAIN)
    params["runtime"].update(device="cpu", threads=1)  # two would wait for each other beside other work
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    targets = [f"{PREPARED}/splits.json", f"{PREPARED}/3d_fullres/manifest.json"]
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(REPO / "Snakefile"), "--cores", "all"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    """Start the training as rule train does; returns when its first line is in the log."""
    inputs = [f"--{name}={PREPARED}/{name}.json" for name in ("cases", "plan", "splits")]
    manifest = f"--manifest={PREPARED}/3d_fullres/manifest.json"
    script = os.path.relpath(REPO / "workflow/scripts/train.py", folder)
    arguments = ["--configuration=3d_fullres", "--fold=0", *inputs, manifest, f"--out={out}", f"--log={out}.log"]
    log = folder / f"{out}.log"
    said = log.read_text().count("digest") if log.exists() else 0
    process = subprocess.Popen([sys.executable, script, *arguments], cwd=folder, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("digest") > said):
        time.sleep(0.005)
    return process


def until_its_end(folder: Path, out: str) -> float:
    """Run a training to its end; seconds from its first line on."""
    process = start(folder, out)
    begin = time.monotonic()
    if process.wait() != 0:
        sys.exit(f"the training failed: {(folder / f'{out}.log').read_text()}")
    return time.monotonic() - begin


def killed(folder: Path, out: str, moment_s: float, expected: dict[str, str]) -> Run | None:
    """Start a training, kill it at its moment, run it again, compare; None where it had ended before its moment."""
    process = start(folder, out)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment_s)
        shutil.rmtree(folder / out)
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = n_finished(folder / out)
    (state,) = (folder / out / "state").glob("*/")
    is_whole = (state / "final.pth").exists()  # killed while it published
    until_its_end(folder, out)
    resumed = EPOCHS if is_whole else json.loads((state / "run.json").read_text())["resumed_after_epoch"]
    return Run(moment_s, finished, resumed, finished - resumed, digests(folder / out) == expected)


def again_and_again(folder: Path, most_s: float, n_kills: int) -> None:
    """Kill one training several times before it may get to its end."""
    moments = random.Random(1)
    for _ in range(n_kills):
        process = start(folder, "again_and_again")
        time.sleep(moments.uniform(0, most_s))
        process.send_signal(signal.SIGKILL)
        process.wait()
    until_its_end(folder, "again_and_again")


def n_finished(out: Path) -> int:
    """The epochs in the training's metrics.csv; it is written when an epoch ends, before its checkpoint."""
    paths = list((out / "state").glob("*/metrics.csv"))
    return len(paths[0].read_text().splitlines()) - 1 if paths else 0


def digests(out: Path) -> dict[str, str]:
    """Of the published files."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES}


def report(runs: list[Run], undisturbed_s: float, survived: bool) -> str:
    """The table in Markdown."""
    rows: list[list[Any]] = [
        [
            i + 1,
            f"{run.moment_s:.2f}",
            run.finished,
            run.resumed_after,
            run.repeated,
            "equal" if run.equal else "DIFFER",
        ]
        for i, run in enumerate(sorted(runs, key=lambda run: run.moment_s))
    ]
    n_equal, most = sum(run.equal for run in runs), max(run.repeated for run in runs)
    again = statistics.median(run.repeated for run in runs)
    lines = [
        "# Killed at random moments",
        "",
        f"`python benchmarks/kill_and_resume.py --kills {len(runs)}`, torch {torch.__version__}.",
        f"A training of {EPOCHS} epochs on the CPU, undisturbed {undisturbed_s:.1f} s from its first line to its end.",
        "Each row is a training of its own, ended with SIGKILL at a random moment and run again to its end.",
        "",
        f"- {n_equal} of {len(runs)}: final weights, best weights (the whole checkpoint files) and metrics.csv have",
        "  the bytes of the undisturbed training's",
        f"- finished epochs computed again: at most {most} per kill, median {again:g}; beside them only the",
        "  epoch that the kill interrupted",
        f"- one training, killed {len(runs) // 2} times before it got to its end: {'equal' if survived else 'DIFFERS'}",
        "",
        "| kill | at, s | epochs finished | continued after epoch | computed again | files |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
