"""How long does the export of a large case take beside nnU-Net's: from logits to a file with the segmentation?

    python benchmarks/export.py --nnunet-python /path/to/nnunet/bin/python

The logits of 20 classes on a grid of 1.5 mm (200 x 256 x 256) are made up, smooth with noise, and both programs are
given the same ones: nnU-Net as the float16 that its prediction ends with, segpipe as float32. They become a
segmentation of 300 x 512 x 512 voxels of 1 x 0.75 x 0.75 mm, written as .nii.gz. Each measurement is a fresh process
that reads the logits first; its seconds and CPU seconds are those of the export alone, its peak memory is that of the
whole process, logits included. One round of nnU-Net takes minutes.

Prints a table, keeps `results/export_cpu.json`, and exits with 1 where less than 99.9 % of the voxels are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import nibabel
import numpy as np
import torch
from running import leave_on_sigterm, own_path, peer_versions
from torch.nn.functional import interpolate

from segpipe import digest
from segpipe.data import image

HERE = Path(__file__).resolve().parent
OUT = HERE / "results/export_cpu.json"
SIDES = ("segpipe", "nnunetv2")
PEER_PACKAGES = ("nnunetv2", "torch", "numpy", "scipy", "scikit-image", "SimpleITK")
SHAPE, SPACING_MM, NETWORK_MM = (300, 512, 512), (1.0, 0.75, 0.75), (1.5, 1.5, 1.5)  # (Z, Y, X)
CLASSES = 20
MOST_WALL, LEAST_EQUAL = 0.1, 0.999
COARSE = 9  # knots of the smooth logits along each axis
UNITS = {"wall_s": "wall, s", "cpu_s": "CPU, s", "peak_mib": "peak memory, MiB"}


def make(folder: Path, shape: tuple[int, ...]) -> None:
    """logits.npy (classes, Z, Y, X) float16 on the network's grid, an image on the file's, case.json."""
    on_network = [round(n * of / to) for n, of, to in zip(shape, SPACING_MM, NETWORK_MM, strict=True)]
    generator = torch.Generator().manual_seed(20)
    logits = np.lib.format.open_memmap(folder / "logits.npy", "w+", np.float16, (CLASSES, *on_network))
    for index in range(CLASSES):
        knots = torch.randn((1, 1, *(COARSE,) * 3), generator=generator) * 8 + (
            12 if index == 0 else 0
        )  # three quarters are background
        smooth = interpolate(knots, on_network, mode="trilinear", align_corners=True)[0, 0]
        logits[index] = (smooth + 0.3 * torch.randn(on_network, generator=generator)).half().numpy()
    logits.flush()
    affine = np.diag([*SPACING_MM[::-1], 1])
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape[::-1], np.uint8), affine), folder / "image.nii.gz")
    labels = {"background": 0, **{f"class {value}": value for value in range(1, CLASSES)}}
    case = {"shape": shape, "spacing_mm": SPACING_MM, "network_mm": NETWORK_MM, "labels": labels}
    (folder / "case.json").write_text(json.dumps(case))


def run(side: str, python: Path, folder: Path) -> dict[str, Any]:
    """One export in a fresh process; what it says of itself."""
    if side == "segpipe":
        script, environment = "segpipe_export.py", own_path()
    else:
        script, environment = "nnunet_export.py", {f"nnUNet_{name}": str(folder) for name in NAMES}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), str(HERE / script), str(folder)]
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {found}", file=sys.stderr, flush=True)
    return found


NAMES = ("raw", "preprocessed", "results")


def outcome(folder: Path) -> dict[str, float]:
    """Of both segmentations."""
    ours, theirs = (image.read_label(folder / f"{side}.nii.gz").array[0] for side in SIDES)
    return {"equal_voxels": float((ours == theirs).mean()), "background": float((theirs == 0).mean())}


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    rows = []
    for name, title in UNITS.items():
        ours, theirs = (content[side][name] for side in SIDES)
        ratio = ours["median"] / theirs["median"]
        met = f"{MOST_WALL}: {'met' if ratio <= MOST_WALL else 'missed'}" if name == "wall_s" else ""
        shown = (f"{one['median']:,.1f} ({one['min']:,.1f} to {one['max']:,.1f})" for one in (ours, theirs))
        rows.append((title, *shown, f"{ratio:.3f}", met))
    n_rounds = [len(content[side]["wall_s"]["rounds"]) for side in SIDES]
    shape, network = (" x ".join(map(str, content[name])) for name in ("shape", "network_shape"))
    return "\n".join(
        [
            f"Export of {CLASSES} classes, {network} to {shape} voxels; {n_rounds[0]} and {n_rounds[1]} rounds.",
            "",
            measuring.table(("", "segpipe", "nnU-Net", "ratio", "target"), rows),
            "",
            f"Equal voxels: {100 * content['equal_voxels']:.4f} %; background: {100 * content['background']:.0f} %.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, required=True, help="interpreter with nnunetv2 2.8")
    parser.add_argument("--rounds", type=int, default=3, help="of segpipe; default: 3")
    parser.add_argument("--nnunet-rounds", type=int, default=1, help="default: 1")
    parser.add_argument("--quick", action="store_true", help="a case of half the edges")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; default: results/export_cpu.json")
    args = parser.parse_args()
    leave_on_sigterm()
    python = {"segpipe": Path(sys.executable), "nnunetv2": args.nnunet_python}
    wanted = {"segpipe": args.rounds, "nnunetv2": args.nnunet_rounds}
    shape = tuple(n // 2 for n in SHAPE) if args.quick else SHAPE
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, shape)
        network_shape = np.load(folder / "logits.npy", mmap_mode="r").shape
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for number in range(max(wanted.values())):
            for side in SIDES:
                if number < wanted[side]:
                    runs[side].append(run(side, python[side], folder))
        found = outcome(folder)
    content = {
        "hardware": measuring.hardware(),
        "versions": {
            "segpipe": measuring.versions("segpipe", "torch", "numpy", "nibabel"),
            "nnunetv2": peer_versions(args.nnunet_python, PEER_PACKAGES),
        },
        "shape": shape,
        "network_shape": list(network_shape[1:]),
        "classes": CLASSES,
        **{side: {name: measuring.spread(one[name] for one in rows) for name in UNITS} for side, rows in runs.items()},
        **found,
    }
    digest.write_json(args.out, content)
    print(report(content))
    sys.exit(content["equal_voxels"] < LEAST_EQUAL)


if __name__ == "__main__":
    main()
