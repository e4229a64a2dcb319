"""Augmentation beside nnU-Net's: CPU seconds per sample on one thread, and whether both come from one distribution.

    python benchmarks/augmentation.py --nnunet-python /path/to/nnunet/bin/python
    python benchmarks/augmentation.py --device cuda

Both programs get the same boxes and take turns; each is a process that stays. `full` is all of nnU-Net's training
transforms at their probabilities, from a box in memory to image and label of the patch (deep supervision's targets
apart); of the others each sample gets that transform alone, for certain. A sample of nnU-Net begins with its box as a
tensor, one of segpipe with the case in memory. The distributions of a few statistics of all samples are compared with
Kolmogorov and Smirnov's test.

Prints tables, says which targets are missed, keeps `results/augmentation_cpu.json`; 1 is the exit code where
distributions differ. On CUDA there is no other side: milliseconds per batch of segpipe alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from augmentation_work import FULL, TRANSFORMS
from scipy.stats import ks_2samp

HERE = Path(__file__).parent
TARGET = 0.5  # of nnU-Net's CPU seconds per sample, full
LEAST_P = 1e-3  # after Bonferroni, of all statistics of a plan and transform
# patch, labels, samples of `full`, samples of each other transform
PLANS = [
    ([40, 56, 40], 3, 300, 60),
    ([40, 56, 40], 8, 300, 0),
    ([512, 512], 3, 300, 60),
    ([128, 128, 128], 3, 60, 8),
    ([128, 128, 128], 8, 60, 0),
]
ROUNDS = 4
SIDES = {"nnU-Net": "nnunet_augmentation.py", "segpipe": "segpipe_augmentation.py"}
PACKAGES = ("nnunetv2", "batchgeneratorsv2", "torch", "numpy")


class Side:
    """A program that is asked for samples."""

    def __init__(self, python: str, script: str, scratch: str) -> None:
        folders = dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), scratch)
        self.process = subprocess.Popen(
            [python, str(HERE / script)],
            env={**os.environ, **folders, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.process.args[1]} ended; what it wrote is above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(sides: dict[str, Side], patch: list[int], labels: int, transform: str, n: int) -> dict[str, Any]:
    """Seconds and statistics of `n` samples of each side, which take turns."""
    edges = [round(n * part / ROUNDS) for part in range(ROUNDS + 1)]
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number, (first, end) in enumerate(pairwise(edges)):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            question = {"patch": patch, "labels": labels, "transform": transform}
            answers[name].append(sides[name].ask(**question, first=first, n=end - first))
    milliseconds = {
        name: [1e3 * one for answer in found for one in answer["seconds"]] for name, found in answers.items()
    }
    noted = {name: [one for answer in found for one in answer["statistics"]] for name, found in answers.items()}
    return {
        "patch": patch,
        "labels": labels,
        "transform": transform,
        "n": n,
        "ms": {
            name: {"median": statistics.median(each), "mean": statistics.mean(each)}
            for name, each in milliseconds.items()
        },
        **ratio(milliseconds["segpipe"], milliseconds["nnU-Net"]),
        "same": compared(noted["segpipe"], noted["nnU-Net"]),
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Of the means, with a bootstrap interval of 95 %."""
    rng = np.random.default_rng(0)
    means = [rng.choice(side, (2000, len(side))).mean(1) for side in (ours, theirs)]
    low, high = np.quantile(means[0] / means[1], [0.025, 0.975]).tolist()
    return {"ratio": statistics.mean(ours) / statistics.mean(theirs), "from": low, "to": high}


def compared(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, Any]:
    """Which statistic differs most, its p, and whether that is too small to be chance."""
    p = {}
    for name in ours[0]:
        both = [[one[name] for one in side] for side in (ours, theirs)]
        p[name] = float(ks_2samp(*both, method="asymp").pvalue)
    least = min(p, key=lambda name: p[name])
    return {"statistic": least, "p": p[least], "differs": p[least] < LEAST_P / len(p)}


def measured(python: str) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        sides = {}
        for name, script in SIDES.items():
            sides[name] = Side(python if name == "nnU-Net" else sys.executable, script, scratch)
            stack.callback(sides[name].close)
        for patch, labels, n_full, n_each in PLANS:
            for transform in TRANSFORMS if n_each else [FULL]:
                row = measure(sides, patch, labels, transform, n_full if transform == FULL else n_each)
                print(line(row), file=sys.stderr, flush=True)
                yield row


def line(row: dict[str, Any]) -> str:
    return " | ".join(cells(row))


def cells(row: dict[str, Any]) -> list[str]:
    spans = [f"{row['ms'][name]['mean']:.3g} ({row['ms'][name]['median']:.3g})" for name in SIDES]
    found = f"{row['ratio']:.2f} ({row['from']:.2f}-{row['to']:.2f})"
    return [
        f"{'x'.join(map(str, row['patch']))}, {row['labels']} labels",
        row["transform"].replace("_", " "),
        str(row["n"]),
        *spans,
        found,
        f"{'differs: ' if row['same']['differs'] else ''}{row['same']['p']:.2g} ({row['same']['statistic']})",
    ]


def report(rows: list[dict[str, Any]]) -> str:
    header = ["patch", "transform", "samples", *(f"{name}, ms" for name in SIDES), "ratio of means", "least p"]
    missed = [
        f"- {cells(row)[0]}: {row['ratio']:.2f} times nnU-Net's time, at most {TARGET} is wanted"
        for row in rows
        if row["transform"] == FULL and row["ratio"] > TARGET
    ]
    return "\n".join([measuring.table(header, map(cells, rows)), "", *(missed or [f"All at most {TARGET}."])])


def other_versions(python: str) -> dict[str, str | None]:
    code = f"import json, measuring; print(json.dumps(measuring.versions(*{PACKAGES})))"
    found = subprocess.run([python, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", help="interpreter with nnunetv2 2.8")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    content: dict[str, Any] = {"device": args.device, "hardware": measuring.hardware()}
    content["versions"] = {"segpipe": measuring.versions(*PACKAGES[2:])}
    if args.device == "cuda":
        from segpipe_augmentation import batches_on_device  # noqa: PLC0415  # imports torch

        content["batches"] = batches_on_device()
        print(measuring.table(list(content["batches"][0]), [map(str, row.values()) for row in content["batches"]]))
    else:
        if not args.nnunet_python:
            parser.error("--nnunet-python is needed on the CPU")
        content["versions"]["nnU-Net"] = other_versions(args.nnunet_python)
        content["rows"] = list(measured(args.nnunet_python))
        print(report(content["rows"]))
    out = HERE / "results" / f"augmentation_{args.device}.json"
    out.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(any(row["same"]["differs"] for row in content.get("rows", [])))


if __name__ == "__main__":
    main()
