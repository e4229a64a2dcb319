"""How long does prediction take beside nnU-Net's, with equal weights, and is the outcome the same?

    python benchmarks/prediction.py --nnunet-python /path/to/nnunet/bin/python --data /path/to/datasets --trained FOLDER

FOLDER is that of learning.py: the models are nnU-Net's, segpipe imports them once. Both programs predict the same
images with their commands, probabilities saved, with and without mirroring: fresh processes, start included, in turns,
also in who goes first. nnU-Net's settings of workers are tried once each; the fastest one is kept, and its run is the
first round. Nothing looks on while a run is timed: memory (the largest sum over the processes, PSS) comes from an extra
run of each.

Then the outcome: equal voxels, Dice of one program's segmentations against the other's and against the labels, distance
of the probabilities; and, on the segmentations of nnU-Net, its summary.json beside that of `segpipe evaluate`.

Prints tables and what is missed, keeps `results/prediction_cpu.json`. Exits with 1 where the outcome is not the same.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import prediction_agreement as agreement
from prediction_report import SIDES, summed_up, tables
from prediction_tasks import TASKS, Cases, Task, cases
from running import Measured, leave_on_sigterm, measure, own_path, peer_versions, read_once, segpipe_command

from segpipe import digest

OUT = Path(__file__).with_name("results") / "prediction_cpu.json"
WORKERS = {"1": ["-npp", "1", "-nps", "1"], "sequential": ["-npp", "0", "-nps", "0"], "default": []}
PEER_PACKAGES = ("nnunetv2", "torch", "numpy", "scipy", "scikit-image", "SimpleITK")
SAMPLE_S = 0.2
QUICK_CASES = 3
Tried = dict[str, Measured]


class Programs:
    """Both programs, on the cases of one task, in `work`."""

    def __init__(self, nnunet_python: Path, trained: Path, task: Task, found: Cases, work: Path) -> None:
        self.python, self.task, self.cases, self.work = nnunet_python, task, found, work
        self.results, self.model, self.workers = trained / "nnunet_results", work / "model", "1"
        folders = {name: work / name for name in ("raw", "preprocessed")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        own = {f"nnUNet_{name}": str(folder) for name, folder in folders.items()}
        self.environment = {**own, "nnUNet_results": str(self.results)}
        imported = segpipe_command("import-nnunet", trained / task.trained, "--out", self.model)
        measure(imported, own_path(), work / "import.log", None)

    def out(self, side: str, mirroring: bool) -> Path:
        """What a program predicted last."""
        return self.work / f"{side}_{'mirrored' if mirroring else 'plain'}"

    def run(self, side: str, mirroring: bool, sample_s: float | None = None) -> Measured:
        """One of them, into a new folder. Stops where a case is missing."""
        out, log = self.out(side, mirroring), self.work / f"{side}.log"
        shutil.rmtree(out, ignore_errors=True)
        command = (self._ours if side == "segpipe" else self._theirs)(out, mirroring)
        found = measure(command, own_path() if side == "segpipe" else self.environment, log, sample_s)
        written = sorted(path.stem for path in out.glob("*.npz"))
        if written != sorted(self.cases.names):
            sys.exit(f"{side} predicted {written} instead of {self.cases.names}\n{log.read_text()[-2000:]}")
        return found

    def _ours(self, out: Path, mirroring: bool) -> list[Any]:
        files = ["--model", self.model, "-i", self.cases.images, "-o", out, "--probabilities", "--device", "cpu"]
        return segpipe_command("predict", *files, *([] if mirroring else ["--no-mirroring"]))

    def _theirs(self, out: Path, mirroring: bool) -> list[Any]:
        task, command = self.task, self.python.with_name("nnUNetv2_predict")
        model = ["-d", task.dataset, "-c", task.configuration, "-f", "0", "-device", "cpu"]
        how = ["--save_probabilities", "--disable_progress_bar", *WORKERS[self.workers]]
        return [
            command, "-i", self.cases.images, "-o", out, *model, *how, *([] if mirroring else ["--disable_tta"])
        ]  # fmt: skip

    def try_workers(self, mirroring: bool, names: list[str]) -> Tried:
        """nnU-Net with each setting of workers, the fastest first; that one is kept."""
        tried = {}
        for self.workers in names:
            tried[self.workers] = self.run("nnunetv2", mirroring)
        tried = dict(sorted(tried.items(), key=lambda item: item[1].wall_s))
        self.workers = next(iter(tried))
        return tried

    def evaluate(self, side: str, mirroring: bool) -> float:
        """How far apart the numbers of both evaluations are, of the predictions of one side."""
        predicted, theirs = self.out("nnunetv2", mirroring), self.work / "theirs.json"
        described = ["-djfile", predicted / "dataset.json", "-pfile", predicted / "plans.json"]
        labels, command = self.cases.labels, self.python.with_name("nnUNetv2_evaluate_folder")
        given = [labels, self.out(side, mirroring), *described, "-o", theirs, "-np", "1"]
        measure([command, *given], self.environment, self.work / "evaluate.log", None)
        ours = self.work / "ours.json"
        classes = ["--labels", predicted / "dataset.json"]
        own = segpipe_command("evaluate", self.out(side, mirroring), labels, *classes, "--out", ours)
        measure(own, own_path(), self.work / "evaluate.log", None)
        return agreement.apart(digest.read_json(theirs), digest.read_json(ours))


def measured(programs: Programs, mirroring: bool, rounds: int, workers: list[str]) -> dict[str, Any]:
    """All rounds of one task with or without mirroring, memory and agreement."""
    read_once(programs.cases.images)
    runs: dict[str, list[Measured]] = {side: [] for side in SIDES}
    runs["segpipe"].append(programs.run("segpipe", mirroring))
    tried = programs.try_workers(mirroring, workers)
    runs["nnunetv2"].append(tried[programs.workers])
    for number in range(1, rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            runs[side].append(programs.run(side, mirroring))
    peak_mib = {side: programs.run(side, mirroring, SAMPLE_S).peak_mib for side in SIDES}
    outs = {side: programs.out(side, mirroring) for side in SIDES}
    found = agreement.compared(outs, programs.cases.labels)
    if programs.cases.labels:
        found["evaluations_apart"] = max(programs.evaluate(side, mirroring) for side in SIDES)
    return summed_up(runs, peak_mib, tried, programs.workers) | {"agreement": found}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter with nnunetv2 2.8")
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--trained", type=Path, required=True, help="the --work of learning.py, with nnU-Net's models")
    parser.add_argument("--only", default=",".join(TASKS), help="comma-separated; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="the large case has one; default: 3")
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_CASES} cases, not the large one")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/prediction_cpu.json")
    args = parser.parse_args()
    if not os.access(args.out.parent, os.W_OK):
        parser.error(f"--out: {args.out.parent} is no folder that can be written to")
    return args


def main() -> None:
    args = arguments()
    leave_on_sigterm()
    trained, data = args.trained.resolve(), args.data.resolve()
    content: dict[str, Any] = {
        "hardware": measuring.hardware(),
        "versions": {
            "segpipe": measuring.versions("segpipe", "torch", "numpy", "scipy", "nibabel"),
            "nnunetv2": peer_versions(args.nnunet_python, PEER_PACKAGES),
        },
        "tasks": {},
    }
    for key in args.only.split(","):
        task = TASKS[key]
        if args.quick and task.of == "large":
            continue
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            found = cases(task, data, trained, work, QUICK_CASES if args.quick else None)
            programs = Programs(args.nnunet_python, trained, task, found, work)
            rounds = 1 if args.quick else min(args.rounds, task.rounds)
            workers = list(WORKERS) if rounds > 1 else ["1"]
            for mirroring in (False, True) if task.mirrored else (False,):
                one = measured(programs, mirroring, rounds, workers)
                title = f"{task.title}, {len(found.names)} case{'s' * (len(found.names) > 1)}"
                row = {"title": title, "mirroring": mirroring, "n_cases": len(found.names), **one}
                content["tasks"][f"{key}, {'mirrored' if mirroring else 'not mirrored'}"] = row
                print(f"{key}: {row}", file=sys.stderr, flush=True)
                digest.write_json(args.out, content)
    said, is_other = tables(content)
    print(said)
    sys.exit(is_other)


if __name__ == "__main__":
    main()
