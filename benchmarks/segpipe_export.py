"""segpipe's side of export.py: one export.

python segpipe_export.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from export_worker import measured

from segpipe import device
from segpipe.data import image, labels
from segpipe.inference import export
from segpipe.inference.regrid import Whole
from segpipe.prepare.preprocess import Grid

folder = Path(sys.argv[1])
case = json.loads((folder / "case.json").read_text())
on = device.use("cpu")
logits = torch.from_numpy(np.load(folder / "logits.npy").astype(np.float32))
classes = labels.parse(case["labels"], None, folder)
shape = tuple(case["shape"])
whole = tuple((0, edge) for edge in shape)
grid = Grid(shape, whole, tuple(case["spacing_mm"]), tuple(case["network_mm"]), (0, 1, 2))


def run() -> None:
    """Logits in memory to a segmentation on disk."""
    label_map = export.LabelMap(grid, classes)
    export.export(Whole(logits), grid, [label_map], on, device.buffer_bytes(on))
    image.write_label_like(folder / "segpipe.nii.gz", label_map.array, folder / "image.nii.gz")


measured(run)
