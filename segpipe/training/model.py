"""What a checkpoint holds for prediction: a model that needs nothing beside it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.params import section
from segpipe.training import selection
from segpipe.training.identity import Identity
from segpipe.training.loop import Training
from segpipe.training.setup import Setup


def content(setup: Setup, training: Training, identity: Identity) -> dict[str, Any]:
    """The model as it is now: plan, labels, weights, and what its training was. No optimiser state."""
    store, settings = setup.store, setup.params.train
    plan = {key: store.plan[key] for key in ("transpose_forward", "transpose_backward", "intensities")}
    return {
        "format": digest.FORMAT_VERSION,
        "digest": identity.digest,
        "settings_digest": identity.settings,
        "configuration": store.configuration,
        "plan": {**plan, "configurations": {store.configuration: asdict(store.planned)}},
        "dataset": {key: store.cases.content[key] for key in ("dataset", "file_ending", "orientation")},
        "labels": store.cases.labels.to_json(),
        "channel_names": store.cases.channel_names,
        "mirror_axes": settings.mirror_axes,
        "precision": str(setup.dtype).removeprefix("torch."),
        "settings": _settings(setup),
        "epoch": len(training.rows),
        "step": training.step,
        "row": training.rows[-1] if training.rows else None,
        "facts": facts(setup, training, identity),
        "network": training.network.state_dict(),
        "averaged": None if training.averaged is None else training.averaged.state_dict(),
    }


def _settings(setup: Setup) -> dict[str, Any]:
    """The section `train`; of a path only the name, as where files lie is no result."""
    settings = section(setup.params, "train")
    weights = settings["pretrained_weights"]
    return {**settings, "pretrained_weights": weights and Path(weights).name}


def facts(setup: Setup, training: Training, identity: Identity) -> dict[str, Any]:
    """What happened in the training so far; no times, no paths."""
    return {
        "epochs": len(training.rows),
        "steps": training.step,
        "planned_steps": training.length.total_steps,
        "best_epoch": selection.best_epoch(training.rows),
        "stopped_early": selection.stopped(training.rows, training.settings.early_stopping),
        "continued_from": identity.lineage,
        **setup.facts,
    }


def restore(training: Training, found: dict[str, Any]) -> None:
    """Put a training where the one that left this resumable checkpoint was."""
    resume = found["resume"]
    training.network.load_state_dict(found["network"])
    if training.averaged is not None:
        training.averaged.load_state_dict(found["averaged"])
    training.optimiser.load_state_dict(resume["optimiser"])
    training.scaler.load_state_dict(resume["scaler"])
    training.rows, training.losses = resume["rows"], list(resume["losses"].to(training.device).unbind())
