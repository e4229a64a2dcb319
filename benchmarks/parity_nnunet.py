"""Fingerprint, plan and preprocessed arrays of segpipe beside nnU-Net's, on real datasets.

    python benchmarks/parity_nnunet.py --nnunet-python PYTHON --data FOLDER

PYTHON belongs to an environment with nnunetv2 2.8.1, FOLDER has datasets in nnU-Net's raw layout. Prints a table,
writes results/parity_nnunet.json beside this file and exits with 1 where a difference is above its limit.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.prepare import plan as plan_module
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import preprocess

REPO = Path(__file__).resolve().parents[1]
OUT = Path(__file__).with_name("results") / "parity_nnunet.json"
DATASETS = [
    "Dataset004_Hippocampus",
    "Dataset027_ACDC",
    "Dataset101_HeadNeckCT",
    "Dataset102_TargetRegions",
    "Dataset103_Nuclei2D",
]
N_CASES = 10
LIMIT = 1e-3  # of intensity statistics and arrays in standard deviations, of spacings and shares as they are
LOWRES_FACTOR = 1.7  # none of the datasets is large enough for 3d_lowres: it is given this multiple of the spacing
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
LIBRARIES = ("numpy", "scipy", "scikit-image")
NORMALISATIONS = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
NETWORK = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")
NO_OVERRIDES = dict.fromkeys(("spacing_mm", "patch_size", "batch_size", "features_base"))
HEADINGS = {
    "dataset": "dataset",
    "fingerprint": "fingerprint: worst difference",
    "plan": "plan: decisions that differ",
    "configuration": "configuration",
    "image": "image: worst mean difference",
    "label": "label: most voxels that differ",
}

# Run by nnU-Net's python: its planner and preprocessor, and its compressed arrays as plain ones.
PLAN = "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as e; e.plan_and_preprocess_entry()"
PREPROCESS = "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as e; e.preprocess_entry()"
UNPACK = """
import sys, blosc2, numpy
for path in sys.argv[1:]:
    numpy.save(path + ".npy", blosc2.open(path, mode="r")[:])
"""
VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet-python", required=True, help="python of an environment with nnunetv2")
    parser.add_argument("--data", required=True, type=Path, help="folder of the datasets")
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--cases", type=int, default=N_CASES, help="of which the arrays are compared, per dataset")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.datasets:
        with tempfile.TemporaryDirectory() as folder:
            nnunet = NnUnet(arguments.nnunet_python, Path(folder), arguments.data.resolve() / name)
            rows += compare(nnunet, Path(folder), arguments.cases)
    report = {
        "versions": {"segpipe": {name: version(name) for name in LIBRARIES}, "nnunet": nnunet.versions()},
        "cases_per_dataset": arguments.cases,
        "limit": LIMIT,
        "within_limit": all(row[key] <= LIMIT for row in rows for key in ("fingerprint", "plan", "image", "label")),
        "rows": rows,
    }
    digest.write_json(OUT, report)
    print(table(rows))
    sys.exit(0 if report["within_limit"] else 1)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [list(HEADINGS.values()), ["---"] * len(HEADINGS)]
    lines += [[f"{row[key]:.1e}" if isinstance(row[key], float) else str(row[key]) for key in HEADINGS] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class NnUnet:
    """nnU-Net in its own environment, working on one dataset in a temporary folder."""

    def __init__(self, python: str, folder: Path, dataset: Path) -> None:
        self.python, self.dataset = python, dataset
        self.prepared = folder / "preprocessed" / dataset.name
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for variable, name in FOLDERS.items():
            (folder / name).mkdir()
            self.environment[variable] = str(folder / name)
        (folder / "raw" / dataset.name).symlink_to(dataset)

    def run(self, code: str, *arguments: object) -> str:
        command = [self.python, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def prepare(self) -> dict[str, Any]:
        """Plan and preprocess; returns the plans, with a 3d_lowres that its planner did not see a need for."""
        number, workers = int(self.dataset.name.removeprefix("Dataset")[:3]), str(os.cpu_count())
        self.run(PLAN, "-d", number, "--no_pp", "-npfp", workers)
        plans = self.read("nnUNetPlans.json")
        if fullres := plans["configurations"].get("3d_fullres"):
            coarse = {"spacing": [LOWRES_FACTOR * edge for edge in fullres["spacing"]], "data_identifier": "lowres"}
            plans["configurations"] = {name: plans["configurations"][name] for name in ("2d", "3d_fullres")}
            plans["configurations"]["3d_lowres"] = fullres | coarse
            (self.prepared / "nnUNetPlans.json").write_text(json.dumps(plans))
        names = list(plans["configurations"])
        self.run(PREPROCESS, "-d", number, "-c", *names, "-np", *[workers] * len(names))
        return plans

    def read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.prepared / name).read_text())
        return content

    def arrays(self, configuration: str, cases: list[str]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int16]]]:
        """Image (C, Z, Y, X) and label (Z, Y, X) of each case."""
        folder = self.prepared / self.read("nnUNetPlans.json")["configurations"][configuration]["data_identifier"]
        pairs = [(folder / f"{case}.b2nd", folder / f"{case}_seg.b2nd") for case in cases]
        self.run(UNPACK, *(path for pair in pairs for path in pair))
        for image, label in pairs:
            yield np.load(f"{image}.npy"), np.load(f"{label}.npy")[0]

    def versions(self) -> dict[str, str]:
        names = ("nnunetv2", *LIBRARIES)
        return dict(zip(names, self.run(VERSIONS, *names).split(), strict=True))


def compare(nnunet: NnUnet, folder: Path, n_cases: int) -> Iterator[dict[str, Any]]:
    """A row of the table per configuration."""
    theirs = nnunet.prepare()
    ours = prepare(nnunet.dataset, folder)
    cases = Cases.read(ours / "cases.json", nnunet.dataset)
    fingerprint, plan = digest.read_json(ours / "fingerprint.json"), plan_module.read(ours / "plan.json")
    planned: dict[str, Configuration] = plan["configurations"]
    of_dataset = plan_differences(plan, theirs)
    if "3d_fullres" in planned:
        spacing_mm = theirs["configurations"]["3d_lowres"]["spacing"]
        planned["3d_lowres"] = dataclasses.replace(planned["3d_fullres"], spacing_mm=spacing_mm)
    for name, configuration in planned.items():
        image, label = zip(*arrays(nnunet, cases, plan, name, spread(cases.training, n_cases)), strict=True)
        yield {
            "dataset": cases.name,
            "configuration": name,
            "fingerprint": fingerprint_difference(fingerprint, nnunet.read("dataset_fingerprint.json")),
            "plan": of_dataset + differences(configuration, theirs["configurations"][name]),
            "image": max(image),
            "label": max(label),
        }


def prepare(dataset: Path, folder: Path) -> Path:
    """Run the rules up to plan.json with nnU-Net's settings; returns the folder of their results."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params.update(dataset=str(dataset), configurations=["2d"])
    params["plan"]["overrides"].update(NO_OVERRIDES)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    prepared = f"data/preprocessed/{dataset.name}"
    command = [sys.executable, "-m", "snakemake", f"{prepared}/plan.json", "--snakefile", str(REPO / "Snakefile")]
    subprocess.run([*command, "--cores", "all", "--quiet"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / prepared


def spread(cases: list[str], n: int) -> list[str]:
    """`n` of the sorted cases, from the first to the last."""
    return [cases[index] for index in sorted(set(np.linspace(0, len(cases) - 1, n).round().astype(int)))]


def fingerprint_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference: of spacings relative, of intensities in standard deviations; of shapes infinite."""
    cases = list(ours["cases"].values())
    if [case["shape_after_crop"] for case in cases] != theirs["shapes_after_crop"]:
        return float("inf")
    spacings = np.array([case["spacing_mm"] for case in cases]) / theirs["spacings"] - 1
    share = "median_relative_size_after_cropping"
    intensities = [
        (ours["channels"][channel][name] - value) / statistics["std"]
        for channel, statistics in theirs["foreground_intensity_properties_per_channel"].items()
        for name, value in statistics.items()
    ]
    return float(np.abs([*spacings.flat, ours[share] - theirs[share], *intensities]).max())


def plan_differences(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Decisions for the dataset as a whole that differ."""
    same_axes = [ours[key] == theirs[key] for key in ("transpose_forward", "transpose_backward")]
    names = theirs["configurations"].keys() - {"3d_lowres"}
    return [*same_axes, ours["configurations"].keys() == names].count(False)


def differences(ours: Configuration, theirs: dict[str, Any]) -> int:
    """Decisions for a configuration that differ."""
    network = theirs["architecture"]["arch_kwargs"]
    expected = {
        "spacing_mm": theirs["spacing"],
        "median_shape": theirs["median_image_size_in_voxels"],
        "normalisation": [NORMALISATIONS[scheme] for scheme in theirs["normalization_schemes"]],
        **{key: theirs[key] for key in ("patch_size", "batch_size", "use_mask_for_norm", "batch_dice")},
        **{key: network[key] for key in NETWORK},
    }
    return sum(getattr(ours, key) != value for key, value in expected.items())


def arrays(
    nnunet: NnUnet, cases: Cases, plan: dict[str, Any], configuration: str, ids: list[str]
) -> Iterator[tuple[float, float]]:
    """By case: mean difference of the worst channel in standard deviations, share of label voxels that differ."""
    planned = plan["configurations"][configuration]
    for case, (image, label) in zip(ids, nnunet.arrays(configuration, ids), strict=True):
        volume = cases.read_image(case)
        ours = preprocess(volume.array, cases.read_label(case), volume.spacing_mm, plan, planned)
        assert ours.label is not None
        assert ours.image.shape == image.shape, f"{case}: {ours.image.shape} instead of {image.shape}"
        by_channel = np.abs(ours.image - image).mean((1, 2, 3), dtype=np.float64) / image.std((1, 2, 3))
        yield float(by_channel.max()), float((ours.label != label).mean())


if __name__ == "__main__":
    main()
