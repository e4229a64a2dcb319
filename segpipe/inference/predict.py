"""Predict a case with the trained networks of one configuration: the path of validation and of prediction."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import getLogger
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segpipe import device, digest
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.inference.export import LabelMap, Sink, export
from segpipe.inference.tiles import Tiles
from segpipe.inference.window import Seen
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Prepared
from segpipe.training import checkpoint
from segpipe.training.network import create, n_inputs

log = getLogger(__name__)


TRAINED = "trained"
FEATURE_MAPS = 6  # of the first stage, float32, that are there together in a forward pass
LOGITS = 3  # copies of a tile's, float32
TENSORS = ("network", "averaged", "resume")  # what is large in a checkpoint


class Way(Protocol):
    """How cases are predicted; `validate` and `train.full_validation` of params.yaml both say it."""

    @property
    def step_size(self) -> float:
        """Of the sliding window, as a share of the patch."""

    @property
    def mirroring(self) -> bool | list[int]:
        """Whether mirrored versions are averaged; or along which axes: 0, 1, 2 for Z, Y, X of the plan."""


@dataclass(frozen=True)
class Model:
    """The networks of one configuration, one per fold, ready on the device.

    mirrored : axes mirrored while training, as train.mirror_axes has them; None for all
    content : the first checkpoint's plain data; its plan and labels are those of all
    files : digest of each checkpoint file, of the bytes that its network was read from
    weights : raw or averaged, which of those in the files
    """

    networks: Sequence[nn.Module]
    labels: Labels
    planned: Configuration
    mirrored: list[int] | None
    device: torch.device
    dtype: torch.dtype
    content: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    weights: str = "raw"

    @property
    def may_tune(self) -> bool:
        """Whether cuDNN may choose by time: not for a training that wants the same bits twice.

        One that is not from a file is in training, which has chosen.
        """
        return bool(self.content) and not self.content["settings"].get("deterministic", False)

    def mirror_axes(self, wanted: bool | list[int]) -> tuple[int, ...]:
        """The wanted axes that were mirrored while training, counted in the patch itself."""
        chosen = range(3) if wanted is True else wanted or ()
        trained = range(3) if self.mirrored is None else self.mirrored
        flat = 3 - len(self.planned.patch_size)
        return tuple(axis - flat for axis in range(flat, 3) if axis in chosen and axis in trained)


def load(paths: Sequence[Path], on: torch.device, weights: str, precision: str = TRAINED) -> Model:
    """Load the fold members of one configuration.

    weights : raw, or averaged for the running mean that train.ema keeps
    precision : as validate.precision has it
    Raises SegpipeError where a file is absent or has no such weights, and where the members were trained with
    different settings.
    """
    read = [_read(path) for path in paths]
    contents = [content for _, content in read]
    _require_one_training(paths, contents)
    first = contents[0]
    planned = Configuration(**first["plan"]["configurations"][first["configuration"]])
    networks = [_network(path, content, planned, weights) for path, content in zip(paths, contents, strict=True)]
    return Model(
        [network.to(on).eval() for network in networks],
        Labels.from_json(first["labels"]),
        planned,
        first["mirror_axes"],
        on,
        device.precision(_precision(first["settings"]["precision"], precision, on), on),
        {key: value for key, value in first.items() if key not in TENSORS},
        [identity for identity, _ in read],
        weights,
    )


def _precision(trained_with: str, wanted: str, on: torch.device) -> str:
    """What was trained with the 11 bits of fp16 is not predicted with the 8 of bf16, unless that is asked for."""
    if wanted != TRAINED:
        return wanted
    return "off" if trained_with == "fp16" and on.type != "cuda" else trained_with


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


def seen(model: Model, prepared: Prepared, way: Way, apart: bool = False) -> Seen:
    """The logits of a preprocessed case: the mean of all folds, or those of each fold one behind the other."""
    patch, axes = model.planned.patch_size, model.mirror_axes(way.mirroring)
    flat = 3 - len(patch)
    z, y, x = (*((1,) * flat), *patch)
    n_heads = len(model.labels.heads)
    # a quarter of a GPU's memory: half is for the logits of the case
    per_tile = forward_bytes(model, apart)
    most = device.usable_bytes(model.device) // 4 // per_tile if model.device.type == "cuda" else None
    tiles = Tiles(model.networks, n_heads, (z, y, x), flat > 0, axes, way.step_size, model.dtype, apart, most)
    previous = None if prepared.previous is None else torch.from_numpy(prepared.previous[None]).to(model.device)
    return Seen(tiles, torch.from_numpy(prepared.image).to(model.device), previous, model.labels.n_values)


def forward_bytes(model: Model, apart: bool = False) -> int:
    """What one tile takes on its way through the networks at its widest, an estimate; apart : as `seen` has it."""
    logits = (LOGITS + len(model.networks) * apart) * len(model.labels.heads)
    values = logits + FEATURE_MAPS * model.planned.features_per_stage[0]
    return 4 * prod(model.planned.patch_size) * values


def segment(model: Model, prepared: Prepared, way: Way) -> NDArray[np.int16]:
    """The label map of a preprocessed case on the grid of its file, (Z, Y, X)."""
    label_map = LabelMap(prepared.grid, model.labels)
    run(model, prepared, way, [label_map])
    return label_map.array


def run(model: Model, prepared: Prepared, way: Way, sinks: Sequence[Sink], apart: bool = False) -> None:
    """Predict a preprocessed case for some sinks; apart : as `seen` has it."""
    device.trim_heap()
    with device.tuned(model.may_tune):
        source = seen(model, prepared, way, apart)
        export(source, prepared.grid, sinks, model.device, device.buffer_bytes(model.device))
    device.trim_heap()


def tidy(state: Path, keep: str | None = None) -> None:
    """Remove finished cases that are no longer waited for, also those that other weights or settings left behind.

    keep : name of the folder that stays
    """
    for folder in state.glob("*/"):
        if folder.name != keep:
            shutil.rmtree(folder, ignore_errors=True)
