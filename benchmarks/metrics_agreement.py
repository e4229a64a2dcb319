"""Metrics beside those of others on the same masks: MONAI, surface-distance, nnU-Net's evaluation; and their time.

    python benchmarks/metrics_agreement.py --peer PYTHON --nnunet-python PYTHON --data FOLDER [--predictions FOLDER ...]

The first PYTHON belongs to an environment with monai and surface-distance, the second to one with nnunetv2 2.8.1.
FOLDER has datasets in nnU-Net's raw layout; predictions are given as DATASET=FOLDER. Prints tables, writes
results/metrics_agreement.json beside this file and exits with 1 where a difference is above its limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from metrics_voxels import hd95_of_boundary_voxels_mm
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from segpipe import params
from segpipe.data import image
from segpipe.data.labels import Labels
from segpipe.data.labels import parse as parse_labels
from segpipe.evaluation import files, metrics
from segpipe.evaluation.overlap import OVERLAP, Pair

HERE = Path(__file__).parent
OUT = HERE / "results/metrics_agreement.json"
EXACT = 1e-6  # limit for nnU-Net's metrics, and for those of surface-distance, relative
DATASETS = ("Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset101_HeadNeckCT", "Dataset103_Nuclei2D")
CASES = 3  # of each dataset
TOLERANCE_MM = 2.0
Mask = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="interpreter with monai and surface-distance")
    parser.add_argument("--nnunet-python", required=True, help="interpreter with nnunetv2")
    parser.add_argument("--data", required=True, type=Path, help="folder of the datasets")
    parser.add_argument("--predictions", nargs="*", default=[], metavar="DATASET=FOLDER", help="label maps of cases")
    arguments = parser.parse_args()
    predictions = {name: Path(folder) for name, folder in (text.split("=", 1) for text in arguments.predictions)}
    pairs = [*analytic(), *real(arguments.data, predictions)]
    surfaces = compare_surfaces(pairs, arguments.peer)
    overlaps = [*compare_overlap(arguments.data, predictions, arguments.nnunet_python)]
    report = {
        "versions": {**measuring.versions("segpipe", "numpy", "scipy"), **surfaces.pop("versions")},
        "hardware": measuring.hardware(),
        "tolerance_mm": TOLERANCE_MM,
        "limit": EXACT,
        **surfaces,
        "nnunet": overlaps,
        "time": times(pairs),
    }
    report["within_limit"] = (
        max(*(one["surface-distance"] for one in report["largest"].values()), *(one["largest"] for one in overlaps))
        <= EXACT
    )
    OUT.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    show(report)
    sys.exit(0 if report["within_limit"] else 1)


# the masks


def analytic() -> Iterator[dict[str, Any]]:
    """Cubes moved by one voxel along each axis, of equal and of unequal edges."""
    cube = np.zeros((24, 28, 32), bool)
    cube[8:16, 8:16, 8:16] = True
    for spacing_mm in ((1.0, 1.0, 1.0), (5.0, 1.0, 0.5)):
        for axis in range(3):
            yield pair("cube", f"axis {axis}", np.roll(cube, 1, axis), cube, spacing_mm)


def real(data: Path, predictions: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Labels beside themselves moved, worn and grown, and beside predictions."""
    for dataset in DATASETS:
        references = sorted((data / dataset / "labelsTr").glob("*.*"))
        for path in references[:: max(1, len(references) // CASES)][:CASES]:
            label = image.read_label(path)
            for value in np.unique(label.array)[1:]:
                yield from changed(f"{dataset} {path.name.split('.')[0]}", label.array[0] == value, label.spacing_mm)
        for path in sorted(predictions[dataset].glob("*.*"))[:CASES] if dataset in predictions else ():
            if path.name.lower().endswith(image.FILE_ENDINGS):
                reference, predicted = image.read_label(data / dataset / "labelsTr" / path.name), image.read_label(path)
                for value in np.unique(reference.array)[1:]:
                    masks = predicted.array[0] == value, reference.array[0] == value
                    yield pair(f"{dataset} {path.name.split('.')[0]}", "prediction", *masks, reference.spacing_mm)


def changed(name: str, mask: Mask, spacing_mm: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    near = np.ones([1 if n == 1 else 3 for n in mask.shape], bool)
    for kind, other in (
        ("moved", np.roll(mask, (2, 1), (1, 2))),
        ("worn", binary_erosion(mask, near)),
        ("grown", binary_dilation(mask, near)),
    ):
        if other.any():
            yield pair(name, kind, other, mask, spacing_mm)


def pair(name: str, kind: str, predicted: Mask, reference: Mask, spacing_mm: tuple[float, ...]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "masks": (predicted, reference), "spacing_mm": spacing_mm}


# surfaces


def compare_surfaces(pairs: list[dict[str, Any]], peer: str) -> dict[str, Any]:
    """Our numbers and theirs of every pair, and the largest differences by metric and side."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npz"
        arrays = {f"{i}_{side}": mask for i, one in enumerate(pairs) for side, mask in enumerate(one["masks"])}
        np.savez(path, spacing_mm=[one["spacing_mm"] for one in pairs], **arrays)
        said = subprocess.run(
            [peer, HERE / "metrics_peer.py", path, str(TOLERANCE_MM)], check=True, capture_output=True, text=True
        )
    theirs = json.loads(said.stdout)
    rows = []
    for one, other in zip(pairs, theirs["pairs"], strict=True):
        ours = metrics.surface_metrics(Pair.of(*one["masks"]), one["spacing_mm"], TOLERANCE_MM)
        rows.append({"case": one["name"], "kind": one["kind"], "segpipe": ours, **other})
    apart = {
        name: {
            side: [relative(row["segpipe"][name], row[side][name]) for row in rows]
            for side in ("surface-distance", "MONAI")
        }
        for name in metrics.SURFACE
    }
    kinds = {
        kind: {name: {side: float(one(all_)) for side, all_ in sides.items()} for name, sides in apart.items()}
        for kind, one in (("largest", max), ("median", np.median))
    }
    return {"versions": theirs["versions"], "n_pairs": len(rows), **kinds, "pairs": rows}


def relative(ours: float, theirs: float) -> float:
    """Difference, of numbers above one as a share."""
    return abs(ours - theirs) / max(1.0, abs(theirs))


# nnU-Net


def compare_overlap(data: Path, predictions: dict[str, Path], nnunet: str) -> Iterator[dict[str, Any]]:
    """summary.json of both on the same files: predictions of datasets, and drawn regions with an ignore label."""
    with tempfile.TemporaryDirectory() as folder:
        for dataset, predicted in predictions.items():
            yield overlap(dataset, predicted, data / dataset / "labelsTr", data / dataset / "dataset.json", nnunet)
        root = Path(folder)
        for name, labels, order in (
            ("ignore label", {"background": 0, "one": 1, "two": 2, "ignore": 3}, None),
            ("regions, ignore label", {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2]),
        ):
            drawn(root / name, labels, order)
            folders = (root / name / part for part in ("predicted", "labelsTr", "dataset.json"))
            yield overlap(name, *folders, nnunet)


def drawn(root: Path, labels: dict[str, Any], order: list[int] | None) -> None:
    """Five cases of blocks with unequal edges; in one of them a class is in neither file."""
    import nibabel  # noqa: PLC0415  # nothing else here writes files

    rng = np.random.default_rng(0)
    for case in range(5):
        for part, values in (("labelsTr", (0, 1, 2, 3)), ("predicted", (0, 1, 2))):
            blocks = rng.choice([v for v in values if (case, v) != (4, 2)], (5, 6, 7))
            array = np.kron(blocks, np.ones((4, 3, 2), int)).astype(np.uint8)
            (root / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1.0, 2.0, 3.0, 1])), root / part / f"case_{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**content, **({"regions_class_order": order} if order else {})}))


def overlap(name: str, predicted: Path, references: Path, described: Path, nnunet: str) -> dict[str, Any]:
    content = json.loads(described.read_text())
    labels: Labels = parse_labels(content["labels"], content.get("regions_class_order"), described)
    way = files.Way(labels, params.load(HERE.parent / "params.yaml").evaluate, 0.1)
    ours = files.evaluate(predicted, references, way, only_predicted=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        command = [nnunet, HERE / "metrics_nnunet.py", predicted, references, described, out]
        subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = json.loads(out.read_text())
    rows = {Path(row["prediction_file"]).name: row["metrics"] for row in theirs["metric_per_case"]}
    differences = [
        apart(row["metrics"][key][metric], value)
        for row in ours["metric_per_case"]
        for key, numbers in rows[Path(row["prediction_file"]).name].items()
        for metric, value in numbers.items()
    ]
    differences += [
        apart(ours["mean"][key][metric], value)
        for key, means in theirs["mean"].items()
        for metric, value in means.items()
    ]
    differences += [apart(ours["foreground_mean"][metric], theirs["foreground_mean"][metric]) for metric in OVERLAP]
    return {"files": name, "cases": len(rows), "numbers": len(differences), "largest": max(differences)}


def apart(ours: float | None, theirs: float | None) -> float:
    """nnU-Net's NaN is our null."""
    absent = theirs is None or np.isnan(theirs)
    if ours is None or absent:
        return 0.0 if ours is None and absent else float("inf")
    return abs(ours - theirs)


# time


def times(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds of all pairs, the sides taking turns: HD95 alone as it was, HD95 with ASSD and NSD as it is."""
    cut = [(Pair.of(*one["masks"]), one["spacing_mm"]) for one in [*pairs, large()]]
    sides = {
        "HD95 of boundary voxels, distance transforms": lambda: [
            hd95_of_boundary_voxels_mm(one.predicted, one.reference, spacing) for one, spacing in cut
        ],
        "HD95, ASSD and NSD": lambda: [metrics.surface_metrics(one, spacing, TOLERANCE_MM) for one, spacing in cut],
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(3):
        for side, call in sides.items():
            start = time.process_time()
            call()
            seconds[side].append(time.process_time() - start)
    return {side: measuring.spread(values) for side, values in seconds.items()}


def large() -> dict[str, Any]:
    """Two ellipsoids of a liver's size."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (150, 250, 250)), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    return pair("ellipsoids", "large", radius < 0.9, radius < 0.92, (2.0, 1.0, 1.0))


def show(report: dict[str, Any]) -> None:
    rows = [
        [name, *(f"{report[kind][name][side]:.2g}" for side in sides for kind in ("largest", "median"))]
        for name, sides in report["largest"].items()
    ]
    print(f"{report['n_pairs']} pairs of masks, differences (above 1 as a share)\n")
    heads = [f"{side}, {kind}" for side in ("surface-distance", "MONAI") for kind in ("largest", "median")]
    print(measuring.table(["metric", *heads], rows), end="\n\n")
    rows = [[one["files"], str(one["cases"]), str(one["numbers"]), f"{one['largest']:.2g}"] for one in report["nnunet"]]
    print(measuring.table(["files", "cases", "numbers", "largest difference to nnU-Net"], rows), end="\n\n")
    rows = [[side, f"{seconds['median']:.2f}"] for side, seconds in report["time"].items()]
    print(measuring.table(["of all pairs, and a large one", "CPU s"], rows))


if __name__ == "__main__":
    main()
