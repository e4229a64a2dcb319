"""How much host memory does the prediction of a large case with many classes take?

    python benchmarks/prediction_memory.py

Needs neither nnU-Net nor data: a network of 8 features and random weights, tiles of 128 x 128 x 128, on made-up noise
of 512 x 512 x 400 voxels (Z: 400), most in the network's own spacing: as many logits per class as there are voxels;
no mirroring. With random weights neighbouring voxels are of different classes, and no tile is uniform: no shortcut
applies. `segpipe predict` is run on the CPU as a process of its own, with 60 classes and with 8, with a shorter case
and with two of them.

Memory is the most that the process ever had (RSS), and the largest sum over all its processes that was seen (PSS).
Prints a table, keeps `results/prediction_memory.json`, and exits with 1 where a run took more than 6 GB.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
import nibabel
import numpy as np
import torch
from running import leave_on_sigterm, measure, own_path, segpipe_command

from segpipe import digest
from segpipe.data import labels
from segpipe.prepare.plan import Configuration
from segpipe.training import checkpoint, network

OUT = Path(__file__).with_name("results") / "prediction_memory.json"
MOST_GB = 6.0  # of 1e9 bytes
PLANE, SPACING_MM = 512, 1.0
PATCH, FEATURES = 128, (8, 16, 32, 64, 64)
SAMPLE_S = 0.25


@dataclass(frozen=True)
class Run:
    """One call of `segpipe predict`. planes : of each case; step_size : of the sliding window

    network_mm : spacing of the network; the cases have 1 mm
    """

    classes: int
    planes: int
    n_cases: int
    step_size: float
    probabilities: bool = False
    network_mm: float = SPACING_MM


RUNS = {
    "few classes": Run(8, 400, 1, 1.0),
    "many classes": Run(60, 400, 1, 1.0),
    "resampled": Run(60, 400, 1, 1.0, network_mm=1.5),
    "shorter": Run(60, 200, 1, 1.0),
    "two cases": Run(60, 200, 2, 1.0),
    "probabilities": Run(60, 200, 1, 1.0, probabilities=True),
    "half steps": Run(60, 400, 1, 0.5),
}
QUICK = ("few classes", "many classes", "resampled", "shorter", "two cases")


def make_model(folder: Path, classes: int, network_mm: float) -> None:
    """A MODEL with one fold, as a training of segpipe would have left it, of random weights."""
    n_stages = len(FEATURES)
    planned = Configuration(
        architecture="plain",
        spacing_mm=[network_mm] * 3,
        patch_size=[PATCH] * 3,
        batch_size=2,
        median_shape=[PATCH] * 3,
        features_per_stage=list(FEATURES),
        kernel_sizes=[[3] * 3] * n_stages,
        strides=[[1] * 3] + [[2] * 3] * (n_stages - 1),
        n_conv_per_stage=[2] * n_stages,
        n_conv_per_stage_decoder=[2] * (n_stages - 1),
        normalisation=["zscore"],
        use_mask_for_norm=[False],
        batch_dice=False,
        previous_stage=None,
        reasons=[],
    )
    named = labels.parse({"background": 0, **{f"organ {v}": v for v in range(1, classes)}}, None, folder)
    torch.manual_seed(classes)
    weights = network.create(1, classes, planned, None).state_dict()
    axes = {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    content = {
        "format": digest.FORMAT_VERSION,
        "digest": digest.of([classes]),
        "settings_digest": digest.of([classes]),
        "configuration": "3d_fullres",
        "plan": {**axes, "intensities": {"0": None}, "configurations": {"3d_fullres": asdict(planned)}},
        "dataset": {"dataset": "Dataset902_Noise", "file_ending": ".nii.gz", "orientation": "as-stored"},
        "labels": named.to_json(),
        "channel_names": ["CT"],
        "mirror_axes": [0, 1, 2],
        "precision": "float32",
        "settings": {"network": None, "precision": "off"},
        "epoch": 0,
        "network": weights,
        "averaged": None,
    }
    target = folder / "3d_fullres/fold_0/checkpoint_final.pth"
    checkpoint.save(target, checkpoint.snapshot(content))


def make_images(folder: Path, run: Run) -> None:
    """CASE_0000.nii.gz of noise, int16."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    noise = rng.integers(-100, 100, (run.planes, PLANE, PLANE), np.int16)
    volume = nibabel.Nifti1Image(noise.T, np.diag([SPACING_MM] * 3 + [1]))
    for index in range(run.n_cases):
        nibabel.save(volume, folder / f"case_{index}_0000.nii.gz")


def measured(run: Run, work: Path) -> dict[str, Any]:
    """What one run took. Stops where a case is missing."""
    make_model(work / "model", run.classes, run.network_mm)
    make_images(work / "images", run)
    out, log = work / "out", work / "log"
    given = ["--model", work / "model", "-i", work / "images", "-o", out, "--device", "cpu"]
    how = ["--no-mirroring", "--step-size", run.step_size, *(["--probabilities"] if run.probabilities else [])]
    one = measure(segpipe_command("predict", *given, *how), own_path(), log, SAMPLE_S)
    n_written = len(list(out.glob("case_*.nii.gz")))
    if n_written != run.n_cases:
        sys.exit(f"{n_written} cases were predicted instead of {run.n_cases}\n{log.read_text()}")
    return {**asdict(run), **asdict(one)}


def report(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        cases = f"{row['n_cases']} of {row['planes']} x {PLANE} x {PLANE}"
        kind = "probabilities as well" if row["probabilities"] else "segmentation"
        gb = (f"{row[name] * 2**20 / 1e9:.2f}" for name in ("largest_mib", "peak_mib"))
        times = (f"{row[name]:.0f}" for name in ("wall_s", "cpu_s"))
        network = f"{row['network_mm']} mm"
        lines.append((str(row["classes"]), cases, network, str(row["step_size"]), kind, *gb, *times))
    header = (
        "classes",
        "cases of 1 mm",
        "network",
        "step size",
        "written",
        "peak RSS, GB",
        "peak PSS, GB",
        "wall, s",
        "CPU, s",
    )
    return measuring.table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"comma-separated: {', '.join(RUNS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="not the ones that take longest")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/prediction_memory.json")
    args = parser.parse_args()
    leave_on_sigterm()
    keys = args.only.split(",") if args.only else QUICK if args.quick else tuple(RUNS)
    rows = []
    versions = measuring.versions("segpipe", "torch", "numpy", "nibabel")
    for key in keys:
        with tempfile.TemporaryDirectory() as work:
            rows.append(measured(RUNS[key], Path(work)))
        print(f"{key}: {rows[-1]}", file=sys.stderr, flush=True)
        digest.write_json(args.out, {"hardware": measuring.hardware(), "versions": versions, "runs": rows})
    print(report(rows))
    most = max(row["largest_mib"] for row in rows) * 2**20 / 1e9
    print(f"\nAt most {most:.2f} GB; target {MOST_GB:.0f} GB: {'met' if most <= MOST_GB else 'missed'}.")
    sys.exit(most > MOST_GB)


if __name__ == "__main__":
    main()
