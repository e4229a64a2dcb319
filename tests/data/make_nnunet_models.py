"""Makes interop/ with nnU-Net 2.8.1: tiny models, an image, and what nnU-Net predicts of it.

    python make_nnunet_models.py /path/to/nnunet/bin/python

regions.zip : 3d_lowres and 3d_cascade_fullres with regions, one fold each; resenc.zip : 2d with residual blocks, two
folds. regions.npz, resenc.npz : probabilities of the case (tiles summed in float32, see benchmarks/nnunet_peer.py), the
first with mirroring, the second without.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).with_name("interop")
PEER = Path(__file__).resolve().parents[2] / "benchmarks/nnunet_peer.py"
WANTED = {"regions": ("3d_lowres", "3d_cascade_fullres"), "resenc": ("2d",)}
FOLDS = {"regions": ["0"], "resenc": ["0", "1"]}


def call(python: str, folder: Path, *arguments: str) -> None:
    names = ("raw", "preprocessed", "results")
    own = {f"nnUNet_{name}": str(folder / name) for name in names} | {"nnUNet_compile": "f"}
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    subprocess.run([python, str(PEER), *arguments], env={**os.environ, **own}, check=True)


def make(python: str, folder: Path, kind: str) -> None:
    call(python, folder, "make", str(folder), kind)
    results, raw = (next((folder / name).iterdir()) for name in ("results", "raw"))
    commands, before = [], None
    for name in WANTED[kind]:
        (model,) = results.glob(f"*__{name}")
        out = folder / "predicted" / name
        how = {"folds": FOLDS[kind], "mirroring": kind == "regions", "before": before, "float32": True}
        commands.append(["predict", {"model": str(model), "images": str(raw / "imagesTs"), "out": str(out), **how}])
        before = str(out)
    (folder / "commands.json").write_text(json.dumps(commands))
    call(python, folder, "run", str(folder / "commands.json"))
    with zipfile.ZipFile(OUT / f"{kind}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in WANTED[kind]:
            (model,) = results.glob(f"*__{name}")
            files = [model / "plans.json", model / "dataset.json"]
            files += [model / f"fold_{fold}/checkpoint_final.pth" for fold in FOLDS[kind]]
            for path in files:
                archive.write(path, path.relative_to(folder / "results"))
    (predicted,) = out.glob("*.npz")
    np.savez_compressed(OUT / f"{kind}.npz", probabilities=np.load(predicted)["probabilities"].astype(np.float16))
    (OUT / "images").mkdir(exist_ok=True)
    for path in (raw / "imagesTs").iterdir():
        (OUT / "images" / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for kind in WANTED:
        with tempfile.TemporaryDirectory() as temporary:
            make(sys.argv[1], Path(temporary), kind)
