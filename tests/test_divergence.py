"""A loss or gradient that is not finite: where the training stops, what it says, what it leaves."""

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from memory import run, training, weights
from tiny import planned

from segpipe.training import checkpoint, divergence
from segpipe.training.divergence import CHECK_EVERY, FILE, Diverged
from segpipe.training.network import build
from segpipe.training.schedule import Length

pytest_plugins = ["phantom_fixtures"]

CHANGES = {"train__epochs": 4, "train__augment": False, "train__optimiser__learning_rate": 0.05}


def poisoned(**changes):
    """A training with one voxel that is not a number, in one case."""
    one = training(**{**CHANGES, **changes})
    one.feed.store.content["c1"].image[0, 11, 7, 3] = np.nan
    return one


def first_bad_step(one):
    k = one.settings.accumulate
    return next(
        step
        for step in range(one.length.total_steps)
        if any(not one.feed.training(step * k + i).image.isfinite().all() for i in range(k))
    )


def diverged(one, between=lambda: None):
    with pytest.raises(Diverged) as error:
        run(one, between)
    return error.value


class Stop(Exception):
    pass


def stopped_before(step, **changes):
    """The same training without the voxel, ended before a step."""
    one = training(**{**CHANGES, **changes})

    def between():
        if one.step == step and one.evaluated_step == step // 3 * 3:  # not while the epoch before is evaluated
            raise Stop

    with pytest.raises(Stop):
        run(one, between)
    return one


# on the CPU


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_voxel_that_is_not_a_number_stops_the_training_in_its_step_before_the_weights_change(
    seed, accumulate, threads
):
    changes = {"train__seed": seed, "train__accumulate": accumulate, "train__ema__decay": 0.9}
    one = poisoned(**changes, runtime__feed_threads=threads)
    bad = first_bad_step(one)
    assert bad > 0
    found = diverged(one)
    assert (found.step, found.epoch) == (bad, bad // 3 + 1)
    assert math.isnan(found.loss)
    sound = stopped_before(bad, **changes)
    assert weights(one.network).isfinite().all()
    assert torch.equal(weights(one.network), weights(sound.network))
    assert torch.equal(weights(one.averaged), weights(sound.averaged))
    assert one.rows == sound.rows
    assert len(one.losses) == bad % 3


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("clip_norm", [12.0, None])
def test_a_gradient_that_is_not_finite_stops_as_well_though_the_loss_is(value, clip_norm):
    one, sound = (training(train__optimiser__clip_norm=clip_norm) for _ in range(2))
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * value if len(calls) == 5 else gradient

    next(one.network.parameters()).register_hook(spoil)
    found = diverged(one)
    assert (found.step, found.epoch) == (4, 2)
    assert math.isnan(found.loss)

    def between():
        if sound.step == 4:
            raise Stop

    with pytest.raises(Stop):
        run(sound, between)
    assert torch.equal(weights(one.network), weights(sound.network))


def test_an_infinite_loss_stops_as_well():
    one = training()
    one.objective = lambda outputs, label, elsewhere, known: outputs[0].mean() + torch.inf
    found = diverged(one)
    assert (found.step, found.epoch, found.loss) == (0, 1, math.inf)


def test_a_finite_training_is_not_stopped():
    assert len(run(training(**CHANGES)).rows) == 4


# what is left


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_batches_and_weights_that_are_saved_give_the_loss_again(tmp_path, accumulate):
    one = poisoned(train__accumulate=accumulate, train__seed=1)
    found = diverged(one)
    divergence.explain(found, one, tmp_path)
    content = checkpoint.load(tmp_path / FILE)
    batches = [one.feed.training(found.step * accumulate + i) for i in range(accumulate)]
    assert torch.equal(content["label"], torch.cat([batch.label for batch in batches]))
    assert torch.equal(content["image"].nan_to_num(), torch.cat([batch.image for batch in batches]).nan_to_num())
    assert content["image"].isnan().sum() > 0
    assert (content["epoch"], content["step"]) == (found.epoch, found.step)
    assert content["sources"] == [
        {"case": case, "start": list(box.start), "size": list(box.size)}
        for batch in batches
        for case, box in batch.sources
    ]
    network = build(1, 4, planned(), one.settings)
    network.load_state_dict(content["network"])
    assert torch.equal(weights(network), weights(one.network))
    outputs = network.supervised(content["image"], one.n_outputs)
    assert not one.loss(outputs, content["label"]).isfinite()
    sound = [i for i, image in enumerate(content["image"]) if image.isfinite().all()]
    if sound:  # and only the poisoned patch does
        outputs = network.supervised(content["image"][sound], one.n_outputs)
        assert one.loss(outputs, content["label"][sound]).isfinite()


def test_the_message_says_where_what_and_how_to_mend_it(tmp_path):
    one = poisoned(train__accumulate=2, train__seed=1)
    found = diverged(one)
    text = str(divergence.explain(found, one, tmp_path))
    assert f"epoch {found.epoch}, step {found.step}, patches" in text
    sources = [source for i in range(2) for source in one.feed.training(2 * found.step + i).sources]
    assert len(sources) == 4
    assert "c1" in {case for case, _ in sources}
    for case, box in sources:
        end = [a + n for a, n in zip(box.start, box.size, strict=True)]
        assert f"{case}, voxels {list(box.start)} to {end}" in text
    assert "found:    a loss or gradient of nan" in text
    assert str(tmp_path / FILE) in text
    for setting in ("train.optimiser.learning_rate", "train.schedule.warmup_steps", "train.precision: off"):
        assert setting in text


def weights_on_disk(folder, value):
    """A last checkpoint of a training, with weights that are known again."""
    network = {key: torch.full_like(old, value) for key, old in training().network.state_dict().items()}
    checkpoint.save(folder / "latest.pth", {"network": network})
    return network


def saved_weights(folder, one):
    divergence.explain(Diverged(1, 0, math.nan), one, folder)
    return checkpoint.load(folder / FILE)["network"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_spoilt_are_replaced_by_those_of_the_last_checkpoint(tmp_path, value):
    one, before = training(), weights_on_disk(tmp_path, 0.25)
    with torch.no_grad():
        list(one.network.parameters())[-1][0] = value  # one number among all
    saved = saved_weights(tmp_path, one)
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[key], before[key]) for key in before)


def test_sound_weights_are_saved_as_they_are_whatever_lies_on_disk(tmp_path):
    one = training()
    weights_on_disk(tmp_path, 0.25)
    saved, now = saved_weights(tmp_path, one), one.network.state_dict()
    assert all(torch.equal(saved[key], now[key]) for key in now)


def test_spoilt_weights_are_saved_where_there_are_no_others(tmp_path):
    one = training()
    with torch.no_grad():
        next(one.network.parameters()).fill_(math.nan)
    assert saved_weights(tmp_path, one)["encoder.stages.0.0.convs.0.conv.weight"].isnan().all()


# before a state is saved


def unchecked(losses, done=0, device="cuda"):
    """A training in the middle of its second epoch, whose steps were not looked at."""
    return SimpleNamespace(
        losses=[torch.tensor(loss) for loss in losses],
        rows=[{}],
        step=done + len(losses),
        device=SimpleNamespace(type=device),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 3, 59, 79])
def test_all_steps_of_the_epoch_are_checked_however_many(at, bad):
    losses = [1.0] * 80  # more than are looked at together
    losses[at] = bad
    with pytest.raises(Diverged) as error:
        divergence.check_all(unchecked(losses, done=250))
    assert (error.value.epoch, error.value.step) == (2, 250 + at)
    assert str(error.value.loss) == str(bad)


def test_the_first_of_several_is_named():
    with pytest.raises(Diverged) as error:
        divergence.check_all(unchecked([1.0, 2.0, math.nan, math.inf]))
    assert error.value.step == 2


@pytest.mark.parametrize("losses", [[], [1.0], [-0.5] * 100])
def test_sound_steps_may_be_saved(losses):
    divergence.check_all(unchecked(losses))


# on a device, where each look waits for it


def on_a_device(losses, epoch_length, norms=None, scaling=False, start=0, total=10**6):
    """The steps that are done, one loss each, until `check` raises; the losses of an epoch are kept as `fit` does."""
    length = Length(epoch_length, total)
    scaler = SimpleNamespace(is_enabled=lambda: scaling)
    one = SimpleNamespace(
        scaler=scaler, device=SimpleNamespace(type="cuda"), length=length, losses=[torch.tensor(0.0)] * start, rows=[]
    )
    done = []
    for step, loss in enumerate(losses, start):
        done.append(step)
        norm = torch.tensor(norms[step] if norms else 1.0)
        try:
            one.losses.append(divergence.check(one, step, torch.tensor(loss), norm))
        except Diverged as found:
            return done[-1], found
        if len(length.epoch_from(step)) == 1:
            one.rows.append({})
            one.losses = []
    return done[-1], None


def bad_from(step, n, value=math.nan):
    return [1.0] * step + [value] * (n - step)


@pytest.mark.parametrize(
    ("bad", "epoch_length", "noticed", "epoch"),
    [
        (0, 250, 49, 1),
        (49, 250, 49, 1),
        (50, 250, 99, 1),
        (240, 250, 249, 1),
        (251, 250, 299, 2),
        (249, 250, 249, 1),
        (3, 20, 19, 1),  # an epoch shorter than the interval
        (24, 20, 39, 2),
        (45, 70, 49, 1),
        (55, 70, 69, 1),
        (72, 70, 99, 2),
    ],
)
def test_a_device_is_asked_from_time_to_time_and_the_first_bad_step_is_named(bad, epoch_length, noticed, epoch):
    assert CHECK_EVERY == 50
    at, found = on_a_device(bad_from(bad, 400), epoch_length)
    assert found is not None
    assert (at, found.step, found.epoch) == (noticed, bad, epoch)
    assert math.isnan(found.loss)


def test_one_bad_step_among_good_ones_is_noticed_on_a_device():
    losses = [1.0] * 400
    losses[60] = math.inf
    at, found = on_a_device(losses, 250)
    assert (at, found.step, found.loss) == (99, 60, math.inf)
    assert on_a_device([1.0] * 400, 250)[1] is None


def test_a_short_last_epoch_is_looked_at_on_a_device():
    at, found = on_a_device(bad_from(255, 258), 250, total=258)
    assert (at, found.step, found.epoch) == (257, 255, 2)


def test_a_resumed_epoch_is_looked_at_on_a_device():
    at, found = on_a_device(bad_from(3, 100), 250, start=70)
    assert (at, found.step) == (99, 73)


def test_a_bad_gradient_is_noticed_on_a_device_though_the_loss_is_finite():
    at, found = on_a_device([1.0] * 100, 250, norms=bad_from(20, 100, math.inf))
    assert (at, found.step) == (49, 20)
    assert math.isnan(found.loss)


def test_a_step_that_the_scaler_of_fp16_leaves_out_is_no_divergence():
    infinite = [math.inf] * 100
    assert on_a_device([1.0] * 100, 250, norms=infinite, scaling=True)[1] is None
    assert on_a_device(bad_from(10, 100), 250, norms=infinite, scaling=True)[1].step == 10


def test_the_loop_itself_names_the_first_bad_step_where_it_looks_late(monkeypatch):
    """A pretended device; the weights are spoilt by then, the batches are made again all the same."""
    one = poisoned(train__seed=1)
    bad = first_bad_step(one)
    original = divergence.check

    def pretending(training, *arguments):
        pretended = SimpleNamespace(**{**vars(training), "device": SimpleNamespace(type="cuda")})
        return original(pretended, *arguments)

    monkeypatch.setattr(divergence, "check", pretending)
    found = diverged(one)
    assert found.step == bad
    assert bad % 3 != 2
    assert one.step == bad // 3 * 3 + 2  # the last step of the epoch raised
    assert not weights(one.network).isfinite().all()


def test_the_docs_say_how_to_look_at_it_again(trained, tmp_path, monkeypatch, capsys):
    latest = trained / "fold_0/checkpoint_final.pth"
    shutil.copy(latest, tmp_path / "latest.pth")
    model = checkpoint.load(latest)
    image = torch.zeros(2, 1, *model["plan"]["configurations"]["3d_fullres"]["patch_size"])
    image[1, 0, 0, 0, 0] = torch.nan
    checkpoint.save(tmp_path / FILE, {"network": model["network"], "image": image, "sources": ["a case"]})
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[1] / "docs/training.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", docs, re.DOTALL)[0], {})
    assert capsys.readouterr().out == "['a case'] tensor(False) tensor(False)\n"
