"""A MODEL of segpipe as folders that nnUNetv2_predict_from_modelfolder runs."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpipe import digest
from segpipe.data.labels import IGNORE, Labels
from segpipe.errors import SegpipeError, problem
from segpipe.inference import models
from segpipe.prepare.nnunet_plans import PLANS_NAME, to_nnunet
from segpipe.prepare.plan import Configuration
from segpipe.training import checkpoint

log = getLogger(__name__)

TRAINER = "nnUNetTrainer"
# nnU-Net's class that reads a format; it has none for .jpg, and reads .png with the same one
PICTURES = (".png", ".bmp", ".jpg", ".jpeg")
TIFF = (".tif", ".tiff")
# A convolution block of nnU-Net holds its parts under their names and, in order, once more in a sequence.
TWICE = {"conv": "all_modules.0", "norm": "all_modules.1"}


def export_model(
    model: Path,
    out: Path,
    kind: str,
    weights: str,
    configurations: Sequence[str] | None = None,
    folds: Sequence[str] | None = None,
) -> None:
    """Write nnUNetTrainer__nnUNetPlans__<configuration>/ for each configuration, those of first stages included.

    kind : final or best; weights : raw or averaged; configurations, folds : as `models.find` takes them
    Raises SegpipeError where `out` exists, and for a network of the user's own.
    """
    if out.exists():
        raise _error("the folder exists", "--out", out, "a new one", "remove it, or name another")
    found = models.find(model, kind, configurations, folds)
    with digest.new_folder(out) as folder:
        for name, paths in found.items():
            _export_configuration(found, name, folder / folder_name(name), kind, weights)
            log.info("%s: folds %s, in %s", name, ", ".join(paths), out / folder_name(name))


def folder_name(configuration: str) -> str:
    """How nnU-Net calls the folder of a configuration's model."""
    return f"{TRAINER}__{PLANS_NAME}__{configuration}"


def _export_configuration(found: models.Checkpoints, name: str, out: Path, kind: str, weights: str) -> None:
    first = checkpoint.peek(next(iter(found[name].values())))
    dataset, plans = dataset_json(first), plans_json(found)
    for fold, path in found[name].items():
        content = checkpoint.load(path)
        _require_exportable(content, path, weights)
        written = {
            "network_weights": _duplicated(content["averaged" if weights == "averaged" else "network"]),
            "current_epoch": content["epoch"],
            "init_args": {"plans": plans, "configuration": name, "fold": fold, "dataset_json": dataset},
            "trainer_name": TRAINER,
            "inference_allowed_mirroring_axes": _mirroring(content),
        }
        target = out / f"fold_{fold}" / f"checkpoint_{kind}.pth"
        with digest.new_file(target) as temporary:
            torch.save(written, temporary)
    digest.write_json(out / "plans.json", plans)
    digest.write_json(out / "dataset.json", dataset)


def _require_exportable(content: Mapping[str, Any], path: Path, weights: str) -> None:
    custom = content["settings"]["network"]
    if custom is not None:
        expected = "the plan's own network (train.network: null)"
        raise _error("a network of your own", path, custom, expected, "nnU-Net cannot build it; predict with segpipe")
    if weights == "averaged" and content["averaged"] is None:
        expected = "averaged weights, as --weights asks for"
        raise _error("no averaged weights", path, "raw ones only", expected, "leave --weights out")


def plans_json(found: models.Checkpoints) -> dict[str, Any]:
    """nnU-Net's plans.json for all configurations of a MODEL."""
    contents = [checkpoint.peek(next(iter(paths.values()))) for paths in found.values()]
    plans = [content["plan"] for content in contents]
    configurations = {name: Configuration(**value) for plan in plans for name, value in plan["configurations"].items()}
    keys = ("transpose_forward", "transpose_backward", "intensities")
    shared = {digest.of([plan[key] for key in keys]) for plan in plans}
    if len(shared) > 1:
        cure = "export them one by one, with --configurations"
        raise _error("configurations of several plans", ", ".join(found), "different axes or intensities", "one", cure)
    dataset = contents[0]["dataset"]
    return to_nnunet(
        {**plans[0], "configurations": configurations}, dataset["dataset"], reader(dataset, configurations)
    )


def reader(dataset: Mapping[str, Any], configurations: Mapping[str, Configuration]) -> str:
    """nnU-Net's class that reads a dataset's images as segpipe does."""
    ending, reoriented = dataset["file_ending"], dataset["orientation"] == "RAS"
    flat = all(len(planned.patch_size) == 2 for planned in configurations.values())
    if ending in PICTURES or (ending in TIFF and flat):
        return "NaturalImage2DIO"
    if ending in TIFF:
        return "Tiff3DIO"
    return "SimpleITKIOWithReorient" if reoriented else "SimpleITKIO"


def dataset_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """nnU-Net's dataset.json. Its classes are counted without gaps, as in the training.

    content : of a checkpoint
    """
    labels = Labels.from_json(content["labels"])
    if labels.file_values != tuple(range(len(labels.file_values))):
        pairs = ", ".join(f"{value} is {in_files}" for value, in_files in enumerate(labels.file_values))
        log.warning("nnU-Net writes 0, 1, ... where the labels of this dataset have gaps: %s", pairs)
    names: dict[str, Any] = {name: values[0] if len(values) == 1 else values for name, values in labels.names.items()}
    if labels.ignore is not None:
        names[IGNORE] = labels.ignore
    return {
        "channel_names": {str(index): name for index, name in enumerate(content["channel_names"])},
        "labels": names,
        **({"regions_class_order": list(labels.regions_order)} if labels.regions_order is not None else {}),
        "numTraining": 0,  # of no meaning for a prediction
        "file_ending": content["dataset"]["file_ending"],
    }


def _mirroring(content: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The axes mirrored while training, counted in the patch; nnU-Net takes none as None."""
    n_axes = len(content["plan"]["configurations"][content["configuration"]]["patch_size"])
    axes = content["mirror_axes"]
    return tuple(axis for axis in range(n_axes) if axes is None or axis + 3 - n_axes in axes) or None


def _duplicated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All names under which nnU-Net's network has each tensor."""
    named = dict(state)
    for name, tensor in state.items():
        module, _, parameter = name.rpartition(".")
        block, _, part = module.rpartition(".")
        if part in TWICE:
            named[f"{block}.{TWICE[part]}.{parameter}"] = tensor
    shared = {f"decoder.{name}": tensor for name, tensor in named.items() if name.startswith("encoder.")}
    return {**named, **shared}


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
