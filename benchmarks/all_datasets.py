"""Every dataset of a folder from its raw files to the summary of fold 0, with a few steps of training.

    python benchmarks/all_datasets.py --data /path/to/datasets > docs/all_datasets.md

3D datasets train 3d_fullres, 2D ones 2d; patches and networks are small, the rest of params.yaml is as it is. With
`--sgd --epochs 25 --iterations 40 --only Dataset103_Nuclei2D` a network of 2D photographs learns enough to be useful.
Exits with 1 where a command fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
IN_2D = {"patch_size": [128, 128], "batch_size": 6, "features_base": 12, "spacing_mm": None}
IN_3D = {"patch_size": [32, 64, 64], "batch_size": 2, "features_base": 8, "spacing_mm": None}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder of datasets in nnU-Net's raw layout")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--sgd", action="store_true", help="the optimiser of params.yaml, which needs more steps")
    parser.add_argument("--only", nargs="*", help="names of datasets; default: all")
    arguments = parser.parse_args()
    datasets = sorted(path.parent for path in arguments.data.glob("Dataset*/dataset.json"))
    rows = [run(path, arguments) for path in datasets if not arguments.only or path.name in arguments.only]
    if not arguments.only:
        (REPO / "benchmarks/results/all_datasets.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(report(rows, arguments))


def run(dataset: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One dataset through snakemake, in a folder of its own."""
    print(f"{dataset.name} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flat = json.loads((dataset / "dataset.json").read_text())["file_ending"] in (".png", ".bmp", ".jpg")
        write_params(folder, dataset, flat, arguments)
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            str(REPO / "Snakefile"),
            "--cores",
            "all",
            "--quiet",
        ]
        start = time.monotonic()
        subprocess.run(
            [*command, "all", "--", "results/fold_0/summary.json"], cwd=folder, check=True, stdout=sys.stderr
        )
        seconds = time.monotonic() - start
        summary = json.loads((folder / "results/fold_0/summary.json").read_text())
    dice = {name: row["Dice"] for name, row in summary["mean"].items()}
    return {
        "dataset": dataset.name,
        "configuration": "2d" if flat else "3d_fullres",
        "validated": len(summary["metric_per_case"]),
        "mean": summary["foreground_mean"]["Dice"],
        "dice": dice,
        "seconds": round(seconds),
    }


def write_params(folder: Path, dataset: Path, flat: bool, arguments: argparse.Namespace) -> None:
    """Small patches and networks, few steps."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["dataset"], params["configurations"] = str(dataset.resolve()), ["2d" if flat else "3d_fullres"]
    params["plan"]["overrides"].update(IN_2D if flat else IN_3D)
    params["train"].update(
        epochs=arguments.epochs, iterations_per_epoch=arguments.iterations, val_iterations_per_epoch=3
    )
    if not arguments.sgd:
        params["train"]["optimiser"].update(name="adamw", learning_rate=2e-3)  # learns something in few steps
    params["validate"].update(mirroring=False)
    params["runtime"].update(device="cpu", threads=1)  # two would wait for each other beside other work
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def report(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """The page."""
    lines = [
        "# From raw files to a summary",
        "",
        f"`benchmarks/all_datasets.py`: fold 0, {arguments.epochs} epochs of {arguments.iterations} steps, patches of",
        f"{IN_3D['patch_size']} or {IN_2D['patch_size']}, no mirroring. So few steps show that it works, no more.",
        "",
        "| dataset | configuration | cases validated | mean foreground Dice | by class | seconds |",
        "| --- | --- | ---: | ---: | --- | ---: |",
    ]
    for row in rows:
        by_class = ", ".join(
            f"{name}: {'none' if dice is None else f'{dice:.2f}'}" for name, dice in row["dice"].items()
        )
        mean = "none" if row["mean"] is None else f"{row['mean']:.3f}"
        first = f"| {row['dataset']} | {row['configuration']} | {row['validated']} | {mean} |"
        lines.append(f"{first} {by_class} | {row['seconds']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
