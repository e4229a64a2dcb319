"""nnU-Net's side of export.py: one export, run by an interpreter that has nnunetv2 2.8 installed.

python nnunet_export.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from export_worker import measured
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

folder = Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
logits = torch.from_numpy(np.load(folder / "logits.npy"))
dataset = {"labels": case["labels"], "file_ending": ".nii.gz"}
# what a plan of nnU-Net says of the way back; linear, as its planner always has it
plans = PlansManager(
    {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {
            "3d_fullres": {
                "spacing": case["network_mm"],
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {
                    "is_seg": False,
                    "order": 1,
                    "order_z": 0,
                    "force_separate_z": None,
                },
                "architecture": {},
            }
        },
    }
)
_, properties = SimpleITKIO().read_images([str(folder / "image.nii.gz")])
properties |= {
    "shape_before_cropping": tuple(case["shape"]),
    "shape_after_cropping_and_before_resampling": tuple(case["shape"]),
    "bbox_used_for_cropping": [[0, edge] for edge in case["shape"]],
}


def run() -> None:
    """Logits in memory to a segmentation on disk."""
    configuration = plans.get_configuration("3d_fullres")
    export_prediction_from_logits(logits, properties, configuration, plans, dataset, str(folder / "nnunetv2"))


measured(run)
