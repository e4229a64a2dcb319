"""What a training is: which settings, files and code make another one of it, and which do not."""

import sys
from dataclasses import replace

import pytest
import torch
from tiny import params, prepare

from segpipe import digest
from segpipe.data import splits
from segpipe.errors import SegpipeError
from segpipe.params import section
from segpipe.training.identity import identify

pytest_plugins = ["phantom_fixtures"]


@pytest.fixture(autouse=True)
def _no_plugins_of_other_tests():
    names = ("own", "other", "plugin")
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def of(prepared, tmp_path):
    """The identity of a training of fold 0 with some settings changed."""
    return lambda fold="0", **changes: identify(
        prepared.store, splits.read(prepared.splits, fold), params(**changes), tmp_path / "state"
    )


# One other value for each setting of section train; plugins are files of the working directory.
OTHERS = {
    "epochs": 4,
    "max_steps": {"train__epochs": None, "train__max_steps": 5},
    "iterations_per_epoch": 4,
    "val_iterations_per_epoch": 3,
    "oversample_foreground": 0.5,
    "replacement": False,
    "augment": False,
    "mirror_axes": [0],
    "accumulate": 2,
    "optimiser.name": "adamw",
    "optimiser.learning_rate": 0.1,
    "optimiser.momentum": 0.9,
    "optimiser.betas": [0.8, 0.999],
    "optimiser.weight_decay": 0.0,
    "optimiser.decay_norm_and_bias": False,
    "optimiser.rate_factors": {"encoder": 0.5, "decoder": 1.0, "heads": 1.0},
    "optimiser.clip_norm": None,
    "schedule.name": "cosine",
    "schedule.per": "iteration",
    "schedule.warmup_steps": 2,
    "schedule.poly_exponent": 1.0,
    "schedule.final_factor": 0.1,
    "schedule.step_factor": 0.5,
    "schedule.steps_at": [0.5],
    "loss.custom": "plugin:thing",
    "loss.region": "tversky",
    "loss.region_weight": 2.0,
    "loss.voxel": "focal",
    "loss.voxel_weight": 2.0,
    "loss.tversky_alpha": 0.4,
    "loss.tversky_beta": 0.6,
    "loss.topk_percent": 20.0,
    "loss.focal_gamma": 1.0,
    "loss.class_weights": {"liver": 2.0},
    "loss.boundary_weight": 1.0,
    "loss.boundary_width": 2,
    "loss.deep_supervision": [1.0],
    "ema.decay": 0.9,
    "ema.ramp_steps": 5,
    "best.fitness": {"dice_liver": 1.0},
    "best.smoothing": 0.5,
    "early_stopping.patience": 3,
    "early_stopping.monitor": "val_loss",
    "early_stopping.min_delta": 0.1,
    "early_stopping.min_epochs": 2,
    "full_validation.every": 2,
    "full_validation.weights": {"train__ema__decay": 0.9, "train__full_validation__weights": "averaged"},
    "full_validation.step_size": 0.7,
    "full_validation.mirroring": True,
    "network": "plugin:thing",
    "initialisation": "xavier",
    "pretrained_weights": "weights.pth",
    "freeze": ["encoder.*"],
    "callbacks": ["plugin:thing"],
    "precision": "bf16",
    "deterministic": True,
    "seed": 1,
}


def keys(block, prefix=""):
    """The settings of a block: its own and those of the blocks in it; a table of values is one setting."""
    tables = {"optimiser.rate_factors", "best.fitness"}
    for name, value in block.items():
        if isinstance(value, dict) and prefix + name not in tables:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_of_the_training_is_tried():
    assert set(OTHERS) == set(keys(section(params(), "train"))) - {"on_extend"}


@pytest.mark.parametrize("key", OTHERS)
def test_identity_follows_every_setting_of_the_training(of, tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugin.py").write_text("def thing(): ...\n")
    (tmp_path / "weights.pth").write_bytes(b"weights")
    value = OTHERS[key]
    several = isinstance(value, dict) and next(iter(value)).startswith("train__")
    base, changed = of(), of(**(value if several else {f"train__{key.replace('.', '__')}": value}))
    assert changed.settings != base.settings
    assert changed.digest != base.digest


def test_the_weights_of_the_full_validation_count_by_themselves(of):
    """Above they are changed together with what they need."""
    raw, averaged = (of(train__ema__decay=0.9, train__full_validation__weights=name) for name in ("raw", "averaged"))
    assert raw.digest != averaged.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"train__on_extend": "continue"},
        {"runtime__device": "cuda"},
        {"runtime__num_gpus": 2},
        {"runtime__threads": 2},
        {"runtime__feed_threads": 3},
        {"runtime__feeding": "host"},
        {"runtime__prefetch": 9},
        {"runtime__pin_memory": False},
        {"runtime__compile": "fused"},
        {"runtime__channels_last": True},
        {"runtime__checkpoint_every": 7},
        {"runtime__disable_checkpointing": True},
        {"runtime__share_cases_with": []},
        {"validate__step_size": 0.7},
        {"folds": [1]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_identity_does_not_follow_how_the_work_is_done(of, changes):
    assert of(**changes) == of()


def test_every_setting_of_the_machine_is_tried():
    (mark,) = test_identity_does_not_follow_how_the_work_is_done.pytestmark
    tried = {name.removeprefix("runtime__") for changes in mark.args[1] for name in changes if "runtime" in name}
    assert tried == set(section(params(), "runtime"))


def test_folds_share_the_digest_of_their_settings(of):
    assert of("0").settings == of("1").settings
    assert of("0").digest != of("1").digest
    assert len({of(fold).digest for fold in ("0", "1", "all")}) == 3


def test_identity_follows_the_data_and_the_plan(prepared, of, tmp_path):
    fold, base = splits.read(prepared.splits, "0"), of()
    data = identify(replace(prepared.store, digest="other cases"), fold, params(), tmp_path)
    assert data.settings == base.settings
    assert data.digest != base.digest
    overrides = {"spacing_mm": [3.0] * 3, "patch_size": [16] * 3, "batch_size": 3, "features_base": 4}
    batch = prepare(tmp_path, params(plan__overrides=overrides))
    plan = identify(batch.store, fold, params(), tmp_path)
    assert batch.store.digest == prepared.store.digest  # the same cases, another plan
    assert plan.settings != base.settings
    assert plan.digest != base.digest


def test_the_reasons_of_the_plan_are_no_settings(prepared, of, tmp_path):
    planned = replace(prepared.store.planned, reasons=["said in other words"])
    other = replace(prepared.store, plan={**prepared.store.plan, "configurations": {"3d_fullres": planned}})
    assert identify(other, splits.read(prepared.splits, "0"), params(), tmp_path) == of()


# ---- what the settings name outside of the package -------------------------------------------------------------------

PLUGINS = {
    "loss": {"train__loss__custom": "own:thing"},
    "optimiser": {"train__optimiser__name": "own:thing"},
    "schedule": {"train__schedule__name": "own:thing"},
    "network": {"train__network": "own:thing"},
    "callback": {"train__callbacks": ["other:thing", "own:thing"]},
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_identity_follows_the_code_of_a_plugin_and_not_its_comments(of, tmp_path, monkeypatch, plugin):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text("def thing(): ...\n")
    found = []
    for source in ("def thing(): return 1\n", "# better\ndef thing():\n    return 1\n", "def thing(): return 2\n"):
        (tmp_path / "own.py").write_text(source)
        found.append(of(**PLUGINS[plugin]))
    assert found[0] == found[1]
    assert found[2].settings != found[0].settings
    assert found[2].digest != found[0].digest


def test_identity_follows_the_content_of_pretrained_weights(of, tmp_path):
    path = tmp_path / "weights.pth"
    found = []
    for weights in (torch.zeros(3), torch.zeros(3), torch.ones(3)):
        torch.save(weights, path)
        found.append(of(train__pretrained_weights=str(path)).digest)
    assert found[0] == found[1] != found[2]


def test_where_pretrained_weights_lie_and_what_they_are_called_does_not_count(of, tmp_path):
    path, moved = tmp_path / "weights.pth", tmp_path / "elsewhere/renamed.pth"
    path.write_bytes(b"weights")
    before = of(train__pretrained_weights=str(path))
    moved.parent.mkdir()
    path.rename(moved)
    assert of(train__pretrained_weights=str(moved)) == before
    assert before.digest != of().digest
    moved.write_bytes(b"others!")
    assert of(train__pretrained_weights=str(moved)).digest != before.digest


def test_an_absent_plugin_is_named(of):
    with pytest.raises(SegpipeError, match=r"train\.network"):
        of(train__network="no_such_module:thing")


def test_code_of_the_validation_counts_where_it_decides_what_is_best(of, monkeypatch):
    code = {rule: f"code of {rule}" for rule in ("train", "full_validation")}
    monkeypatch.setattr(digest, "of_code", code.__getitem__)
    plain, whole = of(), of(train__full_validation__every=1)
    code["full_validation"] = "other code"
    assert of() == plain
    assert of(train__full_validation__every=1) != whole
    code["train"] = "other code"
    assert of() != plain


# ---- the code --------------------------------------------------------------------------------------------------------


def test_every_module_that_decides_a_training_is_in_its_digest():
    """All of segpipe/training but what watches and keeps, and what several ranks need to be as one."""
    watches_and_keeps = {"__init__", "job", "identity", "model", "checkpoint", "curves", "interrupt", "divergence"}
    watches_and_keeps |= {"check", "failures", "messages", "tiers", "parallel", "follower"}
    modules = {path.stem for path in (digest.PACKAGE / "training").glob("*.py")} - watches_and_keeps
    assert {f"training/{name}.py" for name in modules} == set(digest.DECIDING_MODULES["train"])
