"""Models of nnU-Net here and models of segpipe there: do both programs predict the same?

    python benchmarks/interop_nnunet.py --nnunet-python /path/to/nnunet/bin/python

Import: tiny models that nnU-Net planned and saved (two folds), of every configuration and kind of labels, are
imported and predict the same case in both programs. Export: models that segpipe trained for a few steps are exported,
and predict in both. Then nnU-Net's ensemble and evaluation commands run on segpipe's files. Exits with 1 where less
than 99.9 % of the voxels are equal, or probabilities differ by more than 2e-3 from nnU-Net with tiles summed in float32
(docs/interop.md says why that).
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

import numpy as np
import torch
import yaml

from segpipe import digest
from segpipe.cli.main import main as segpipe
from segpipe.data import image

REPO = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("nnunet_peer.py")
RESULTS = Path(__file__).with_name("results") / "interop_nnunet.json"
KINDS = ("plain", "regions", "ignore", "regions_ignore", "resenc")
FOLDS = ("0", "1")
CASCADE, FIRST_STAGE = "3d_cascade_fullres", "3d_lowres"
LEAST_EQUAL, MOST_APART = 0.999, 2e-3
Row = dict[str, Any]


class Peer:
    """nnU-Net, in a folder of its own."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder

    def call(self, *arguments: str) -> None:
        names = ("raw", "preprocessed", "results")
        for name in names:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        own = {f"nnUNet_{name}": str(self.folder / name) for name in names} | {"nnUNet_compile": "f"}
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), str(PEER), *arguments]
        done = subprocess.run(command, env={**kept, **own}, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")

    def run(self, commands: list[list[Any]]) -> None:
        path = self.folder / "commands.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(commands))
        self.call("run", str(path))


def predict_both(peer: Peer, trained: dict[str, Path], model: Path, images: Path, out: Path) -> list[Row]:
    """Predict with nnU-Net's folders and with a MODEL, with and without mirroring; rows per configuration.

    trained : configuration to nnU-Net's folder
    """
    ordered = sorted(trained, key=lambda name: name == CASCADE)
    ways = [(name, mirroring) for mirroring in (False, True) for name in ordered]
    commands = []
    for float32 in (False, True):
        for name, mirroring in ways:
            before = str(_theirs(out, FIRST_STAGE, mirroring, float32)) if name == CASCADE else None
            files = {"model": str(trained[name]), "images": str(images), "before": before}
            target = str(_theirs(out, name, mirroring, float32))
            how = {"out": target, "folds": FOLDS, "mirroring": mirroring, "float32": float32}
            commands.append(["predict", {**files, **how}])
    peer.run(commands)
    rows = []
    for name, mirroring in ways:
        ours = out / "ours" / f"{name}_{mirroring}"
        options = [] if mirroring else ["--no-mirroring"]
        arguments = ["--model", model, "-i", images, "-o", ours, "--configurations", name, "--device", "cpu"]
        segpipe(["predict", *map(str, arguments), "--probabilities", *options])
        for float32 in (False, True):
            found = compare(_theirs(out, name, mirroring, float32), ours)
            rows.append({"configuration": name, "mirroring": mirroring, "nnunet_sums_in": f"float{16 * (1 + float32)}"})
            rows[-1].update(found)
            print(rows[-1], flush=True)
    return rows


def _theirs(out: Path, name: str, mirroring: bool, float32: bool) -> Path:
    return out / "theirs" / f"{name}_{mirroring}_{float32}"


def compare(theirs: Path, ours: Path) -> Row:
    """The worst of all cases: share of equal voxels, difference of probabilities, share of voxels beyond the limit of
    it; and how rare the rarest class is."""
    equal, apart, further, rarest = [], [], [], []
    cases = sorted(path.stem for path in theirs.glob("*.npz"))
    assert cases == sorted(path.stem for path in ours.glob("*.npz"))
    for case in cases:
        pair = [image.read_label(folder / f"{case}.nii.gz").array[0] for folder in (theirs, ours)]
        values = np.unique(pair[0])
        equal.append(float((pair[0] == pair[1]).mean()))
        rarest.append(min(float((pair[0] == value).mean()) for value in values) if len(values) > 1 else 0.0)
        probabilities = [np.load(folder / f"{case}.npz")["probabilities"] for folder in (theirs, ours)]
        difference = np.abs(probabilities[0] - probabilities[1]).max(0)
        apart.append(float(difference.max()))
        further.append(float((difference > MOST_APART).mean()))
    found = {"equal_voxels": min(equal), "probability": max(apart), "voxels_further_apart": max(further)}
    return {"cases": len(cases), **found, "rarest_class": min(rarest)}


def imports(python: Path, folder: Path) -> list[Row]:
    """nnU-Net's models, imported."""
    rows = []
    for kind in KINDS:
        peer = Peer(python, folder / kind)
        peer.call("make", str(peer.folder), kind)
        raw, results = (next((peer.folder / name).iterdir()) for name in ("raw", "results"))
        segpipe(["import-nnunet", str(results), "--out", str(peer.folder / "model")])
        trained = {path.name.split("__")[-1]: path for path in results.iterdir()}
        found = predict_both(peer, trained, peer.folder / "model", raw / "imagesTs", peer.folder)
        rows += [{"kind": kind, **row} for row in found]
    return rows


def exports(python: Path, folder: Path) -> list[Row]:
    """Models of segpipe, exported: the ones of a small cascade pipeline, on the cases of `imports`."""
    dataset = next((folder / "plain/raw").iterdir())
    project, peer = folder / "project", Peer(python, folder / "export")
    _pipeline(project, dataset)
    segpipe(["export-nnunet", str(project / "results"), "--out", str(peer.folder / "models")])
    trained = {path.name.split("__")[-1]: path for path in (peer.folder / "models").iterdir()}
    return predict_both(peer, trained, project / "results", dataset / "imagesTs", peer.folder)


def _pipeline(project: Path, dataset: Path) -> None:
    """`snakemake` on the dataset, with trainings of a few steps."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params.update(dataset=str(dataset), configurations=["2d", "3d_fullres", CASCADE], folds=[0, 1])
    params["splits"]["n_folds"] = 2
    patches = {"2d": [24, 24], FIRST_STAGE: [12, 24, 24], "3d_fullres": [12, 24, 24]}
    spacing = {FIRST_STAGE: [3.0, 1.7, 1.7]}
    params["plan"]["overrides"].update(spacing_mm=spacing, patch_size=patches, batch_size=2, features_base=4)
    params["train"].update(epochs=1, iterations_per_epoch=40, val_iterations_per_epoch=1, precision="off")
    params["runtime"].update(device="cpu")
    project.mkdir()
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--snakefile", str(REPO / "Snakefile"), "--quiet"]
    subprocess.run(command, cwd=project, check=True)


def commands(python: Path, folder: Path) -> list[Row]:
    """nnU-Net's own commands on files of segpipe; needs what `exports` left behind."""
    project, dataset = folder / "project", next((folder / "plain/raw").iterdir())
    peer, results = Peer(python, folder / "commands"), project / "results"
    names = ("2d", "3d_fullres", CASCADE)
    softmax = {}
    for name in names:
        softmax[name] = peer.folder / name
        given = [results / name / "fold_0/validation_final", "--images", dataset / "imagesTr", "--model", results]
        segpipe(["export-nnunet-predictions", *map(str, given), "--out", str(softmax[name])])
    dice, ensembled = peer.folder / "summary.json", peer.folder / "ensembled"
    first = softmax[names[0]]
    segmented = results / "fold_0/segmentations"
    described = ["-djfile", str(first / "dataset.json"), "-pfile", str(first / "plans.json")]
    cli = [
        "nnUNetv2_predict_from_modelfolder", "-i", str(dataset / "imagesTs"), "-o", str(peer.folder / "predicted"),
        "-m", str(folder / "export/models/nnUNetTrainer__nnUNetPlans__3d_fullres"), "-f", *FOLDS, "-device", "cpu",
        "-npp", "1", "-nps", "1", "--save_probabilities",
    ]  # fmt: skip
    peer.run(
        [
            ["command", "nnUNetv2_ensemble", "-i", *map(str, softmax.values()), "-o", str(ensembled), "-np", "1"],
            ["command", "nnUNetv2_evaluate_folder", str(dataset / "labelsTr"), str(segmented), *described,
             "-o", str(dice), "-np", "1", "--chill"],
            ["command", *cli],
        ]
    )  # fmt: skip
    equal = [_equal(ensembled / path.name, path) for path in sorted(segmented.glob("*.nii.gz"))]
    theirs, ours = (
        digest.read_json(path)["foreground_mean"]["Dice"] for path in (dice, results / "fold_0/summary.json")
    )
    return [
        {"command": "nnUNetv2_ensemble", "nnunet_sums_in": None, "equal_voxels": min(equal), "probability": 0.0},
        {"command": "nnUNetv2_evaluate_folder", "nnunet_sums_in": None, "equal_voxels": 1.0, "probability": 0.0}
        | {"dice": ours, "dice_of_nnunet": theirs},
        {
            "command": cli[0],
            "nnunet_sums_in": "float16",
            **compare(peer.folder / "predicted", folder / "export/ours/3d_fullres_True"),
        },
    ]


def _equal(first: Path, second: Path) -> float:
    pair = [image.read_label(path).array[0] for path in (first, second)]
    return float((pair[0] == pair[1]).mean())


def _is_beyond(row: Row) -> bool:
    """Where nnU-Net sums in float16, its own rounding exceeds the limit of probabilities (docs/interop.md)."""
    return row["equal_voxels"] < LEAST_EQUAL or (row["nnunet_sums_in"] != "float16" and row["probability"] > MOST_APART)


def main() -> None:
    """Print and save every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nnunet-python", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="keeps everything there; default: a temporary one")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="each needs those before it")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    content = digest.read_json(RESULTS) if RESULTS.exists() else {}
    for part in arguments.parts:
        content[part] = PARTS[part](arguments.nnunet_python, folder)
        for row in content[part]:
            print(
                "  ".join(
                    f"{name} {value:.6g}" if isinstance(value, float) else f"{value}" for name, value in row.items()
                )
            )
    versions = {"nnunetv2": "2.8.1", "torch": torch.__version__, "numpy": np.__version__}
    limits = {"equal_voxels": LEAST_EQUAL, "probability": MOST_APART}
    digest.write_json(RESULTS, {**content, "limits": limits, "versions": versions})
    if arguments.folder is None:
        shutil.rmtree(folder)
    sys.exit(any(_is_beyond(row) for part in arguments.parts for row in content[part]))


PARTS = {"import": imports, "export": exports, "commands": commands}

if __name__ == "__main__":
    main()
