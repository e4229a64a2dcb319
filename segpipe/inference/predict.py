"""Predict a case with the trained networks of one configuration: the path of validation and of prediction."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segpipe import device, digest
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.inference import export
from segpipe.inference.window import predict_logits
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Prepared
from segpipe.training import checkpoint
from segpipe.training.network import create, n_inputs

log = getLogger(__name__)


TENSORS = ("network", "averaged", "resume")  # what is large in a checkpoint


class Way(Protocol):
    """How cases are predicted; `validate` and `train.full_validation` of params.yaml both say it."""

    @property
    def step_size(self) -> float:
        """Of the sliding window, as a share of the patch."""

    @property
    def mirroring(self) -> bool:
        """Whether mirrored versions are averaged."""


@dataclass(frozen=True)
class Model:
    """The networks of one configuration, one per fold, ready on the device.

    mirrored : axes mirrored while training, as train.mirror_axes has them; None for all
    content : the first checkpoint's plain data; its plan and labels are those of all
    files : digest of each checkpoint file, of the bytes that its network was read from
    """

    networks: Sequence[nn.Module]
    labels: Labels
    planned: Configuration
    mirrored: list[int] | None
    device: torch.device
    dtype: torch.dtype
    content: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def mirror_axes(self, wanted: bool) -> list[int]:
        """The axes mirrored while training, counted in the patch itself, where mirroring is wanted."""
        axes, n_axes = self.mirrored, len(self.planned.patch_size)
        trained = [axis for axis in range(n_axes) if axes is None or axis + 3 - n_axes in axes]
        return trained if wanted else []


def load(paths: Sequence[Path], on: torch.device, weights: str) -> Model:
    """Load the fold members of one configuration.

    weights : raw, or averaged for the running mean that train.ema keeps
    Raises SegpipeError where a file is absent or has no such weights, and where the members were trained with
    different settings.
    """
    read = [_read(path) for path in paths]
    contents = [content for _, content in read]
    _require_one_training(paths, contents)
    first = contents[0]
    planned = Configuration(**first["plan"]["configurations"][first["configuration"]])
    networks = [_network(path, content, planned, weights) for path, content in zip(paths, contents, strict=True)]
    trained_with = first["settings"]["precision"]
    # what was trained with 11 bits is not predicted with the 8 of bf16
    usable = "off" if trained_with == "fp16" and on.type != "cuda" else trained_with
    return Model(
        [network.to(on).eval() for network in networks],
        Labels.from_json(first["labels"]),
        planned,
        first["mirror_axes"],
        on,
        device.precision(usable, on),
        {key: value for key, value in first.items() if key not in TENSORS},
        [identity for identity, _ in read],
    )


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Digest and content of a checkpoint file, of the same version: a training replaces its latest and best."""
    if not path.is_file():
        raise SegpipeError(
            problem(
                "no such checkpoint",
                where=path,
                found="no file",
                expected="a checkpoint of segpipe (.pth)",
                cure="correct the path, or train first",
            )
        )
    while True:
        identity, content = digest.of_file(path), checkpoint.load(path)
        if digest.of_file(path) == identity:
            checkpoint.require_model(path, content)
            return identity, content


def _require_one_training(paths: Sequence[Path], contents: list[dict[str, Any]]) -> None:
    found = {content["settings_digest"] for content in contents}
    if len(found) > 1:
        raise SegpipeError(
            problem(
                "fold members were trained with different settings",
                where=", ".join(map(str, paths)),
                found=f"settings digests {', '.join(sorted(found))}",
                expected="one",
                cure="train all folds with the present params.yaml (snakemake or dvc repro does)",
            )
        )


def _network(path: Path, content: dict[str, Any], planned: Configuration, weights: str) -> nn.Module:
    state = content["averaged" if weights == "averaged" else "network"]
    if state is None:
        raise SegpipeError(
            problem(
                "no averaged weights",
                where=path,
                found="a training with train.ema.decay: null, which keeps none",
                expected="averaged weights, as validate.weights in params.yaml asks for",
                cure="set validate.weights: raw, or train with a train.ema.decay",
            )
        )
    log.info("%s: %s weights of epoch %s", path, weights, content["epoch"])
    labels, n_channels = Labels.from_json(content["labels"]), len(content["channel_names"])
    network = create(n_inputs(n_channels, labels, planned), len(labels.heads), planned, content["settings"]["network"])
    network.load_state_dict(state)
    return network


def probabilities(model: Model, prepared: Prepared, way: Way) -> NDArray[np.float32]:
    """Probabilities of a preprocessed case on the grid of its file, (heads, Z, Y, X): mean of logits over the folds."""
    logits = predict_logits(
        model.networks,
        torch.from_numpy(prepared.network_input(model.labels)).to(model.device),
        model.planned.patch_size,
        model.mirror_axes(way.mirroring),
        way.step_size,
        model.dtype,
    )
    return export.to_file_grid(logits.cpu().numpy(), prepared.grid, model.labels)


def tidy(state: Path) -> None:
    """Remove finished cases that are no longer waited for, also those that other weights or settings left behind."""
    for folder in state.glob("*/"):
        shutil.rmtree(folder, ignore_errors=True)
