"""How long do check, fingerprint, plan and preprocessing take, beside nnU-Net's, on real datasets?

    python benchmarks/preparation.py --nnunet-python /path/to/nnunet/bin/python --data /path/to/datasets

Both prepare 2d and 3d_fullres from the raw files: nnU-Net with its command `nnUNetv2_plan_and_preprocess
--verify_dataset_integrity`, segpipe as one process that calls the functions of the rules in order. Each measurement is
a fresh process, imports included; they take turns, also in who goes first, and the raw files are read once before.
nnU-Net's settings of workers are tried once each on the first dataset; the fastest one is kept for all, and that run
counts as its first round.

Nothing looks on while a run is timed. Memory is the largest sum over the processes (PSS: what they share counts once)
in one extra run of each side. All 180 cases of Hippocampus have 1 mm spacing: neither side resamples them. Where 2d
and 3d_fullres of a case are equal (there, and in ACDC with 10 mm slices), segpipe prepares it once and both share files
by hard links; "shared" counts those cases.

The large CT is a case of HeadNeckCT, resampled to 512 x 512 x 300, twice: the second says 1.3 times the spacing, so
the target lies between and both are resampled. It is run once, and sampled in that run, every two seconds.

Prints tables and which targets are missed, keeps `results/preparation.json`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import nibabel
import numpy as np
from preparation_report import SIDES, summed_up, tables
from running import Measured, leave_on_sigterm, measure, own_path, peer_versions, read_once

from segpipe import digest
from segpipe.prepare.resample import resample_image, resample_label

HERE = Path(__file__).resolve().parent
OUT = HERE / "results/preparation.json"
LARGE, LARGE_FROM, LARGE_SHAPE = "Dataset901_LargeCT", "Dataset101_HeadNeckCT", (300, 512, 512)  # (Z, Y, X)
LARGE_SPACINGS = {"near": 1.0, "far": 1.3}  # case to factor
DATASETS = ("Dataset004_Hippocampus", "Dataset027_ACDC", LARGE_FROM, LARGE)
WORKERS = {"1": ["-npfp", "1", "-np", "1", "1"], "2": ["-npfp", "2", "-np", "2", "2"], "default": []}
CONFIGURATIONS = ("2d", "3d_fullres")
SAMPLE_S, LARGE_SAMPLE_S = 0.2, 2.0
PEER_PACKAGES = ("nnunetv2", "numpy", "scipy", "scikit-image", "blosc2", "SimpleITK", "torch")
SHAPES = "import blosc2, json, sys; print(json.dumps([blosc2.open(urlpath=p, mode='r').shape for p in sys.argv[1:]]))"


class Programs:
    """Both programs, on datasets in `work`/raw."""

    def __init__(self, nnunet_python: Path, work: Path) -> None:
        self.work, self.python = work, nnunet_python
        self.workers = "default"
        self.command = str(nnunet_python.with_name("nnUNetv2_plan_and_preprocess"))
        folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        self.environment = {name: str(work / folder) for name, folder in folders.items()}
        for folder in folders.values():
            (work / folder).mkdir(exist_ok=True)

    def run(self, side: str, dataset: str, sample_s: float | None) -> Measured:
        """One of them, into a new folder."""
        return (self._ours if side == "segpipe" else self._theirs)(dataset, sample_s)

    def _ours(self, dataset: str, sample_s: float | None) -> Measured:
        out = self._new("segpipe", dataset)
        command = [sys.executable, str(HERE / "segpipe_preparation.py"), str(self.work / "raw" / dataset), str(out)]
        return measure(command, own_path(), self.work / "segpipe.log", sample_s)

    def _theirs(self, dataset: str, sample_s: float | None) -> Measured:
        self._new("preprocessed", dataset)
        number = str(int(dataset[7:10]))
        asked = ["-d", number, "--verify_dataset_integrity", "-c", *CONFIGURATIONS, *WORKERS[self.workers]]
        return measure([self.command, *asked], self.environment, self.work / "nnunet.log", sample_s)

    def try_workers(self, dataset: str, sample_s: float | None) -> dict[str, Measured]:
        """nnU-Net with each setting of workers, the fastest first; that one is kept."""
        tried = {}
        for self.workers in WORKERS:
            tried[self.workers] = self.run("nnunetv2", dataset, sample_s)
        tried = dict(sorted(tried.items(), key=lambda item: item[1].wall_s))
        self.workers = next(iter(tried))
        return tried

    def stored(self, dataset: str) -> dict[str, Any]:
        """What both left on disk: bytes per case by kind of file (shared ones count once), cases with shared files.

        Stops where a case is missing, or where one of the large CT was not resampled.
        """
        n_cases = len(list((self.work / "raw" / dataset / "labelsTr").iterdir()))
        folders = {
            "segpipe": [self.work / "segpipe" / dataset / name / "cases" for name in CONFIGURATIONS],
            "nnunetv2": [self.work / "preprocessed" / dataset / f"nnUNetPlans_{name}" for name in CONFIGURATIONS],
        }
        images = {
            "segpipe": [sorted(folder.glob("*.image.npy")) for folder in folders["segpipe"]],
            "nnunetv2": [
                sorted(set(folder.glob("*.b2nd")) - set(folder.glob("*_seg.b2nd"))) for folder in folders["nnunetv2"]
            ],
        }
        made = {side: [len(paths) for paths in configurations] for side, configurations in images.items()}
        if any(number != n_cases for numbers in made.values() for number in numbers):
            sys.exit(f"{dataset} has {n_cases} cases, prepared for {', '.join(CONFIGURATIONS)}: {made}")
        linked = (sum(path.stat().st_nlink > 1 for path in paths) for paths in images["segpipe"])
        content = {
            "n_cases": n_cases,
            "bytes_per_case": {side: _by_kind(paths, n_cases) for side, paths in folders.items()},
            "shared": dict(zip(CONFIGURATIONS, linked, strict=True)),
        }
        return {**content, "prepared_shapes": self._shapes(images)} if dataset == LARGE else content

    def _shapes(self, images: dict[str, list[list[Path]]]) -> dict[str, Any]:
        ours, theirs = ([path for paths in images[side] for path in paths] for side in SIDES)
        asked = subprocess.run([self.python, "-c", SHAPES, *theirs], capture_output=True, check=True)
        shapes = [list(np.load(path, mmap_mode="r").shape) for path in ours]
        found = {"segpipe": shapes, "nnunetv2": json.loads(asked.stdout)}
        if any(sorted(shape[1:]) == sorted(LARGE_SHAPE) for shapes in found.values() for shape in shapes):
            sys.exit(f"{LARGE} was not resampled: {found}")
        return found

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
    """Two CTs with labels as large as those of a clinic, by resampling a small one."""
    description = json.loads((data / LARGE_FROM / "dataset.json").read_text())
    label = min((data / LARGE_FROM / "labelsTr").iterdir())
    image = data / LARGE_FROM / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
    for path, resample, ending in ((image, _image, "_0000.nii.gz"), (label, _label, ".nii.gz")):
        stored = nibabel.Nifti1Image.from_filename(path)
        array = np.asanyarray(stored.dataobj).T
        large = resample(array).T
        (folder / path.parent.name).mkdir(parents=True)
        for case, factor in LARGE_SPACINGS.items():
            affine = stored.affine.copy()
            affine[:3, :3] *= factor * np.array(array.shape[::-1]) / LARGE_SHAPE[::-1]
            nibabel.save(nibabel.Nifti1Image(large, affine), folder / path.parent.name / f"{case}{ending}")
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": len(LARGE_SPACINGS)}))


def _image(array: np.ndarray) -> np.ndarray:
    return resample_image(array[None].astype(np.float32), LARGE_SHAPE, None)[0].round().astype(np.int16)


def _label(array: np.ndarray) -> np.ndarray:
    return resample_label(array.astype(np.int16), LARGE_SHAPE, None).astype(np.uint8)


def run(programs: Programs, datasets: list[str], repeats: int) -> tuple[dict[str, Measured], dict[str, Any]]:
    """What nnU-Net needed for the first dataset with each setting of workers, the fastest first; and all rounds."""
    tried: dict[str, Measured] = {}
    found: dict[str, Any] = {}
    for dataset in datasets:
        read_once(programs.work / "raw" / dataset)
        sample_s, n_rounds = (LARGE_SAMPLE_S, 1) if dataset == LARGE else (None, repeats)
        runs: dict[str, list[Measured]] = {side: [] for side in SIDES}
        if not tried:
            runs["segpipe"].append(programs.run("segpipe", dataset, sample_s))
            tried = programs.try_workers(dataset, sample_s)
            runs["nnunetv2"].append(tried[programs.workers])
        for number in range(len(runs["segpipe"]), n_rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                runs[side].append(programs.run(side, dataset, sample_s))
        sampled = {side: runs[side][0] if sample_s else programs.run(side, dataset, SAMPLE_S) for side in SIDES}
        peak_mib = {side: one.peak_mib for side, one in sampled.items()}
        found[dataset] = {"runs": runs, "peak_mib": peak_mib, "stored": programs.stored(dataset)}
        print(f"{dataset}: {runs}, MiB {peak_mib}", file=sys.stderr)
    return tried, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter with nnunetv2 2.8")
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="comma-separated; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of a dataset, the large CT has one; default: 2")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/preparation.json")
    args = parser.parse_args()
    if not os.access(args.out.parent, os.W_OK):
        parser.error(f"--out: {args.out.parent} is no folder that can be written to")
    leave_on_sigterm()
    peer, datasets = peer_versions(args.nnunet_python, PEER_PACKAGES), args.datasets.split(",")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(args.nnunet_python, Path(folder))
        for dataset in datasets:
            target = Path(folder, "raw", dataset)
            make_large(args.data, target) if dataset == LARGE else target.symlink_to((args.data / dataset).resolve())
        tried, found = run(programs, datasets, args.repeats)
    content = {
        "hardware": measuring.hardware(),
        "versions": {"segpipe": measuring.versions("segpipe", "numpy", "scipy", "nibabel"), "nnunetv2": peer},
        "repeats": args.repeats,
        "nnunet_workers": {
            "dataset": datasets[0],
            "kept": programs.workers,
            "tried": {workers: vars(measured) for workers, measured in tried.items()},
        },
        "datasets": {dataset: summed_up(dataset, one) for dataset, one in found.items()},
    }
    digest.write_json(args.out, content)
    print(tables(content["datasets"]))
    missed = {dataset: one["missed"] for dataset, one in content["datasets"].items() if one["missed"]}
    seconds = ", ".join(f"{workers} {measured.wall_s:.1f} s" for workers, measured in tried.items())
    print(
        f"\nnnU-Net by its workers, tried once each on {datasets[0]}: {seconds}. The fastest were kept, and that run is"
    )
    print(f"its first round. Missed: {missed or 'nothing'}.")


if __name__ == "__main__":
    main()
