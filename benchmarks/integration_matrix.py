"""nnU-Net's integration matrix through snakemake: four kinds of labels, four configurations, all folds, predictions.

    python benchmarks/integration_matrix.py --data /path/to/Dataset004_Hippocampus > docs/integration_matrix.md

The datasets are those of nnunetv2/dataset_conversion/datasets_for_integration_tests: Hippocampus as it is, with its
second class as ignore label, with the whole organ as a region, and that with a tenth of the slices annotated. Each goes
from raw files to the cross-validation of the ensemble of 2d, 3d_fullres, 3d_lowres and the cascade and to predictions
of imagesTs, with a few steps per training; then the models predict again with two folds, and with fold `all`.
Exits with 1 where a command fails, a file is missing or a value is none of the dataset's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

REPO = Path(__file__).resolve().parents[1]
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
FOLDS = range(5)
ANNOTATED_SLICES = 0.1 / 3  # per axis, as nnU-Net's sparsify_segmentation is called
SHAPE = {"2d": [32, 32], "3d_fullres": [32, 40, 32], "3d_lowres": [16, 24, 16], "3d_cascade_fullres": [32, 40, 32]}


@dataclass(frozen=True)
class Kind:
    """One of the four datasets: what its dataset.json says, and what a segmentation may hold."""

    name: str
    labels: dict[str, Any]
    order: list[int] | None
    values: set[int]


KINDS = (
    Kind("plain", {"background": 0, "Anterior": 1, "Posterior": 2}, None, {0, 1, 2}),
    Kind("ignore", {"background": 0, "Anterior": 1, "ignore": 2}, None, {0, 1}),
    Kind("regions", {"background": 0, "hippocampus": [1, 2], "anterior": 1}, [2, 1], {0, 1, 2}),
    Kind("regions_ignore", {"background": 0, "hippocampus": [1, 2], "anterior": 1, "ignore": 3}, [2, 1], {0, 1, 2}),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Dataset004_Hippocampus in nnU-Net's raw layout")
    parser.add_argument("--cases", type=int, default=20, help="training cases taken; five of imagesTs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS:
            if kind.name in arguments.kinds:
                folder = Path(name) / kind.name
                make_dataset(arguments.data, folder, kind, arguments.cases)
                write_params(folder, kind, arguments)
                rows.append(run(folder, kind))
    (REPO / "benchmarks/results/integration_matrix.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(report(rows, arguments))
    sys.exit(any(row["problems"] for row in rows))


def make_dataset(source: Path, folder: Path, kind: Kind, n_cases: int) -> None:
    """The images as links, the labels as they are or sparse, and the dataset.json of a kind."""
    target = folder / f"data/raw/Dataset99_{kind.name}"
    description = json.loads((source / "dataset.json").read_text())
    for part, count in (("imagesTr", n_cases), ("labelsTr", n_cases), ("imagesTs", 5)):
        (target / part).mkdir(parents=True)
        for path in sorted((source / part).glob("*.nii.gz"))[:count]:
            if part == "labelsTr" and kind.name == "regions_ignore":
                sparsify(path, target / part / path.name)
            else:
                os.link(path, target / part / path.name) if same_device(path, target) else copy(path, target / part)
    description |= {"labels": kind.labels, "numTraining": n_cases}
    if kind.order:
        description["regions_class_order"] = kind.order
    (target / "dataset.json").write_text(json.dumps(description))


def same_device(path: Path, folder: Path) -> bool:
    """Whether a file can have a second name in a folder."""
    return path.stat().st_dev == folder.stat().st_dev


def copy(path: Path, folder: Path) -> None:
    """Copy a file into a folder."""
    (folder / path.name).write_bytes(path.read_bytes())


def sparsify(source: Path, target: Path) -> None:
    """Keep a few slices along each axis; all else is 3, the ignore label."""
    image = nibabel.load(source)
    label = np.asarray(image.dataobj)
    rng, kept = np.random.default_rng(len(source.name) + label.size), np.zeros(label.shape, bool)
    for axis, n in enumerate(label.shape):
        chosen = rng.choice(n, max(1, round(n * ANNOTATED_SLICES)), replace=False)
        kept[(slice(None),) * axis + (chosen,)] = True
    sparse = np.where(kept, label, 3).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(sparse, image.affine), target)


def write_params(folder: Path, kind: Kind, arguments: argparse.Namespace) -> None:
    """Small patches and networks, few steps; the rest is the project's params.yaml."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["dataset"] = f"data/raw/Dataset99_{kind.name}"
    params["configurations"], params["folds"] = list(CONFIGURATIONS), list(FOLDS)
    overrides = {"patch_size": SHAPE, "batch_size": 2, "features_base": 8, "spacing_mm": {"3d_lowres": [2.0] * 3}}
    params["plan"]["overrides"].update(overrides)
    params["train"].update(
        epochs=arguments.epochs, iterations_per_epoch=arguments.iterations, val_iterations_per_epoch=2
    )
    params["train"]["optimiser"].update(name="adamw", learning_rate=2e-3)  # learns something in few steps
    params["validate"].update(mirroring=False)
    params["runtime"].update(device="cpu", threads=1)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder: Path, kind: Kind) -> dict[str, Any]:
    """All folds and configurations, then predictions with two folds and with fold `all`."""
    start = time.monotonic()
    print(f"{kind.name} ...", file=sys.stderr, flush=True)
    snakemake(folder)
    everything_s = time.monotonic() - start
    snakemake(folder, "results/3d_fullres/fold_all/validation_final/summary.json")
    images = str(folder / f"data/raw/Dataset99_{kind.name}/imagesTs")
    predict(folder, images, "two_folds", "--folds", "0,3")
    predict(folder, images, "fold_all", "--folds", "all", "--configurations", "3d_fullres")
    return {
        "labels": kind.name,
        "seconds": round(everything_s),
        **{name: dice_of(folder, name) for name in CONFIGURATIONS},
        "ensemble": read(folder / "results/crossval/summary.json")["foreground_mean"]["Dice"],
        "scored": list(read(folder / "results/crossval/summary.json")["mean"]),
        "problems": list(problems(folder, kind)),
    }


def snakemake(folder: Path, *targets: str) -> None:
    """One call of the pipeline."""
    python = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile"), "--cores", "all", "--quiet"]
    subprocess.run([*python, "all", "--", *targets], cwd=folder, check=True, stdout=sys.stderr)


def predict(folder: Path, images: str, out: str, *options: str) -> None:
    """Predict with the command for a folder of models."""
    command = [str(Path(sys.executable).with_name("segpipe")), "predict", "--model", "results", "-i", images, "-o", out]
    subprocess.run([*command, *options, "--device", "cpu"], cwd=folder, check=True, stdout=sys.stderr)


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())


def dice_of(folder: Path, configuration: str) -> float:
    """Mean over the folds of a configuration's mean foreground Dice."""
    summaries = [folder / f"results/{configuration}/fold_{fold}/validation_final/summary.json" for fold in FOLDS]
    return float(np.mean([read(path)["foreground_mean"]["Dice"] or 0 for path in summaries]))


def problems(folder: Path, kind: Kind) -> Iterator[str]:
    """What is missing, and values that a segmentation must not have."""
    images = sorted((folder / f"data/raw/Dataset99_{kind.name}/imagesTs").iterdir())
    expected = [path.name.replace("_0000", "") for path in images]
    for name in ("results/predictions", "two_folds", "fold_all"):
        files = {path.name: path for path in (folder / name).glob("*.nii.gz")}
        yield from (f"{name}: {missing} is missing" for missing in expected if missing not in files)
        for image, file in zip(images, expected, strict=True):
            segmentation = nibabel.load(files[file])
            found = set(np.unique(np.asarray(segmentation.dataobj)).tolist())
            if not found <= kind.values:
                yield f"{name}/{file} has the values {sorted(found)}"
            if not np.array_equal(segmentation.affine, nibabel.load(image).affine):
                yield f"{name}/{file} lies elsewhere than its image"
    cases = {
        Path(row["reference_file"]).name for row in read(folder / "results/crossval/summary.json")["metric_per_case"]
    }
    if len(cases) != len(list((folder / f"data/raw/Dataset99_{kind.name}/labelsTr").iterdir())):
        yield f"the cross-validation has {len(cases)} cases"


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The page."""
    steps = f"{arguments.epochs} epochs of {arguments.iterations} steps"
    lines = [
        "# nnU-Net's integration matrix",
        "",
        f"`benchmarks/integration_matrix.py`: {arguments.cases} cases of Hippocampus, five folds, {steps} each, so",
        "the Dice only shows that something is learnt. One call of `snakemake` without a target per row; then",
        "`segpipe predict` with the folds 0 and 3, and with a model of fold `all`.",
        "",
        "| labels | " + " | ".join(CONFIGURATIONS) + " | ensemble | scored | seconds | problems |",
        "| --- |" + " ---: |" * (len(CONFIGURATIONS) + 1) + " --- | ---: | --- |",
    ]
    for row in rows:
        dice = " | ".join(f"{row[name]:.3f}" for name in (*CONFIGURATIONS, "ensemble"))
        wrong = "; ".join(row["problems"]) or "none"
        lines.append(f"| {row['labels']} | {dice} | {', '.join(row['scored'])} | {row['seconds']} | {wrong} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
