"""Fill `expected` in nnunet_plans.json with what nnU-Net's own planners say to each `inputs`, by preset.

    python tests/data/make_nnunet_plans.py        with a python of an environment that has nnunetv2 2.8.1

Inputs are in nnU-Net's terms: spacings and shapes after cropping are (Z, Y, X), one row per case. The memory target of
a preset is its own, times what `gpu_memory_gb` is of the plain one's 8 GB. nnunet_plans_file.json is one of nnU-Net's
files as it is.
"""

import json
import os
import subprocess
import sys
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
NETWORK = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
ARCHITECTURES = {
    "PlainConvUNet": ("plain", "n_conv_per_stage"),
    "ResidualEncoderUNet": ("resenc", "n_blocks_per_stage"),
}
PLANNERS = {"plain": ("ExperimentPlanner", 8), "ResEncM": ("nnUNetPlannerResEncM", 8),
            "ResEncL": ("nnUNetPlannerResEncL", 24), "ResEncXL": ("nnUNetPlannerResEncXL", 40)}  # fmt: skip
FILE = "large CT", "ResEncM"  # as a whole


def main() -> None:
    datasets = json.loads(TARGET.read_text())
    for name, dataset in datasets.items():
        dataset["expected"] = {}
        for preset in PLANNERS:
            with tempfile.TemporaryDirectory() as folder:
                plans = plan(Path(folder), dataset["inputs"], preset)
            if (name, preset) == FILE:
                TARGET.with_name("nnunet_plans_file.json").write_text(json.dumps(plans) + "\n")
            dataset["expected"][preset] = in_our_words(plans)
    lines = [f'"{name}": {{"inputs": {json.dumps(d["inputs"])},\n"expected": {json.dumps(d["expected"])}}}'
             for name, d in datasets.items()]  # fmt: skip
    TARGET.write_text("{\n" + ",\n\n".join(lines) + "\n}\n")


def plan(folder: Path, inputs: dict, preset: str) -> dict:
    for name in FOLDERS.values():
        (folder / name / NAME).mkdir(parents=True)
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
        "foreground_intensity_properties_per_channel": {
            str(index): {"mean": 10.5 + index, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 20.0}
            for index in range(len(inputs["channel_names"]))
        },
    }
    (folder / "raw" / NAME / "dataset.json").write_text(json.dumps(dataset))
    (folder / "preprocessed" / NAME / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    planner, gb = PLANNERS[preset]
    source = "import sys; from nnunetv2.experiment_planning.experiment_planners.{} import {} as planner; "
    source += "planner(1, gpu_memory_target_in_gb=float(sys.argv[1]), plans_name='nnUNetPlans').plan_experiment()"
    module = "default_experiment_planner" if preset == "plain" else "residual_unets.residual_encoder_unet_planners"
    folders = {variable: str(folder / name) for variable, name in FOLDERS.items()}
    command = [sys.executable, "-c", source.format(module, planner), str(inputs["gpu_memory_gb"] / 8 * gb)]
    subprocess.run(command, env={**os.environ, **folders}, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "preprocessed" / NAME / "nnUNetPlans.json").read_text())


def in_our_words(plans: dict) -> dict:
    found = plans["configurations"]
    wanted = {name: {**found.get(value.get("inherits_from"), {}), **value} for name, value in found.items()}
    return {
        "transpose_forward": plans["transpose_forward"],
        "transpose_backward": plans["transpose_backward"],
        "configurations": {name: configuration(value) for name, value in wanted.items()},
    }


def configuration(value: dict) -> dict:
    network = value["architecture"]["arch_kwargs"]
    architecture, depth = ARCHITECTURES[value["architecture"]["network_class_name"].split(".")[-1]]
    return {
        "architecture": architecture,
        "spacing_mm": value["spacing"],
        "patch_size": value["patch_size"],
        "batch_size": value["batch_size"],
        "median_shape": value["median_image_size_in_voxels"],
        "n_conv_per_stage": network[depth],
        **{key: network[key] for key in NETWORK},
        "normalisation": [NORMALISATIONS[scheme] for scheme in value["normalization_schemes"]],
        "use_mask_for_norm": value["use_mask_for_norm"],
        "batch_dice": value["batch_dice"],
        "previous_stage": value.get("previous_stage"),
    }


if __name__ == "__main__":
    main()
