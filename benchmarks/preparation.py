"""How long do check, fingerprint, plan and preprocessing take, beside nnU-Net's, on real datasets?

    python benchmarks/preparation.py --nnunet-python /path/to/nnunet/bin/python --data /path/to/datasets

Both prepare 2d and 3d_fullres from the raw files: nnU-Net with its command `nnUNetv2_plan_and_preprocess
--verify_dataset_integrity`, segpipe as one process that calls the functions of the rules in order. Each measurement is
a fresh process, imports included, and they take turns. nnU-Net's settings of workers are tried on the first dataset,
the fastest one is kept for all. Memory is the largest sum over its processes (PSS: what they share counts once).

The large CT is the first case of HeadNeckCT, resampled to 512 x 512 x 300.

Prints a table and which targets are missed, keeps `results/preparation.json`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measuring
import nibabel
import numpy as np
import psutil

from segpipe.prepare.resample import resample_image, resample_label

HERE = Path(__file__).resolve().parent
OUT = HERE / "results/preparation.json"
LARGE, LARGE_FROM, LARGE_SHAPE = "Dataset901_LargeCT", "Dataset101_HeadNeckCT", (300, 512, 512)  # (Z, Y, X)
DATASETS = ("Dataset004_Hippocampus", "Dataset027_ACDC", LARGE_FROM, LARGE)
WORKERS = {"1": ["-npfp", "1", "-np", "1", "1"], "2": ["-npfp", "2", "-np", "2", "2"], "default": []}
CONFIGURATIONS = ("2d", "3d_fullres")
SAMPLE_S = 0.2
# of nnU-Net's number, by dataset; what DESIGN.md asks for
TARGETS = {"Dataset004_Hippocampus": {"wall_s": 0.25, "peak_mib": 0.5}}
UNITS = {"wall_s": "wall, s", "cpu_s": "CPU, s", "peak_mib": "peak memory, MiB"}


@dataclass(frozen=True)
class Measured:
    """One run of one program."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass
class Rounds:
    """The runs of both programs on a dataset, and what they leave on disk for a case."""

    ours: list[Measured] = field(default_factory=list)
    theirs: list[Measured] = field(default_factory=list)
    bytes_per_case: dict[str, dict[str, int]] = field(default_factory=dict)


def measure(command: list[str], environment: dict[str, str], log: Path) -> Measured:
    """Run a program to its end. Stops this one, with what that said, where it fails."""
    peak_mib, over = [0.0], threading.Event()
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=file, stderr=file)
    watch = threading.Thread(target=_watch, args=(process.pid, peak_mib, over))
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)  # with all processes that it waited for
    wall_s = time.perf_counter() - began
    over.set()
    watch.join()
    if status:
        sys.exit(f"{' '.join(command)}\n{log.read_text()[-2000:]}")
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, peak_mib[0])


def _watch(pid: int, peak_mib: list[float], over: threading.Event) -> None:
    while not over.wait(SAMPLE_S):
        total = 0
        with suppress(psutil.Error):
            main = psutil.Process(pid)
            for process in [main, *main.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
        peak_mib[0] = max(peak_mib[0], total / 2**20)


class Programs:
    """Both programs, on datasets in `work`/raw."""

    def __init__(self, nnunet_python: Path, work: Path) -> None:
        self.work = work
        self.command = str(nnunet_python.with_name("nnUNetv2_plan_and_preprocess"))
        folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        self.environment = {name: str(work / folder) for name, folder in folders.items()}
        for folder in folders.values():
            (work / folder).mkdir(exist_ok=True)

    def ours(self, dataset: str) -> Measured:
        """segpipe, into a new folder."""
        out = self._new("segpipe", dataset)
        command = [sys.executable, str(HERE / "segpipe_preparation.py"), str(self.work / "raw" / dataset), str(out)]
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        return measure(command, {"PYTHONPATH": path}, self.work / "segpipe.log")

    def theirs(self, dataset: str, workers: str) -> Measured:
        """nnU-Net, into a new folder."""
        self._new("preprocessed", dataset)
        number = str(int(dataset[7:10]))
        asked = ["-d", number, "--verify_dataset_integrity", "-c", *CONFIGURATIONS, *WORKERS[workers]]
        return measure([self.command, *asked], self.environment, self.work / "nnunet.log")

    def bytes_per_case(self, dataset: str) -> dict[str, dict[str, int]]:
        """Mean bytes by program and kind of file. What several names stand for counts once."""
        ours, theirs = self.work / "segpipe" / dataset, self.work / "preprocessed" / dataset
        n_cases = len(list((self.work / "raw" / dataset / "labelsTr").iterdir()))
        return {
            "segpipe": _by_kind([ours / name / "cases" for name in CONFIGURATIONS], n_cases),
            "nnunetv2": _by_kind([theirs / f"nnUNetPlans_{name}" for name in CONFIGURATIONS], n_cases),
        }

    def _new(self, folder: str, dataset: str) -> Path:
        shutil.rmtree(self.work / folder / dataset, ignore_errors=True)
        return self.work / folder / dataset


def _by_kind(folders: list[Path], n_cases: int) -> dict[str, int]:
    files = {path.stat().st_ino: path for folder in folders for path in folder.iterdir()}
    total: dict[str, int] = {}
    for path in files.values():
        kind = "seg.b2nd" if path.name.endswith("_seg.b2nd") else path.name.partition(".")[2]
        total[kind] = total.get(kind, 0) + path.stat().st_size
    return {kind: round(size / n_cases) for kind, size in sorted(total.items())}


def make_large(data: Path, folder: Path) -> None:
    """One CT with label as large as those of a clinic, by resampling."""
    description = json.loads((data / LARGE_FROM / "dataset.json").read_text())
    label = min((data / LARGE_FROM / "labelsTr").iterdir())
    case = label.name.removesuffix(".nii.gz")
    image = data / LARGE_FROM / "imagesTr" / f"{case}_0000.nii.gz"
    for path, resample in ((image, _image), (label, _label)):
        stored = nibabel.load(path)
        array = np.asanyarray(stored.dataobj).T
        affine = stored.affine.copy()
        affine[:3, :3] *= np.array(array.shape[::-1]) / LARGE_SHAPE[::-1]
        (folder / path.parent.name).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(resample(array).T, affine), folder / path.parent.name / path.name)
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": 1}))


def _image(array: np.ndarray) -> np.ndarray:
    return resample_image(array[None].astype(np.float32), LARGE_SHAPE, None)[0].round().astype(np.int16)


def _label(array: np.ndarray) -> np.ndarray:
    return resample_label(array.astype(np.int16), LARGE_SHAPE, None).astype(np.uint8)


def run(programs: Programs, datasets: list[str], repeats: int) -> tuple[dict[str, Measured], dict[str, Rounds]]:
    """What nnU-Net needed for the first dataset with each setting of workers, the fastest first; and all rounds."""
    found = {dataset: Rounds() for dataset in datasets}
    first = found[datasets[0]]
    first.ours.append(programs.ours(datasets[0]))
    tried = {workers: programs.theirs(datasets[0], workers) for workers in WORKERS}
    tried = dict(sorted(tried.items(), key=lambda item: item[1].wall_s))
    workers, fastest = next(iter(tried.items()))
    first.theirs.append(fastest)
    for dataset, rounds in found.items():
        while len(rounds.ours) < repeats:
            rounds.ours.append(programs.ours(dataset))
            rounds.theirs.append(programs.theirs(dataset, workers))
        rounds.bytes_per_case = programs.bytes_per_case(dataset)
        print(f"{dataset}: {rounds.ours[-1]} and {rounds.theirs[-1]}", file=sys.stderr)
    return tried, found


def summed_up(dataset: str, rounds: Rounds) -> dict[str, Any]:
    """Spreads of both, their ratios round by round, and what of the targets is missed."""
    content: dict[str, Any] = {"bytes_per_case": rounds.bytes_per_case, "missed": {}}
    for name in UNITS:
        ours, theirs = ([getattr(one, name) for one in side] for side in (rounds.ours, rounds.theirs))
        ratios = measuring.spread(a / b for a, b in zip(ours, theirs, strict=True))
        content[name] = {"segpipe": measuring.spread(ours), "nnunetv2": measuring.spread(theirs), "ratio": ratios}
        target = TARGETS.get(dataset, {}).get(name)
        if target and ratios["median"] > target:
            content["missed"][name] = f"{ratios['median']:.2f} instead of {target}"
    return content


def tables(datasets: dict[str, Any]) -> str:
    """Markdown: time and memory, then bytes."""
    rows = []
    for dataset, content in datasets.items():
        for name, title in UNITS.items():
            ours, theirs, ratio = (content[name][key] for key in ("segpipe", "nnunetv2", "ratio"))
            target = TARGETS.get(dataset, {}).get(name)
            met = "" if target is None else f"{target}: {'missed' if name in content['missed'] else 'met'}"
            spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            rows.append((dataset, title, f"{ours['median']:.1f}", f"{theirs['median']:.1f}", spread, met))
    times = measuring.table(("dataset", "", "segpipe", "nnU-Net", "ratio (spread)", "target"), rows)
    sizes = [
        (dataset, *(_described(content["bytes_per_case"][side]) for side in ("segpipe", "nnunetv2")))
        for dataset, content in datasets.items()
    ]
    return f"{times}\n\n{measuring.table(('kB per case', 'segpipe', 'nnU-Net'), sizes)}"


def _described(kinds: dict[str, int]) -> str:
    parts = ", ".join(f"{kind} {size / 1000:,.1f}" for kind, size in kinds.items())
    return f"{sum(kinds.values()) / 1000:,.1f}: {parts}"


def peer_versions(python: Path) -> dict[str, str]:
    """Of the packages that nnU-Net prepares with."""
    names = ("nnunetv2", "numpy", "scipy", "scikit-image", "blosc2", "SimpleITK", "torch")
    code = f"from importlib.metadata import version; import json; print(json.dumps({{n: version(n) for n in {names}}}))"
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter with nnunetv2 2.8")
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="comma-separated; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/preparation.json")
    args = parser.parse_args()
    datasets = args.datasets.split(",")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(args.nnunet_python, Path(folder))
        for dataset in datasets:
            target = Path(folder, "raw", dataset)
            make_large(args.data, target) if dataset == LARGE else target.symlink_to((args.data / dataset).resolve())
        tried, found = run(programs, datasets, args.repeats)
    content = {
        "hardware": measuring.hardware(),
        "versions": {
            "segpipe": measuring.versions("segpipe", "numpy", "scipy", "nibabel"),
            "nnunetv2": peer_versions(args.nnunet_python),
        },
        "repeats": args.repeats,
        "nnunet_workers": {
            "dataset": datasets[0],
            "kept": next(iter(tried)),
            "tried": {workers: vars(measured) for workers, measured in tried.items()},
        },
        "datasets": {dataset: summed_up(dataset, rounds) for dataset, rounds in found.items()},
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(tables(content["datasets"]))
    missed = {dataset: one["missed"] for dataset, one in content["datasets"].items() if one["missed"]}
    seconds = ", ".join(f"{workers} {measured.wall_s:.1f} s" for workers, measured in tried.items())
    print(f"\nnnU-Net by its workers, of which the fastest were kept: {seconds}. Missed: {missed or 'nothing'}.")


if __name__ == "__main__":
    main()
