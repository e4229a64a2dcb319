"""Does segpipe learn what nnU-Net learns, from equal plans in equally many steps?

    python benchmarks/learning.py --nnunet-python /path/to/nnunet/bin/python --data /path/to/datasets --work FOLDER

Trains fold 0 of Hippocampus (three seeds) and Nuclei2D (one) in both programs, in turns, with a plan that nnU-Net made
and that was cut down for two CPU cores; both programs get the same file. Compares the Dice of the whole validation
cases, predicted with mirroring. Finished trainings are kept in FOLDER, so that an interrupted benchmark goes on; two
hours on two cores. Prints a table, keeps `results/learning.json`, and exits with 1 where segpipe is more than 0.01
below nnU-Net.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import yaml

REPO = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("nnunet_training.py")
RESULTS = Path(__file__).with_name("results") / "learning.json"
MOST_BELOW = 0.01
SIDES = ("nnunet", "segpipe")


@dataclass(frozen=True)
class Task:
    """What is trained, how long and how often."""

    dataset: str
    configuration: str
    patch: tuple[int, ...]
    batch: int
    first_features: int
    stages: int
    epochs: int
    iterations: int
    seeds: tuple[int, ...]


TASKS = (
    Task("Dataset004_Hippocampus", "3d_fullres", (40, 56, 40), 2, 16, 4, 15, 100, (0, 1, 2)),
    Task("Dataset103_Nuclei2D", "2d", (256, 256), 4, 16, 5, 10, 55, (0,)),
)
VAL_ITERATIONS = 5


@dataclass(frozen=True)
class Bench:
    """Where both programs are and where they work."""

    peer: Path
    data: Path
    work: Path
    cores: int

    def peer_call(self, *arguments: object) -> None:
        """Run nnU-Net's side."""
        own = {f"nnUNet_{name}": str(self.work / f"nnunet_{name}") for name in ("raw", "preprocessed", "results")}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**kept, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", **own}
        _run([self.peer, PEER, *arguments], self.work, environment)

    def prepare(self, task: Task) -> Path:
        """The plan of both programs, and nnU-Net's preprocessed cases."""
        plans = self.work / f"{task.dataset}_plans.json"
        if not plans.exists():
            raw = self.work / "nnunet_raw" / task.dataset
            raw.parent.mkdir(parents=True, exist_ok=True)
            if not raw.exists():
                raw.symlink_to((self.data / task.dataset).resolve())
            new = plans.with_suffix(".new")
            sizes = (task.batch, task.first_features, task.stages, json.dumps(task.patch))
            self.peer_call("prepare", raw, task.configuration, *sizes, new)
            new.rename(plans)
        return plans

    def result(self, task: Task, side: str, seed: int) -> dict[str, Any]:
        """Train, unless that is done, and say how well it validates."""
        out = self.work / f"{task.dataset}_{side}_{seed}.json"
        if not out.exists():
            print(f"{task.dataset} {side} seed {seed} ...", file=sys.stderr)
            (self._nnunet if side == "nnunet" else self._segpipe)(task, seed, out)
        content: dict[str, Any] = json.loads(out.read_text())
        return {"seed": seed, "precision": "float32" if side == "nnunet" else self._precision(task, seed), **content}

    def _precision(self, task: Task, seed: int) -> str:
        """What segpipe found the machine to compute fastest."""
        runs = (self.work / f"{task.dataset}_segpipe_{seed}").glob("results/*/fold_0/state/*/run.json")
        return str(json.loads(next(runs).read_text())["precision"])

    def _nnunet(self, task: Task, seed: int, out: Path) -> None:
        schedule = (task.epochs, task.iterations, VAL_ITERATIONS)
        self.peer_call("train", task.dataset, task.configuration, seed, *schedule, out)

    def _segpipe(self, task: Task, seed: int, out: Path) -> None:
        folder = self.work / f"{task.dataset}_segpipe_{seed}"
        folder.mkdir(exist_ok=True)
        settings = yaml.safe_load((REPO / "params.yaml").read_text())
        settings["dataset"], settings["configurations"] = (
            str((self.data / task.dataset).resolve()),
            [task.configuration],
        )
        settings["plan"]["file"] = str(self.prepare(task))
        settings["plan"]["overrides"] = dict.fromkeys(settings["plan"]["overrides"])
        settings["splits"]["group"] = None
        settings["train"] |= {
            "seed": seed,
            "epochs": task.epochs,
            "iterations_per_epoch": task.iterations,
            "val_iterations_per_epoch": VAL_ITERATIONS,
        }
        (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        snakemake = Path(sys.executable).with_name("snakemake")
        target = "results/fold_0/summary.json"
        command = [snakemake, "--snakefile", REPO / "Snakefile", "--directory", folder, "--cores", self.cores, target]
        _run(command, REPO, dict(os.environ))
        summary = json.loads((folder / target).read_text())
        content = {
            "dice": summary["foreground_mean"]["Dice"],
            "by_class": {name: row["Dice"] for name, row in summary["mean"].items()},
            "n_cases": len(summary["metric_per_case"]),
            "versions": summary["versions"],
        }
        out.write_text(json.dumps(content))


def _run(command: list[Any], folder: Path, environment: dict[str, str]) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def main() -> None:
    """Train what is not trained yet, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter with nnunetv2 2.8")
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; finished trainings stay there")
    parser.add_argument("--cores", type=int, default=2, help="of segpipe's training")
    parser.add_argument("--only", choices=SIDES, help="train this side only, and compare another time")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.nnunet_python, args.data, args.work.resolve(), args.cores)
    sides = (args.only,) if args.only else SIDES
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in TASKS:
        bench.prepare(task)
        rows = {side: [] for side in sides}
        for seed in task.seeds:
            for side in sides:
                rows[side].append(bench.result(task, side, seed))
        found[task.dataset] = rows
    if not args.only:
        sys.exit(_compare(found))


def _compare(found: dict[str, dict[str, list[dict[str, Any]]]]) -> int:
    print("| dataset | program | Dice, one column per seed | mean | segpipe - nnU-Net |\n|---|---|---|---|---|")
    worst = 0.0
    for dataset, rows in found.items():
        means = {side: statistics.mean(row["dice"] for row in results) for side, results in rows.items()}
        difference = means["segpipe"] - means["nnunet"]
        worst = min(worst, difference)
        for side, results in rows.items():
            scores = ", ".join(f"{row['dice']:.4f}" for row in results)
            print(f"| {dataset} | {side} | {scores} | {means[side]:.4f} | {difference:+.4f} |")
    content = {"hardware": measuring.hardware(), "trainings": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    return int(worst < -MOST_BELOW)


if __name__ == "__main__":
    main()
