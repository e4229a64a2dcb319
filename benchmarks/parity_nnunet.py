"""Fingerprint, plan and preprocessed arrays of segpipe beside nnU-Net's, on real datasets.

    python benchmarks/parity_nnunet.py --nnunet-python PYTHON --data FOLDER

PYTHON belongs to an environment with nnunetv2 2.8.1, FOLDER has datasets in nnU-Net's raw layout. Prints a table,
writes results/parity_nnunet.json beside this file and exits with 1 where a difference is above its limit.
"""

import argparse
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
from numpy.typing import NDArray

from segpipe import digest
from segpipe import params as params_yaml
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.params import Check, Overrides
from segpipe.prepare import fingerprint
from segpipe.prepare.plan import Configuration, Dataset, plan_dataset
from segpipe.prepare.preprocess import preprocess

OUT = Path(__file__).with_name("results") / "parity_nnunet.json"
DATASETS = ["Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset101_HeadNeckCT"]
N_CASES = 10
N_FOLDS = 5
LIMIT = 1e-3  # of intensity statistics and arrays in standard deviations, of spacings and shares as they are
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
LIBRARIES = ("numpy", "scipy", "scikit-image")
NORMALISATIONS = {"CTNormalization": "ct", "ZScoreNormalization": "zscore", "NoNormalization": "none"}
NETWORK = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")
RUNTIME = params_yaml.load(Path(__file__).parents[1] / "params.yaml").runtime
NO_OVERRIDES = Overrides(spacing_mm=None, patch_size=None, batch_size=None, features_base=None)
HEADINGS = {
    "dataset": "dataset",
    "fingerprint": "fingerprint: worst difference",
    "plan": "plan: decisions that differ",
    "configuration": "configuration",
    "image": "image: worst mean difference",
    "label": "label: most voxels that differ",
}

# Run by nnU-Net's python: its planner and preprocessor, and its compressed arrays as plain ones.
PREPARE = "from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints as e; e.plan_and_preprocess_entry()"
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

    def prepare(self) -> None:
        number = int(self.dataset.name.removeprefix("Dataset")[:3])
        workers = str(os.cpu_count())
        self.run(PREPARE, "-d", number, "-c", "2d", "3d_fullres", "-np", workers, workers, "-npfp", workers)

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
    nnunet.prepare()
    check.check(
        nnunet.dataset,
        folder / "cases.json",
        Check(geometry_tolerance_mm=0.1, orientation="as-stored", outlier_mads=10.0, outside_percent=1.0),
        N_FOLDS,
    )
    cases = Cases.read(folder / "cases.json", nnunet.dataset)
    fingerprint.extract(cases, folder / "fingerprint.json", RUNTIME)
    ours = digest.read_json(folder / "fingerprint.json")
    plan = plan_dataset(Dataset.of(cases, ours), 8, NO_OVERRIDES) | {"intensities": ours["channels"]}
    theirs = nnunet.read("nnUNetPlans.json")
    for name, configuration in plan["configurations"].items():
        image, label = zip(*arrays(nnunet, cases, plan, name, spread(cases.training, n_cases)), strict=True)
        yield {
            "dataset": cases.name,
            "configuration": name,
            "fingerprint": fingerprint_difference(ours, nnunet.read("dataset_fingerprint.json")),
            "plan": plan_differences(plan, theirs) + differences(configuration, theirs["configurations"][name]),
            "image": max(image),
            "label": max(label),
        }


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
    return [*same_axes, ours["configurations"].keys() == theirs["configurations"].keys()].count(False)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Decisions for a configuration that differ."""
    network = theirs["architecture"]["arch_kwargs"]
    expected = {
        "spacing_mm": theirs["spacing"],
        "median_shape": theirs["median_image_size_in_voxels"],
        "normalisation": [NORMALISATIONS[scheme] for scheme in theirs["normalization_schemes"]],
        **{key: theirs[key] for key in ("patch_size", "batch_size", "use_mask_for_norm", "batch_dice")},
        **{key: network[key] for key in NETWORK},
    }
    return sum(ours[key] != value for key, value in expected.items())


def arrays(
    nnunet: NnUnet, cases: Cases, plan: dict[str, Any], configuration: str, ids: list[str]
) -> Iterator[tuple[float, float]]:
    """By case: mean difference of the worst channel in standard deviations, share of label voxels that differ."""
    planned = Configuration(**plan["configurations"][configuration])
    for case, (image, label) in zip(ids, nnunet.arrays(configuration, ids), strict=True):
        volume = cases.read_image(case)
        ours = preprocess(volume.array, cases.read_label(case), volume.spacing_mm, plan, planned)
        assert ours.label is not None
        assert ours.image.shape == image.shape, f"{case}: {ours.image.shape} instead of {image.shape}"
        by_channel = np.abs(ours.image - image).mean((1, 2, 3), dtype=np.float64) / image.std((1, 2, 3))
        yield float(by_channel.max()), float((ours.label != label).mean())


if __name__ == "__main__":
    main()
