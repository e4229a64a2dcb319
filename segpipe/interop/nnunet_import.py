"""A model that nnU-Net trained becomes a MODEL of segpipe: same networks, preprocessing and mirroring."""

from collections.abc import Mapping
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpipe import digest
from segpipe.data import labels
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.inference.models import MODEL_FILE
from segpipe.interop.nnunet_folders import TrainedFolder, opened, trained_folders
from segpipe.prepare.plan import Configuration
from segpipe.prepare.plan_file import of_nnunet
from segpipe.training import checkpoint, network
from segpipe.training.pretrained import own_name

log = getLogger(__name__)

AS_STORED = ("SimpleITKIO", "NibabelIO", "Tiff3DIO", "NaturalImage2DIO")
READERS = dict.fromkeys(AS_STORED, "as-stored") | dict.fromkeys(
    ("NibabelIOWithReorient", "SimpleITKIOWithReorient"), "RAS"
)
NAMED = ("trainer_name", "init_args", "network_weights")  # what the import needs of a checkpoint


def import_model(source: Path, out: Path) -> None:
    """Write the MODEL `out` from nnU-Net's model folder, a folder or zip file of several, a cascade's stages included.

    Nothing of the files is executed. Raises SegpipeError where a part is missing or is nothing that segpipe can run,
    and where `out` exists.
    """
    if out.exists():
        raise _error("the folder exists", "--out", out, "a new one", "remove it, or name another")
    with opened(source, out) as root, digest.new_folder(out) as folder:
        described: dict[str, dict[str, Any]] = {}
        for trained in trained_folders(root):
            name, of_folder = _import_folder(trained, folder)
            if name in described:
                cure = "name the one that is meant"
                raise _error("two models of one configuration", source, trained.path, f"one of {name}", cure)
            described[name] = {"folder": trained.path.name, **of_folder}
        _require_stages(described, source)
        digest.write_json(folder / MODEL_FILE, {"from": "nnU-Net", "configurations": described})
    for name, of_folder in described.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in of_folder.items()))


def _require_stages(described: Mapping[str, Mapping[str, Any]], source: Path) -> None:
    for name, of_folder in described.items():
        stage = of_folder["previous_stage"]
        if stage is not None and stage not in described:
            cure = f"name a folder or zip file that holds the models of both, {stage} and {name}"
            raise _error("the stage before a cascade is missing", source, ", ".join(described), stage, cure)


def _import_folder(trained: TrainedFolder, out: Path) -> tuple[str, dict[str, Any]]:
    """Write the checkpoints of one configuration; returns its name and what model.json says of it."""
    plan = of_nnunet(trained.plans, trained.path / "plans.json")
    read = {key: _read(path) for key, path in trained.checkpoints.items()}
    names = {content["init_args"].get("configuration") for content in read.values()}
    trainers = {content["trainer_name"] for content in read.values()}
    if len(names) > 1 or len(trainers) > 1:
        found = ", ".join(map(str, [*names, *trainers]))
        raise _error("checkpoints of several trainings", trained.path, found, "one", "keep those that belong together")
    (name,), (trainer,) = names, trainers
    if name not in plan["configurations"]:
        expected = ", ".join(plan["configurations"])
        raise _error("a configuration of another name", trained.path, name, expected, "segpipe knows no other")
    shared = _shared(trained, plan, name, trainer)
    problems: list[str] = []
    for (fold, kind), content in read.items():
        path = trained.checkpoints[fold, kind]
        weights, wrong = _weights(content["network_weights"], shared, path)
        problems += wrong
        if not wrong:
            target = out / name / f"fold_{fold}" / f"checkpoint_{kind}.pth"
            checkpoint.save(target, checkpoint.snapshot(_content(shared, content, weights, path)))
    raise_all(f"{trained.path}: weights that segpipe cannot run", problems)
    files = [f"fold_{fold}/checkpoint_{kind}.pth" for fold, kind in read]
    stage = plan["configurations"][name].previous_stage
    return name, {"trainer": trainer, "previous_stage": stage, "checkpoints": files}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = checkpoint.load_foreign(path)
    except Exception as error:  # a broken file may fail in any way
        found, expected = checkpoint.why_unreadable(error), "tensors, numbers and strings"
        raise _error("the checkpoint cannot be read", path, found, expected, "take a complete one") from error
    missing = [key for key in NAMED if not isinstance(content, Mapping) or key not in content]
    if missing:
        keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise _error("no checkpoint of nnU-Net 2", path, keys, ", ".join(NAMED), "take one that nnUNetv2_train wrote")
    result: dict[str, Any] = dict(content)
    return result


def _shared(trained: TrainedFolder, plan: dict[str, Any], name: str, trainer: str) -> dict[str, Any]:
    """What all checkpoints of a folder have in common. What nnU-Net does not say is None."""
    said, where = trained.dataset, trained.path / "dataset.json"
    absent = [key for key in ("labels", "file_ending") if key not in said]
    if absent:
        raise _error(
            "dataset.json is incomplete", where, ", ".join(said), ", ".join(absent), "copy it from the dataset"
        )
    channels = said.get("channel_names") or said.get("modality") or {}
    reader = trained.plans.get("image_reader_writer", AS_STORED[0])
    if reader not in READERS:
        raise _error("an own reader of images", trained.path / "plans.json", reader, " or ".join(READERS), "convert")
    classes = labels.parse(said["labels"], said.get("regions_class_order"), where)
    kept = {key: plan[key] for key in ("transpose_forward", "transpose_backward", "intensities")}
    return {
        "format": digest.FORMAT_VERSION,
        "settings_digest": digest.of([trained.plans, said, trainer]),
        "configuration": name,
        "plan": {**kept, "configurations": {name: asdict(plan["configurations"][name])}},
        "dataset": {
            "dataset": trained.plans.get("dataset_name", trained.path.parent.name),
            "file_ending": said["file_ending"],
            "orientation": READERS[reader],
        },
        "labels": classes.to_json(),
        "channel_names": [str(channels[key]) for key in sorted(channels, key=int)],
        "precision": "float16",
        "settings": {"network": None, "precision": "fp16", "trainer": trainer},
        "step": None,
        "row": None,
        "averaged": None,
    }


def _content(
    shared: Mapping[str, Any], content: Mapping[str, Any], weights: dict[str, Tensor], path: Path
) -> dict[str, Any]:
    """A checkpoint as a training here would have written it."""
    identity, epoch = digest.of_file(path), content.get("current_epoch")
    n_axes = len(shared["plan"]["configurations"][shared["configuration"]]["patch_size"])
    # nnU-Net counts the axes of the patch, segpipe those of the case
    mirrored = [int(axis) + 3 - n_axes for axis in content.get("inference_allowed_mirroring_axes") or ()]
    facts = {"epochs": epoch, "imported": {"from": "nnU-Net", "file": path.name, "digest": identity}}
    return {
        **shared,
        "digest": identity,
        "mirror_axes": mirrored,
        "epoch": epoch,
        "facts": facts,
        "network": weights,
    }


def _weights(found: Mapping[str, Tensor], shared: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of our network, and what does not fit.

    nnU-Net's modules hold their parts twice (`all_modules`, `decoder.encoder`), so its files name them several times.
    """
    planned = Configuration(**shared["plan"]["configurations"][shared["configuration"]])
    classes = Labels.from_json(shared["labels"])
    with torch.device("meta"):
        n_inputs = network.n_inputs(len(shared["channel_names"]), classes, planned)
        own = network.create(n_inputs, len(classes.heads), planned, None).state_dict()
    offered = {own_name(name, {}): tensor for name, tensor in found.items()}
    further = [name for name in offered if name not in own and not _is_duplicate(name)]
    wrong = [f"no {name}" for name in own if name not in offered] + [f"{name}, which is not known" for name in further]
    wrong += [
        f"{name} of shape {tuple(offered[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in offered and offered[name].shape != tensor.shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        expected = f"the tensors of the {planned.architecture} U-Net that plans.json describes"
        cure = f"segpipe has no network of {shared['settings']['trainer']}; take a model of nnUNetTrainer"
        return {}, [problem("another network", where=path, found=shown, expected=expected, cure=cure)]
    return {name: offered[name].float() for name in own}, []


def _is_duplicate(name: str) -> bool:
    return name.startswith("decoder.encoder.") or "all_modules" in name.split(".")


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(problem(what, where=where, found=found, expected=expected, cure=cure))
