"""nnU-Net's side of learning.py, run by an interpreter that has nnunetv2 2.8 installed.

    python nnunet_training.py prepare RAW_DATASET CONFIGURATION BATCH FIRST_FEATURES STAGES PATCH PLANS_OUT
    python nnunet_training.py train DATASET_NAME CONFIGURATION SEED EPOCHS ITERATIONS VAL_ITERATIONS RESULT.json

The environment variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results name scratch folders; RAW_DATASET lies in
the first of them. `prepare` plans and preprocesses, and makes the plan small enough for a CPU: fewer samples per batch,
features and stages. `train` trains fold 0 with it and validates whole cases, with mirroring.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def prepare(
    raw: str, configuration: str, batch: str, first_features: str, stages: str, patch: str, plans_out: str
) -> None:
    """Fingerprint, plan, a smaller plan, preprocessed cases of one configuration."""
    identifier = int(Path(raw).name[7:10])
    extract_fingerprints([identifier], num_processes=2)
    name = plan_experiments([identifier])
    path = Path(str(nnUNet_preprocessed)) / Path(raw).name / f"{name}.json"
    plans = json.loads(path.read_text())
    planned = plans["configurations"][configuration]
    planned["batch_size"], planned["patch_size"] = int(batch), json.loads(patch)
    n = int(stages)
    architecture = planned["architecture"]["arch_kwargs"]
    architecture["n_stages"] = n
    architecture["features_per_stage"] = [int(first_features) * 2**stage for stage in range(n)]
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        architecture[key] = architecture[key][:n]
    architecture["n_conv_per_stage_decoder"] = architecture["n_conv_per_stage_decoder"][: n - 1]
    path.write_text(json.dumps(plans))
    Path(plans_out).write_text(json.dumps(plans))
    preprocess([identifier], name, configurations=[configuration], num_processes=[2])


def train(
    dataset: str, configuration: str, seed: str, epochs: str, iterations: str, val_iterations: str, out: str
) -> None:
    """Train fold 0 and validate it; nnU-Net's augmentation is never seeded, its first weights are here."""
    folder = Path(str(nnUNet_preprocessed)) / dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    torch.manual_seed(int(seed))
    np.random.seed(int(seed))
    plans["continue_training"] = False
    description = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, configuration, 0, description, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = int(epochs), int(iterations)
    trainer.num_val_iterations_per_epoch = int(val_iterations)
    trainer.run_training()
    trainer.perform_actual_validation(save_probabilities=False)
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    content = {
        "dice": summary["foreground_mean"]["Dice"],
        "by_class": {label: row["Dice"] for label, row in summary["mean"].items()},
        "n_cases": len(summary["metric_per_case"]),
        "parameters": parameters,
        "torch": torch.__version__,
    }
    Path(out).write_text(json.dumps(content))


if __name__ == "__main__":
    {"prepare": prepare, "train": train}[sys.argv[1]](*sys.argv[2:])
