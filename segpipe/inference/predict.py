"""Predict cases with trained models: the one path of the validation and of the prediction of imagesTs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe import device, digest
from segpipe.data import image
from segpipe.data.dataset import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.inference import export
from segpipe.inference.window import predict_logits
from segpipe.params import Params, Validate, section
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Prepared, preprocess
from segpipe.training import checkpoint
from segpipe.training.network import PlainConvUNet

log = getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The networks of one configuration, one per fold, ready on the device.

    content : the first checkpoint's; its plan and labels are those of all
    """

    networks: list[PlainConvUNet]
    content: dict[str, Any]
    planned: Configuration
    device: torch.device
    dtype: torch.dtype

    def mirror_axes(self, wanted: bool) -> list[int]:
        """The axes mirrored while training, counted in the patch itself, where mirroring is wanted."""
        axes, n_axes = self.content["mirror_axes"], len(self.planned.patch_size)
        trained = [axis for axis in range(n_axes) if axes is None or axis + 3 - n_axes in axes]
        return trained if wanted else []


def load(paths: Sequence[Path], on: torch.device) -> Model:
    """Load the fold members of one configuration.

    Raises SegpipeError where they were trained with different settings.
    """
    contents = [checkpoint.load(path) for path in paths]
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
    first = contents[0]
    planned = Configuration(**first["plan"]["configurations"][first["configuration"]])
    networks = []
    for content in contents:
        network = PlainConvUNet(len(content["channel_names"]), len(content["labels"]), planned)
        network.load_state_dict(content.pop("network"))
        networks.append(network.to(on).eval())
    trained_with = first["settings"]["precision"]
    usable = "auto" if trained_with == "fp16" and on.type != "cuda" else trained_with
    return Model(networks, first, planned, on, device.precision(usable, on))


def probabilities(model: Model, prepared: Prepared, settings: Validate) -> NDArray[np.float32]:
    """Softmax of a preprocessed case on the grid of its file, (classes, Z, Y, X): mean of logits over the folds."""
    logits = predict_logits(
        model.networks,
        torch.from_numpy(prepared.image).to(model.device),
        model.planned.patch_size,
        model.mirror_axes(settings.mirroring),
        settings.step_size,
        model.dtype,
    )
    return export.to_file_grid(logits.cpu().numpy(), prepared.grid)


def predict_dataset(cases: Cases, paths: list[Path], out: Path, params: Params) -> None:
    """Predict imagesTs into `out`: mean of logits over folds, then of softmax over configurations.

    Finished cases are kept in an undeclared folder, so a killed prediction goes on where it stopped.
    """
    settings = section(params, "validate")
    members = [digest.of_file(path) for path in paths]
    identity = digest.of([members, settings["step_size"], settings["mirroring"], digest.of_code("predict")])
    state = out.parent / "state" / "predict"
    with digest.exclusive(state / ".lock", "predicting imagesTs") as report:
        on = device.start(params.runtime)
        models = [load(group, on) for group in _by_configuration(paths).values()]
        for index, case in enumerate(cases.test):
            target = state / identity / f"{case}{cases.file_ending}"
            wanted = digest.of([identity, cases.identity(case)])
            if not _is_done(target, wanted):
                _predict_case(cases, case, models, target, params.validate_)
                digest.write_json(_record(target), wanted)
            report(f"predicting imagesTs, {index + 1} of {len(cases.test)} cases done")
        with digest.new_folder(out) as folder:
            for case in cases.test:
                shutil.copy2(state / identity / f"{case}{cases.file_ending}", folder)
        shutil.rmtree(state / identity, ignore_errors=True)
    log.info("%d cases predicted by %d models", len(cases.test), len(paths))


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _is_done(target: Path, wanted: str) -> bool:
    return target.exists() and _record(target).exists() and digest.read_json(_record(target)) == wanted


def _by_configuration(paths: list[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(checkpoint.load(path)["configuration"], []).append(path)
    return groups


def _predict_case(cases: Cases, case: str, models: list[Model], target: Path, settings: Validate) -> None:
    volume = cases.read_image(case)
    array = volume.array.astype(np.float32, copy=False)
    total: NDArray[np.float32] | None = None
    for model in models:
        prepared = preprocess(array, None, volume.spacing_mm, model.content["plan"], model.planned)
        one = probabilities(model, prepared, settings)
        total = one if total is None else total + one
    assert total is not None
    image.write_label_like(target, export.segmentation(total), cases.image_path(case))
