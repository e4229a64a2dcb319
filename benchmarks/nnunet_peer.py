"""nnU-Net's side of interop_nnunet.py, run by an interpreter that has nnunetv2 2.8 installed.

    python nnunet_peer.py make FOLDER KIND     # a tiny dataset and models, planned by nnU-Net
    python nnunet_peer.py run COMMANDS.json    # predictions and nnU-Net's own commands, see `commands`

The environment variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results must name folders inside FOLDER.
"""

import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK
import torch

# nnU-Net's search for a trainer imports torchvision (through timm), whose builds for CUDA fail beside a torch for the
# CPU: the operators that they register are missing. Nothing here calls one.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from nnunetv2.ensembling.ensemble import entry_point_ensemble_folders
from nnunetv2.evaluation.evaluate_predictions import evaluate_folder_entry_point
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point_modelfolder
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

DATASET = "Dataset099_Tiny"
PLAIN = {"background": 0, "shell": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
LABELS = {
    "plain": (PLAIN, None),
    "resenc": (PLAIN, None),
    "ignore": ({**PLAIN, "ignore": 3}, None),
    "regions": (REGIONS, [1, 2]),
    "regions_ignore": ({**REGIONS, "ignore": 3}, [1, 2]),
}
PLANNERS = {"resenc": "nnUNetPlannerResEncM"}
CONFIGURATIONS = {
    "plain": ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"),
    "regions": ("3d_lowres", "3d_cascade_fullres"),
    "ignore": ("3d_fullres",),
    "regions_ignore": ("2d",),
    "resenc": ("2d", "3d_fullres"),
}
FOLDS = (0, 1)
TRAINING_CASES, TEST_CASES = 4, 1
STEPS = 150
GPU_MEMORY_GB = 0.006  # so small that these images need a low resolution and a cascade
BASE_FEATURES, MOST_FEATURES, MOST_BLOCKS = 4, 10, 2


def make(folder: Path, kind: str) -> None:
    """Raw dataset, plans and models of some configurations, fitted for a moment."""
    labels, order = LABELS[kind]
    raw = folder / "raw" / DATASET
    rng = np.random.default_rng(7)
    for index in range(TRAINING_CASES + TEST_CASES):
        _write_case(raw, index, rng)
    content = {
        "channel_names": {"0": "CT", "1": "MRI"},
        "labels": labels,
        "numTraining": TRAINING_CASES,
        "file_ending": ".nii.gz",
        **({"regions_class_order": order} if order else {}),
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    planner = PLANNERS.get(kind, "ExperimentPlanner")
    plans = _plan(planner)
    for configuration in plans["configurations"]:
        for fold in FOLDS:
            if configuration in CONFIGURATIONS[kind]:
                _save_model(plans, content, configuration, fold)


def _write_case(raw: Path, index: int, rng: np.random.Generator) -> None:
    """Two nested ellipsoids in noise, two channels, an oblique grid of 2.5 mm slices, zeros around the object."""
    z, y, x = shape = (20 + index % 3, 46 - 2 * (index % 2), 42)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    centre = rng.uniform(-0.15, 0.15, (3, 1, 1, 1))
    radius = np.sqrt((((grid - centre) / [[[[0.6]]], [[[0.7]]], [[[0.5]]]]) ** 2).sum(0))
    label = (radius < 1).astype(np.uint8) + (radius < 0.55)
    inside = (np.abs(grid[1]) < 0.9) & (np.abs(grid[2]) < 0.85)
    angle = 0.2 + 0.05 * index
    direction = [np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1]

    def write(array: np.ndarray, path: Path) -> None:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((1.1, 1.0, 2.5))
        image.SetOrigin((-20.0, 11.0 + index, 3.0))
        image.SetDirection(direction)
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(path), True)

    split = "Tr" if index < TRAINING_CASES else "Ts"
    for channel, contrast in enumerate((120.0, -40.0)):
        noise = rng.normal(0, 25, (z, y, x))
        image = np.where(inside, 100 + contrast * label + 30 * grid[1] + noise, 0).round().astype(np.int16)
        write(image, raw / f"images{split}/case_{index:03d}_{channel:04d}.nii.gz")
    write(label, raw / f"labels{split}/case_{index:03d}.nii.gz")


def _plan(planner: str) -> dict:
    """nnU-Net's plans of the dataset, with fewer channels and blocks."""
    extract_fingerprints([99], num_processes=1)
    name = plan_experiments([99], planner, gpu_memory_target_in_gb=GPU_MEMORY_GB)
    path = Path(str(nnUNet_preprocessed)) / DATASET / f"{name}.json"
    plans = json.loads(path.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            arguments = configuration["architecture"]["arch_kwargs"]
            stages = range(arguments["n_stages"])
            arguments["features_per_stage"] = [min(BASE_FEATURES * 2**stage, MOST_FEATURES) for stage in stages]
            if "n_blocks_per_stage" in arguments:
                arguments["n_blocks_per_stage"] = [min(n, MOST_BLOCKS) for n in arguments["n_blocks_per_stage"]]
    path.write_text(json.dumps(plans))
    return plans


def _save_model(plans: dict, dataset: dict, configuration: str, fold: int) -> None:
    """What nnUNetv2_train leaves behind, with a training of our own."""
    torch.manual_seed(100 * fold + len(configuration))
    copied = json.loads(json.dumps({**plans, "continue_training": False}))
    trainer = nnUNetTrainer(copied, configuration, fold, dataset, torch.device("cpu"))
    n_inputs = determine_num_input_channels(trainer.plans_manager, trainer.configuration_manager, dataset)
    n_heads = trainer.label_manager.num_segmentation_heads
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, n_inputs, n_heads, True
    )
    _fit(trainer, n_heads)
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    trainer.optimizer, _ = trainer.configure_optimizers()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    folder = Path(trainer.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(plans, sort_keys=False))
    (folder / "dataset.json").write_text(json.dumps(dataset, sort_keys=False))


def _fit(trainer: nnUNetTrainer, n_heads: int) -> None:
    """Some steps towards the labels, on random patches, without nnU-Net's augmentation: predictions that are no noise.

    A cascade gets the labels themselves as its first stage's segmentation.
    """
    plans, planned, labels = trainer.plans_manager, trainer.configuration_manager, trainer.label_manager
    raw, rng = Path(str(nnUNet_raw)) / DATASET, np.random.default_rng(0)
    cases = []
    for label in sorted((raw / "labelsTr").iterdir()):
        images = [str(raw / f"imagesTr/{label.name[:-7]}_{channel:04d}.nii.gz") for channel in range(2)]
        image, seg, _ = planned.preprocessor_class(verbose=False).run_case(
            images, str(label), plans, planned, trainer.dataset_json
        )
        before = [seg[0] == value for value in labels.foreground_labels] if planned.previous_stage_name else []
        known = labels.all_regions or labels.all_labels
        masks = [np.isin(np.maximum(seg[0], 0), value) for value in known]
        cases.append(np.stack([*image, *before, *masks]).astype(np.float32))
    patch = planned.patch_size
    optimizer = torch.optim.Adam(trainer.network.parameters(), 1e-2)
    for _ in range(STEPS):
        samples = torch.stack([_patch(cases[rng.integers(len(cases))], patch, rng) for _ in range(4)])
        given, target = samples[:, :-n_heads], samples[:, -n_heads:]
        logits = trainer.network(given)[0]
        of_target = torch.nn.functional.binary_cross_entropy_with_logits
        loss = of_target(logits, target) if labels.has_regions else torch.nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{trainer.configuration_name}: loss {float(loss):.4f}", flush=True)


def _patch(case: np.ndarray, patch: list[int], rng: np.random.Generator) -> torch.Tensor:
    """A random part, padded with zeros where the case is smaller; a slice for two axes."""
    if len(patch) == 2:
        case = case[:, rng.integers(case.shape[1])]
    missing = [max(edge - n, 0) for edge, n in zip(patch, case.shape[1:], strict=True)]
    case = np.pad(case, [(0, 0), *((m // 2, m - m // 2) for m in missing)])
    starts = [rng.integers(n - edge + 1) for edge, n in zip(patch, case.shape[1:], strict=True)]
    return torch.from_numpy(case[:, *(slice(a, a + edge) for a, edge in zip(starts, patch, strict=True))].copy())


def predict(
    model: str, images: str, out: str, folds: list[str], mirroring: bool, before: str | None, float32: bool
) -> None:
    """What nnUNetv2_predict_from_modelfolder does, without its worker processes.

    before : folder with what the first stage of a cascade segmented
    float32 : sum the tiles in float32. nnU-Net has float16, which rounds logits to whole numbers where the weights of
        the only tile are smallest: in the corners of the volume
    """
    predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(model, folds, "checkpoint_final.pth")
    Path(out).mkdir(parents=True)
    torch.half = torch.float32 if float32 else torch.float16
    *others, _, device = compute_gaussian.__wrapped__.__defaults__
    compute_gaussian.__wrapped__.__defaults__ = (*others, torch.half, device)
    compute_gaussian.cache_clear()
    predictor.predict_from_files_sequential(
        images, out, save_probabilities=True, folder_with_segs_from_prev_stage=before
    )


def commands(path: Path) -> None:
    """Several in one process: [["predict", {...}], ["command line", "nnUNetv2_ensemble", arguments ...], ...]."""
    for name, *arguments in json.loads(path.read_text()):
        if name == "predict":
            predict(**arguments[0])
        else:
            sys.argv = arguments
            COMMANDS[arguments[0]]()


COMMANDS = {
    "nnUNetv2_predict_from_modelfolder": predict_entry_point_modelfolder,
    "nnUNetv2_ensemble": entry_point_ensemble_folders,
    "nnUNetv2_evaluate_folder": evaluate_folder_entry_point,
}

if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3])
    else:
        commands(Path(sys.argv[2]))
