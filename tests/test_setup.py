"""From settings to a training at its first step."""

import sys
from dataclasses import replace

import pytest
import torch
from memory import TRAIN, VAL, run, setup, store, training, weights
from tiny import params, planned

from segpipe import device
from segpipe.errors import SegpipeError
from segpipe.ranks import ALONE
from segpipe.training import checkpoint, tiers
from segpipe.training.network import outputs
from segpipe.training.setup import Setup


def refused(make=setup, **changes):
    with pytest.raises(SegpipeError) as error:
        make(**changes)
    return str(error.value)


def test_facts_count_the_parameters():
    one = setup()
    n = sum(p.numel() for p in one.network.parameters())
    assert one.facts == {"parameters": n, "frozen_parameters": 0, "pretrained": None}
    frozen = setup(train__freeze=["encoder.*", "*.bias"])
    expected = sum(
        p.numel()
        for name, p in frozen.network.named_parameters()
        if name.startswith("encoder.") or name.endswith("bias")
    )
    assert frozen.facts == {"parameters": n, "frozen_parameters": expected, "pretrained": None}
    assert sum(p.numel() for p in frozen.network.parameters() if not p.requires_grad) == expected


def test_pretrained_weights_are_taken_and_counted(tmp_path):
    source = setup(train__seed=5)
    checkpoint.save(tmp_path / "other.pth", {"network": source.network.state_dict()})
    one = setup(train__pretrained_weights=str(tmp_path / "other.pth"))
    state, wanted = one.network.state_dict(), source.network.state_dict()
    heads = {name for name in state if ".seg_layers." in name}
    assert all(torch.equal(state[name], wanted[name]) for name in set(state) - heads)
    assert not torch.equal(state["decoder.seg_layers.1.weight"], wanted["decoder.seg_layers.1.weight"])
    counts = {"taken": len(state) - len(heads), "head, not taken": len(heads)}
    assert one.facts["pretrained"] == {"file": "other.pth", **counts}


def test_the_training_starts_at_its_first_step_with_what_the_settings_say():
    one = training(train__ema__decay=0.9, train__epochs=7, train__loss__deep_supervision=[0.5, 0.5])
    assert (one.step, one.epochs, one.rows, one.losses) == (0, 7, [], [])
    assert (one.length.steps_per_epoch, one.length.total_steps) == (3, 21)
    assert (one.feed.train_cases, one.feed.val_cases) == (TRAIN, VAL)
    assert one.n_outputs == 2
    assert one.forward is outputs
    assert one.averaged is not one.network
    assert torch.equal(weights(one.averaged), weights(one.network))
    assert not one.scaler.is_enabled()
    assert (one.device.type, one.dtype) == ("cpu", torch.float32)
    assert one.whole_cases is None
    assert training().n_outputs == 1  # the coarsest of nnU-Net's has the weight 0


def test_a_pass_counts_the_training_cases_alone():
    for batch_size, steps in ((1, 3), (2, 2), (8, 1)):
        one = training(planned(batch_size=batch_size), train__iterations_per_epoch="pass")
        assert one.length.steps_per_epoch == steps


def test_the_loss_is_one_dice_per_batch_where_the_plan_says_so():
    assert training(planned(batch_dice=True)).loss.joint
    assert not training().loss.joint


@pytest.fixture
def on_cuda(monkeypatch):
    """Makes what would be made for a CUDA device that has room for all; the network stays where it is."""

    def make(**changes):
        one = setup(**changes)
        return replace(one, device=torch.device("cuda")).training(None, lambda: None)

    monkeypatch.setattr(device, "free_bytes", lambda on: 10**12)
    monkeypatch.setattr(torch.cuda, "Stream", lambda on: f"stream of {on}")
    monkeypatch.setattr(tiers, "_bring", lambda stored, place: stored)
    return make


def test_fp16_is_scaled_and_not_fused():
    half = replace(setup(), dtype=torch.float16).training(None, lambda: None)
    assert half.scaler.is_enabled()
    assert not half.optimiser.defaults["fused"]
    assert training().optimiser.defaults["fused"]
    assert training(planned((16, 16, 16)), train__precision="bf16").optimiser.defaults["fused"]


@pytest.mark.parametrize(
    ("feeding", "wanted", "threads"),
    [("auto", None, 1), ("device", None, 1), ("host", None, 4), ("file", None, 4), ("auto", 0, 0), ("file", 2, 2)],
)
def test_feeding_threads_are_those_of_the_settings_or_fit_what_they_do(feeding, wanted, threads, on_cuda):
    assert on_cuda(runtime__feeding=feeding, runtime__feed_threads=wanted).feed_threads == threads


@pytest.mark.parametrize(("wanted", "threads"), [(None, 0), (0, 0), (2, 2)])
def test_on_the_cpu_the_training_feeds_itself_unless_told_otherwise(wanted, threads):
    assert training(runtime__feed_threads=wanted).feed_threads == threads


def test_batches_are_made_beside_the_training_on_cuda_alone(on_cuda):
    assert on_cuda().feed.stream == "stream of cuda"
    assert training().feed.stream is None


def test_memory_is_pinned_where_it_helps_and_is_wanted(on_cuda):
    assert not training(runtime__pin_memory=True).feed.held.place.pin
    assert on_cuda(runtime__pin_memory=True).feed.held.place.pin
    assert not on_cuda(runtime__pin_memory=False).feed.held.place.pin
    mps = replace(setup(runtime__pin_memory=True), device=torch.device("mps"))
    assert not mps.training(None, lambda: None).feed.held.place.pin


def test_the_cases_of_the_fold_and_no_others_are_held():
    one = setup()
    one.store.content["elsewhere"] = one.store.content["c0"]
    assert sorted(one.training(None, lambda: None).feed.held.cases) == sorted([*TRAIN, *VAL])


HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("patch_size", "dtype"), [((16, 8, 8), HALF), ((12, 8, 8), HALF), ((8, 16, 16), FULL), ((8, 8), HALF)]
)
def test_two_slices_are_no_feature_map_for_bf16_on_a_cpu(patch_size, dtype, caplog):
    assert setup(planned(patch_size), train__precision="bf16").dtype == dtype
    assert ("a feature map of two slices" in caplog.text) == (dtype == torch.float32)
    assert setup(planned(patch_size), train__precision="off").dtype == torch.float32


# whole cases


def test_whole_cases_are_scored_as_the_settings_say():
    full = {"every": 2, "weights": "raw", "step_size": 0.75, "mirroring": True}
    one = setup(planned((16, 16, 16)), train__full_validation=full, train__mirror_axes=[0, 2], train__precision="bf16")
    calls, between = [], lambda: None
    made = one.training(lambda *arguments: calls.append(arguments) or "scores", between)
    assert made.whole_cases == "scores"
    assert calls == [(one.store, VAL, one.params.train.full_validation, [0, 2], torch.bfloat16, between, ALONE)]


def test_without_the_setting_no_whole_cases_are_scored():
    one = setup().training(lambda *_: pytest.fail("asked for"), lambda: None)
    assert one.whole_cases is None


def test_whole_cases_need_who_scores_them():
    with pytest.raises(AssertionError, match="scores whole cases"):
        training(train__full_validation__every=2)


# the schedule


@pytest.mark.parametrize(
    ("value", "told"), [("float('nan')", "nan"), ("-0.5", "-0.005"), ("float('inf')", "inf"), ("0.4 - p", "-0.00266")]
)
def test_a_schedule_that_gives_no_rate_is_refused_before_the_first_step(tmp_path, monkeypatch, value, told):
    (tmp_path / "no_rate.py").write_text(f"def schedule(p, settings):\n    return 1.0 if p == 0 else {value}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "no_rate", raising=False)
    text = refused(training, train__schedule__name="no_rate:schedule")
    assert "params.yaml: train.schedule.name" in text
    assert f"no_rate:schedule gives {told}" in text
    assert f"at step {6 if 'p' in value.split() else 3}" in text


# callbacks


def test_callbacks_are_found_by_their_paths_in_their_order(tmp_path, monkeypatch):
    (tmp_path / "my_callbacks.py").write_text("def one(t, row):\n    return 1\n\n\ndef two(t, row):\n    return 2\n")
    monkeypatch.chdir(tmp_path)
    found = setup(train__callbacks=["my_callbacks:two", "my_callbacks:one"]).callbacks()
    assert [callback(None, None) for callback in found] == [2, 1]
    assert setup().callbacks() == []
    text = refused(lambda **changes: setup(**changes).callbacks(), train__callbacks=["my_callbacks:one", "absent:x"])
    assert "train.callbacks[1]" in text


# refused before anything is trained


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"train__loss__class_weights": {"oen": 2.0}}, "train.loss.class_weights", "did you mean 'one'?"),
        ({"train__loss__deep_supervision": [1.0, 1.0, 1.0]}, "train.loss.deep_supervision", "at most 2"),
        ({"train__freeze": ["encodr.*"]}, "train.freeze", "did you mean 'encoder.*'"),
        ({"train__schedule__warmup_steps": 9}, "train.schedule.warmup_steps", "fewer than the 9 steps"),
        ({"train__full_validation__every": 4}, "train.full_validation.every", "at most 3, the epochs"),
        ({"train__schedule__name": "absent_module:rate"}, "train.schedule.name", "no such module"),
        ({"train__optimiser__name": "absent_module:make"}, "train.optimiser.name", "no such module"),
        ({"train__loss__custom": "absent_module:loss"}, "train.loss.custom", "no such module"),
        ({"train__network": "absent_module:Net"}, "train.network", "no such module"),
        ({"train__pretrained_weights": "absent.pth"}, "train.pretrained_weights", "no file absent.pth"),
        ({"train__precision": "fp16"}, "train.precision", "fp16 on cpu"),
    ],
)
def test_what_does_not_exist_is_refused_by_its_key(changes, key, says):
    text = refused(training, **changes)
    assert f"params.yaml: {key}" in text
    assert says in text


def test_a_device_that_is_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "params.yaml: runtime.device" in refused(runtime__device="cuda:1")


def test_two_setups_of_the_same_settings_are_the_same_whatever_was_drawn_before():
    one = setup()
    torch.rand(100)
    other = Setup.of(store(), {"train": TRAIN, "val": VAL}, params())
    assert torch.equal(weights(one.network), weights(other.network))
    assert run(one.training(None, lambda: None)).rows == run(other.training(None, lambda: None)).rows
