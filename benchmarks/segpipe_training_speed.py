"""segpipe's side of training_speed.py.

    python segpipe_training_speed.py PROJECT CONFIGURATION [SETTING=VALUE ...]

PROJECT has a params.yaml and, under data/preprocessed, what the pipeline prepared. The settings are those of the
section `runtime`, for this process only.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import versions
from training_worker import Clock, serve

from segpipe import params
from segpipe.data import splits
from segpipe.data.cases import Cases
from segpipe.prepare import store
from segpipe.training import loop
from segpipe.training.setup import Setup


class Segpipe:
    """Fold 0 of a configuration."""

    def __init__(self, project: Path, configuration: str, changes: Sequence[str] = ()) -> None:
        settings = params.load(project / "params.yaml")
        changed = {key: yaml.safe_load(value) for key, value in (change.split("=") for change in changes)}
        runtime = params.Runtime.model_validate({**settings.runtime.model_dump(), **changed})
        settings = settings.model_copy(update={"runtime": runtime})
        folder = project / "data" / "preprocessed" / settings.dataset_name
        cases = Cases.read(folder / "cases.json", settings.dataset)
        stored = store.ensure(cases, folder / "plan.json", folder / configuration / "manifest.json", settings.runtime)
        self.setup = Setup.of(stored, splits.read(folder / "splits.json", "0"), settings)
        self.training = self.setup.training(None, lambda: None)
        self.batch = next(loop.training_batches(self.training))
        self.on_cpu = self.training.device.type == "cpu"
        self.ahead = self.training.prefetch + self.training.feed_threads + 1

    def facts(self) -> dict[str, Any]:
        precision = str(self.setup.dtype).removeprefix("torch.")
        execution = self.training.execution
        layout = ", channels last" if execution.channels_last else ""
        return {
            "parameters": self.setup.facts["parameters"],
            "batch": list(self.batch.image.shape),
            "precision": f"{precision}, compiled: {execution.compiled}{layout}",
            "threads": torch.get_num_threads(),
            "feeding": f"{self.training.feed_threads} threads from {self.training.feed.held.choice.tier}",
            "device": None if self.on_cpu else torch.cuda.get_device_name(),
            "versions": versions("segpipe", "torch", "triton", "numpy"),
        }

    def rest(self) -> None:
        """Nothing is prepared between measurements."""

    def real(self, clock: Clock) -> None:
        loop.fit(self.training, clock.tick, lambda row, seconds: None)

    def feed(self, clock: Clock) -> None:
        with contextlib.closing(loop.training_batches(self.training)) as batches:  # type: ignore[type-var]
            while True:
                clock.tick()
                next(batches)

    def compute(self, clock: Clock) -> None:
        while True:
            clock.tick()
            self.training.losses.append(loop.train_step(self.training, self.training.step, [self.batch]))


if __name__ == "__main__":
    serve(lambda: Segpipe(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
