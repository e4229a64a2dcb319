"""Whole cases scored while a network trains: as the validation scores them, without a trace."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from tiny import params, planned
from torch import nn

from segpipe import digest
from segpipe.data import splits
from segpipe.inference import full_validation, predict, validation
from segpipe.params.train import FullValidation
from segpipe.training import checkpoint, job
from segpipe.training.network import build, create

pytest_plugins = ["phantom_fixtures"]

PRECISION = {"off": torch.float32, "bf16": torch.bfloat16}


def nothing():
    pass


@pytest.fixture(scope="module")
def small_patches(prepared):
    """The cases for a network that takes eight voxels per axis: several tiles per case, so that steps matter."""
    plan = prepared.store.plan
    planned = replace(prepared.store.planned, patch_size=[8] * 3)
    return replace(prepared, store=replace(prepared.store, plan={**plan, "configurations": {"3d_fullres": planned}}))


def scorer(prepared, step_size=1.0, mirroring=False, axes=None, dtype=torch.float32, on_case=nothing):
    settings = FullValidation(every=1, weights="raw", step_size=step_size, mirroring=mirroring)
    return full_validation.scorer(prepared.store, val_cases(prepared), settings, axes, dtype, on_case)


def val_cases(prepared):
    return splits.read(prepared.splits, "0")["val"]


@pytest.fixture(scope="module")
def able(prepared, trained):
    """A checkpoint with weights that predict every class somewhere, so that each has a Dice of its own."""
    content = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    return {**content, "network": build(1, 4, prepared.store.planned, params(train__seed=7).train).state_dict()}


def network_of(content):
    network = create(1, 4, planned(**content["plan"]["configurations"]["3d_fullres"]), None)
    network.load_state_dict(content["network"])
    return network


@pytest.mark.parametrize(
    ("step_size", "mirroring", "axes", "precision"),
    [
        (1.0, False, None, "off"),
        (0.25, False, None, "off"),
        (1.0, True, None, "off"),
        (1.0, True, [0], "off"),
        (1.0, False, None, "bf16"),
    ],
)
def test_scores_are_those_of_the_validation(
    prepared, small_patches, able, tmp_path, step_size, mirroring, axes, precision
):
    """The same number, bit by bit, for the same weights and settings."""
    scores = scorer(small_patches, step_size, mirroring, axes, PRECISION[precision])(network_of(able))
    plan = {**able["plan"], "configurations": {"3d_fullres": asdict(small_patches.store.planned)}}
    settings = {**able["settings"], "precision": precision}
    checkpoint.save(tmp_path / "model.pth", {**able, "mirror_axes": axes, "settings": settings, "plan": plan})
    settings = params(validate__step_size=step_size, validate__mirroring=mirroring)
    out = tmp_path / "fold_0/trial"
    validation.validate(prepared.store, prepared.splits, "0", tmp_path / "model.pth", out, settings)
    summary = digest.read_json(out / "summary.json")
    classes = {"liver": "1", "kidneys": "2", "vessel": "3"}
    assert scores == {
        "case_dice_mean": summary["foreground_mean"]["Dice"],
        **{f"case_dice_{name}": summary["mean"][value]["Dice"] for name, value in classes.items()},
    }
    assert len(set(scores.values())) > 2  # more than zeros


def test_settings_matter(small_patches, able):
    """So the comparison above compares something."""
    network = network_of(able)
    ways = [{}, {"step_size": 0.25}, {"mirroring": True}, {"mirroring": True, "axes": [0]}, {"dtype": torch.bfloat16}]
    scores = [scorer(small_patches, **way)(network)["case_dice_mean"] for way in ways]
    assert len(set(scores)) == len(ways)


def test_a_class_without_dice_is_left_out_of_the_mean(prepared, monkeypatch):
    """Known masks: liver perfect in one case and missed in two, kidneys in one case only, no vessel anywhere."""
    shape = (4, 5, 6)
    background, liver, half, kidneys = (np.zeros(shape, np.int16) for _ in range(4))
    liver[:2], half[:1], kidneys[:2], kidneys[2:] = 1, 1, 1, 2
    predicted, reference = [liver, background, half], [liver, liver, kidneys]
    monkeypatch.setattr(predict, "segment", lambda *_: predicted.pop(0))
    monkeypatch.setattr(type(prepared.cases), "read_label", lambda *_: reference.pop(0))
    scores = scorer(prepared)(nn.Conv3d(1, 1, 1))
    assert scores == {
        "case_dice_mean": pytest.approx(((1 + 0 + 2 / 3) / 3 + 0) / 2),
        "case_dice_liver": pytest.approx((1 + 0 + 2 / 3) / 3),
        "case_dice_kidneys": 0,
        "case_dice_vessel": None,
    }


class Moody(nn.Module):
    """A network with a part that depends on the mode, and one that the training keeps in eval mode."""

    def __init__(self, plan):
        super().__init__()
        self.network, self.dropout, self.frozen = create(1, 4, plan, None), nn.Dropout(0.5), nn.Dropout(0.5)
        self.modes = []

    def forward(self, x):
        self.modes.append([module.training for module in self.modules()])
        return self.frozen(self.dropout(self.network(x)))


@pytest.mark.parametrize("raised", [False, True])
def test_a_network_is_evaluated_and_given_back_as_it_was(prepared, raised):
    network = Moody(prepared.store.planned).train()
    network.frozen.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert True in modes
    assert False in modes
    random = torch.get_rng_state()
    if raised:
        with pytest.raises(KeyboardInterrupt):
            scorer(prepared, on_case=interrupting(1))(network)
    else:
        scorer(prepared)(network)
    assert network.modes
    assert not any(any(modes) for modes in network.modes)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    network(torch.zeros(1, 1, 16, 16, 16)).sum().backward()  # still trains
    assert all(parameter.grad is not None for parameter in network.network.encoder.parameters())


def interrupting(after):
    """Raise at the call after so many."""
    calls = []

    def on_case():
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)

    return on_case


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_caller_is_asked_before_each_case(prepared, able, monkeypatch, after):
    predicted, original = [], predict.run
    monkeypatch.setattr(predict, "run", lambda *rest: predicted.append(1) or original(*rest))
    with pytest.raises(KeyboardInterrupt):
        scorer(prepared, on_case=interrupting(after))(network_of(able))
    assert len(predicted) == after


def test_nothing_is_written(prepared, able, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in prepared.root.rglob("*")}
    scorer(prepared)(network_of(able))
    assert {path: path.stat().st_mtime_ns for path in prepared.root.rglob("*")} == before
    assert not list(tmp_path.iterdir())


def test_a_training_records_what_its_validation_finds(prepared, trained, tmp_path):
    """And ends in the weights of a training that does not look."""
    every = {"every": 1, "weights": "raw", "step_size": 0.5, "mirroring": True}
    settings = params(train__full_validation=every, validate__step_size=0.5, validate__mirroring=True)
    job.train(prepared.store, prepared.splits, "0", tmp_path / "fold_0", settings, full_validation.scorer)
    final = tmp_path / "fold_0/checkpoint_final.pth"
    validation.validate(prepared.store, prepared.splits, "0", final, tmp_path / "fold_0/validation_final", settings)
    summary, content = digest.read_json(tmp_path / "fold_0/validation_final/summary.json"), checkpoint.load(final)
    assert content["row"]["case_dice_mean"] == summary["foreground_mean"]["Dice"]
    assert content["row"]["case_dice_kidneys"] == summary["mean"]["2"]["Dice"]
    unseen = checkpoint.load(trained / "fold_0/checkpoint_final.pth")["network"]
    assert all(torch.equal(content["network"][key], unseen[key]) for key in unseen)
