"""The plans that training_speed.py trains, and cases for them: made up, but read and prepared as real ones are.

Patch, batch and network are those that nnU-Net plans, given here as numbers so that no real dataset is needed: its
Hippocampus (260 cases), the 128^3 of its 8 GB planner, 2d at 512^2, ResEnc-L.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from segpipe import digest, params
from segpipe.data import check, splits
from segpipe.data.cases import Cases
from segpipe.interop.nnunet_preprocessed import export_preprocessed
from segpipe.prepare import fingerprint, planning, store

REPO = Path(__file__).resolve().parents[1]
N_CASES = 5  # nnU-Net's five folds take no fewer


@dataclass(frozen=True)
class Amount:
    """How much is measured. real, feed, compute : timed steps of one round"""

    real: int
    feed: int
    compute: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """One row of the benchmark.

    case_shape : voxels of each made-up case
    spacing_mm : of it, and planned
    share : of the time that is there for all plans
    on : how much is measured on which kind of device
    instead : why it is not measured on a kind of device
    """

    title: str
    configuration: str
    case_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, ...]
    batch: int
    features: int
    preset: str
    share: float
    on: dict[str, Amount]
    instead: dict[str, str]

    @property
    def described(self) -> str:
        patch = " x ".join(map(str, self.patch))
        return (
            f"{self.title}: {self.configuration}, {patch}, batch {self.batch}, {self.features} features, {self.preset}"
        )


ISO = (1.0, 1.0, 1.0)
HIPPOCAMPUS, FULL = (36, 50, 35), (40, 56, 40)
PLANS = {
    "e": Plan(
        "cut-down Hippocampus", "3d_fullres", HIPPOCAMPUS, ISO, FULL, 2, 16, "plain", 1,
        {"cpu": Amount(3, 20, 3, 5), "cuda": Amount(60, 40, 60, 5)}, {},
    ),
    "a": Plan(
        "Hippocampus", "3d_fullres", HIPPOCAMPUS, ISO, FULL, 9, 32, "plain", 2,
        {"cpu": Amount(1, 10, 1, 3), "cuda": Amount(60, 40, 60, 5)}, {},
    ),
    "c": Plan(
        "2d", "2d", (12, 640, 640), (3.0, 1.0, 1.0), (512, 512), 12, 32, "plain", 3,
        {"cpu": Amount(1, 8, 1, 1), "cuda": Amount(30, 20, 20, 5)}, {},
    ),
    "b": Plan(
        "128^3", "3d_fullres", (160, 160, 160), ISO, (128, 128, 128), 2, 32, "plain", 4,
        {"cpu": Amount(1, 8, 1, 1), "cuda": Amount(30, 20, 20, 5)}, {},
    ),
    "d": Plan(
        "ResEnc-L", "3d_fullres", (192, 192, 192), ISO, (160, 160, 160), 2, 32, "ResEncL", 3,
        {"cuda": Amount(16, 10, 10, 5)},
        {"cpu": "not measured: about 25 GB in float32, and minutes per step"},
    ),
}  # fmt: skip
DEFAULT = {"cpu": "eacbd", "cuda": "bacd"}  # in this order


def project(plan: Plan, folder: Path, device: str, threads: int) -> Path:
    """A new folder in which the pipeline prepared made-up cases; returns the folder of them that is for nnU-Net."""
    shutil.rmtree(folder, ignore_errors=True)
    raw = folder / "raw" / "Dataset901_MadeUp"
    _make_up(plan, raw)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings_of(plan, str(raw.resolve()), device, threads)))
    settings = params.load(folder / "params.yaml")
    prepared = folder / "data" / "preprocessed" / raw.name
    listed, plan_path = prepared / "cases.json", prepared / "plan.json"
    check.check(raw, listed, settings.check, settings.splits.n_folds)
    cases = Cases.read(listed, settings.dataset)
    fingerprint.extract(cases, prepared / "fingerprint.json", settings.runtime)
    planning.write(cases, prepared / "fingerprint.json", settings, plan_path)
    splits.write(cases, settings.splits, prepared / "splits.json")
    store.build(cases, plan_path, plan.configuration, prepared / plan.configuration / "manifest.json", settings.runtime)
    export_preprocessed(prepared, settings, folder / "nnunet_preprocessed")
    return folder / "nnunet_preprocessed" / raw.name


def settings_of(plan: Plan, dataset: str, device: str, threads: int) -> dict[str, Any]:
    """params.yaml with nnU-Net's schedule, in one long epoch: nothing but steps is measured."""
    settings: dict[str, Any] = yaml.safe_load((REPO / "params.yaml").read_text())
    settings["dataset"], settings["configurations"] = dataset, [plan.configuration]
    settings["plan"]["preset"] = plan.preset
    axes = len(plan.patch)
    overrides: dict[str, Sequence[float] | int] = {
        "spacing_mm": list(plan.spacing_mm[-axes:]),
        "patch_size": list(plan.patch),
        "batch_size": plan.batch,
        "features_base": plan.features,
    }
    settings["plan"]["overrides"] = {key: {plan.configuration: value} for key, value in overrides.items()}
    settings["splits"]["group"] = None
    settings["train"] |= {"epochs": 2, "iterations_per_epoch": 10**6}
    settings["runtime"] |= {"device": device, "threads": threads}
    return settings


def _make_up(plan: Plan, raw: Path) -> None:
    """Noise in whole numbers, as scanners give them, and two classes within each other."""
    for index in range(N_CASES):
        rng = np.random.default_rng(index)
        axes = [np.linspace(-1, 1, n) for n in plan.case_shape]
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
        label = (radius < rng.uniform(0.6, 0.9)).astype(np.uint8) + (radius < rng.uniform(0.3, 0.5))
        image = (200 + 50 * label + rng.normal(0, 20, plan.case_shape)).astype(np.int16)
        _write(raw / "imagesTr" / f"case_{index}_0000.nii", image, plan.spacing_mm)
        _write(raw / "labelsTr" / f"case_{index}.nii", label.astype(np.uint8), plan.spacing_mm)
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "outer": 1, "inner": 2}}
    digest.write_json(raw / "dataset.json", {**described, "numTraining": N_CASES, "file_ending": ".nii"})


def _write(path: Path, array: np.ndarray[Any, Any], spacing_mm: tuple[float, float, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*reversed(spacing_mm), 1.0])
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), path)
