"""nnU-Net's side of training_speed.py, run by an interpreter that has nnunetv2 2.8 installed.

    python nnunet_training_speed.py prepare PREPROCESSED_DATASET ...
    python nnunet_training_speed.py serve PREPROCESSED_DATASET CONFIGURATION DEVICE THREADS

`prepare` writes cases that segpipe exported (.npz) in the compressed format of nnU-Net's own preprocessing. `serve`
trains fold 0. The environment variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results name scratch folders.
"""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from measuring import versions
from training_worker import Clock, serve

try:
    import SimpleITK  # noqa: F401
except ImportError:  # nnU-Net reads images with it; none are read here, and it is larger than all that it needs besides
    sys.modules["SimpleITK"] = ModuleType("SimpleITK")

from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

REST_S, BUSY_SHARE = 0.5, 0.3  # a background process that computes less of that time only waits for room


def prepare(dataset: Path) -> None:
    """.npz to .b2nd, with the chunks that nnU-Net's preprocessor chooses for the patch."""
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    for planned in plans["configurations"].values():
        patch = tuple(planned["patch_size"])
        for path in sorted((dataset / planned["data_identifier"]).glob("*.npz")):
            with np.load(path) as arrays:
                data, seg = arrays["data"], arrays["seg"]
            blocks, chunks = comp_blosc2_params(data.shape, patch, data.itemsize)
            blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch, seg.itemsize)
            target, properties = str(path.with_suffix("")), load_pickle(str(path.with_suffix(".pkl")))
            nnUNetDatasetBlosc2.save_case(data, seg, properties, target, chunks, blocks, chunks_seg, blocks_seg)
            path.unlink()


class NnUNet:
    """A trainer as nnUNetv2_train makes it."""

    def __init__(self, dataset: Path, configuration: str, device: str, threads: int) -> None:
        self.on_cpu = device == "cpu"
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
        plans = json.loads((dataset / "nnUNetPlans.json").read_text())
        plans["continue_training"] = False
        description = json.loads((dataset / "dataset.json").read_text())
        self.trainer = nnUNetTrainer(plans, configuration, 0, description, torch.device(device))
        self.trainer.initialize()
        self.loader, self.validation = self.trainer.get_dataloaders()
        self.trainer.network.train()
        self.batch = next(self.loader)
        self.ahead = 2 * self.loader.num_cached + self.loader.num_processes + 2

    def facts(self) -> dict[str, Any]:
        compiled = hasattr(self.trainer.network, "_orig_mod")
        return {
            "parameters": sum(parameter.numel() for parameter in self.trainer.network.parameters()),
            "batch": list(self.batch["data"].shape),
            "precision": ("float32" if self.on_cpu else "float16") + (", compiled" if compiled else ""),
            "threads": torch.get_num_threads(),
            "feeding": f"{self.loader.num_processes} processes",
            "device": None if self.on_cpu else torch.cuda.get_device_name(),
            "versions": versions("nnunetv2", "batchgeneratorsv2", "torch", "triton", "numpy"),
        }

    def rest(self) -> None:
        """Wait until the loaders' processes have filled their queues."""
        before = _cpu_seconds()
        while True:
            time.sleep(REST_S)
            now = _cpu_seconds()
            if all(now[pid] - before.get(pid, 0.0) < BUSY_SHARE * REST_S for pid in now):
                return
            before = now

    def real(self, clock: Clock) -> None:
        while True:
            clock.tick()
            self.trainer.train_step(next(self.loader))

    def feed(self, clock: Clock) -> None:
        while True:
            clock.tick()
            next(self.loader)

    def compute(self, clock: Clock) -> None:
        on = self.trainer.device
        self.batch = {
            **self.batch,
            "data": self.batch["data"].to(on),
            "target": [target.to(on) for target in self.batch["target"]],
        }
        while True:
            clock.tick()
            self.trainer.train_step(self.batch)


def _cpu_seconds() -> dict[int, float]:
    """Of each background process, so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for child in multiprocessing.active_children():
        assert child.pid is not None
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        found[child.pid] = (int(fields[11]) + int(fields[12])) / ticks  # of the user and of the system
    return found


if __name__ == "__main__":
    verb, *given = sys.argv[1:]
    if verb == "prepare":
        for folder in given:
            prepare(Path(folder))
    else:
        serve(lambda: NnUNet(Path(given[0]), given[1], given[2], int(given[3])))
