"""Fill `expected` in nnunet_plans.json with what nnU-Net's own planner says to each `inputs`.

    python tests/data/make_nnunet_plans.py        with a python of an environment that has nnunetv2 2.8.1

Inputs are in nnU-Net's terms: spacings and shapes after cropping are (Z, Y, X), one row per case.
"""

import json
import os
import tempfile
from pathlib import Path

TARGET = Path(__file__).with_name("nnunet_plans.json")
NAME = "Dataset001_Fixture"
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
NORMALISATIONS = {
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
NETWORK = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")


def main() -> None:
    datasets = json.loads(TARGET.read_text())
    for dataset in datasets.values():
        with tempfile.TemporaryDirectory() as folder:
            dataset["expected"] = plan(Path(folder), dataset["inputs"])
    lines = [f'"{name}": {{"inputs": {json.dumps(d["inputs"])},\n"expected": {json.dumps(d["expected"])}}}'
             for name, d in datasets.items()]  # fmt: skip
    TARGET.write_text("{\n" + ",\n\n".join(lines) + "\n}\n")


def plan(folder: Path, inputs: dict) -> dict:
    for variable, name in FOLDERS.items():
        (folder / name / NAME).mkdir(parents=True)
        os.environ[variable] = str(folder / name)
    dataset = {
        "channel_names": dict(enumerate(inputs["channel_names"])),
        "labels": {f"class {value}": value for value in range(inputs["n_labels"])},
        "numTraining": len(inputs["shapes"]),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {"case": {"images": ["image.nii.gz"], "label": "label.nii.gz"}},
    }
    fingerprint = {
        "spacings": inputs["spacings"],
        "shapes_after_crop": inputs["shapes"],
        "median_relative_size_after_cropping": inputs["relative_size"],
        "foreground_intensity_properties_per_channel": {},
    }
    (folder / "raw" / NAME / "dataset.json").write_text(json.dumps(dataset))
    (folder / "preprocessed" / NAME / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    ExperimentPlanner(1, gpu_memory_target_in_gb=inputs["gpu_memory_gb"]).plan_experiment()
    return in_our_words(json.loads((folder / "preprocessed" / NAME / "nnUNetPlans.json").read_text()))


def in_our_words(plans: dict) -> dict:
    wanted = {name: value for name, value in plans["configurations"].items() if "inherits_from" not in value}
    return {
        "transpose_forward": plans["transpose_forward"],
        "transpose_backward": plans["transpose_backward"],
        "configurations": {name: configuration(value) for name, value in wanted.items()},
    }


def configuration(value: dict) -> dict:
    return {
        "spacing_mm": value["spacing"],
        "patch_size": value["patch_size"],
        "batch_size": value["batch_size"],
        "median_shape": value["median_image_size_in_voxels"],
        **{key: value["architecture"]["arch_kwargs"][key] for key in NETWORK},
        "normalisation": [NORMALISATIONS[scheme] for scheme in value["normalization_schemes"]],
        "use_mask_for_norm": value["use_mask_for_norm"],
        "batch_dice": value["batch_dice"],
    }


if __name__ == "__main__":
    main()
