"""What do larger steps, no mirroring and bf16 cost in Dice, and what do they save?

    python benchmarks/prediction_presets.py --data /path/to/datasets --trained FOLDER

FOLDER is that of learning.py. The cases that fold 0 is validated on are predicted by the models of both programs
(nnU-Net's are imported), on the CPU, with every combination of step size, mirroring and precision. Seconds are those of
one call of `segpipe predict` in a process that has imported everything before, CPU seconds with those of all threads;
nothing but segmentations is written. The patch of Hippocampus is about as large as its cases, so that the step size
decides little there, while Nuclei2D has up to 80 tiles per image.

Prints a table, keeps `results/prediction_presets.json`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from prediction_agreement import dice
from prediction_tasks import TASKS, Cases, Task, cases
from running import leave_on_sigterm

from segpipe import digest
from segpipe.cli.main import main as segpipe
from segpipe.data import image

OUT = Path(__file__).with_name("results") / "prediction_presets.json"
STEPS, PRECISIONS = (0.5, 0.75, 1.0), ("off", "bf16")
PROGRAMS = ("segpipe", "nnU-Net")
HELD_OUT = {key: replace(TASKS[key], of="held_out") for key in ("hippocampus", "nuclei")}
QUICK_CASES = 3
Way = tuple[float, bool, str]


def model_of(program: str, task: Task, trained: Path, work: Path) -> Path:
    """The MODEL that a program trained: segpipe's with seed 0, nnU-Net's imported."""
    if program == "segpipe":
        return trained / f"{task.dataset}_segpipe_0/results"
    _call("import-nnunet", trained / task.trained, "--out", work / "imported")
    return work / "imported"


def predicted(model: Path, found: Cases, way: Way, out: Path) -> dict[str, Any]:
    """Seconds of one prediction, and the Dice of each case, mean over the classes."""
    step_size, mirroring, precision = way
    shutil.rmtree(out, ignore_errors=True)
    how = ["--step-size", step_size, "--precision", precision, *([] if mirroring else ["--no-mirroring"])]
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    _call("predict", "--model", model, "-i", found.images, "-o", out, "--device", "cpu", *how)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": sum(os.times()[:4]) - cpu}
    assert found.labels is not None
    scores = {path.name: _score(out / path.name, path) for path in sorted(found.labels.iterdir())}
    return {**seconds, "dice": scores}


def _call(*words: object) -> None:
    """Ends this process, with a message, where it fails."""
    segpipe([str(word) for word in words])


def _score(prediction: Path, label: Path) -> float:
    pair = [image.read_label(path).array[0] for path in (prediction, label)]
    values = {str(value): int(value) for value in np.unique(np.stack(pair)) if value}
    return float(np.nanmean(dice(*pair, values)))


def measured(model: Path, found: Cases, out: Path, ways: list[Way]) -> list[dict[str, Any]]:
    """All ways, each compared with the first one: per case, so that few cases tell much."""
    predicted(model, found, ways[-1], out)  # imports, and what the first call of torch takes
    rows = []
    first: dict[str, Any] = {}
    for way in ways:
        one = predicted(model, found, way, out)
        first = first or one
        change = [one["dice"][name] - score for name, score in first["dice"].items()]
        row = dict(zip(("step_size", "mirroring", "precision"), way, strict=True)) | {"n_cases": len(change)}
        row |= {"dice": float(np.mean(list(one["dice"].values()))), "change": float(np.mean(change))}
        row |= {"worst_change": min(change), "wall_s": one["wall_s"], "cpu_s": one["cpu_s"]}
        rows.append(row | {"share_of_cpu": one["cpu_s"] / first["cpu_s"]})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        (
            f"{row['dataset']}, {row['n_cases']} cases",
            row["trained_by"],
            str(row["step_size"]),
            "with" if row["mirroring"] else "without",
            {"off": "float32"}.get(row["precision"], row["precision"]),
            f"{row['dice']:.4f}",
            f"{row['change']:+.4f}",
            f"{row['worst_change']:+.4f}",
            f"{row['wall_s'] / row['n_cases']:.2f}",
            f"{row['cpu_s'] / row['n_cases']:.2f}",
            f"{row['share_of_cpu']:.2f}",
        )
        for row in rows
    ]
    header = ("dataset", "trained by", "step size", "mirroring", "precision", "Dice", "change", "worst case")
    return measuring.table((*header, "wall, s per case", "CPU, s per case", "of the first row's CPU"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--trained", type=Path, required=True, help="the --work of learning.py")
    parser.add_argument("--only", default=",".join(HELD_OUT), help="comma-separated; default: %(default)s")
    parser.add_argument("--trained-by", default=",".join(PROGRAMS), help="comma-separated; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases, step sizes 0.5 and 1")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/prediction_presets.json")
    args = parser.parse_args()
    leave_on_sigterm()
    steps = (0.5, 1.0) if args.quick else STEPS
    ways = [(step, mirroring, way) for mirroring, way, step in product((True, False), PRECISIONS, steps)]
    rows: list[dict[str, Any]] = []
    versions = measuring.versions("segpipe", "torch", "numpy")
    for key, program in product(args.only.split(","), args.trained_by.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            task, work = HELD_OUT[key], Path(folder)
            found = cases(task, args.data.resolve(), args.trained.resolve(), work, QUICK_CASES if args.quick else None)
            model = model_of(program, task, args.trained.resolve(), work)
            known = {"dataset": task.dataset, "trained_by": program}
            rows += [known | row for row in measured(model, found, work / "out", ways)]
        digest.write_json(args.out, {"hardware": measuring.hardware(), "versions": versions, "rows": rows})
    print(report(rows))


if __name__ == "__main__":
    main()
