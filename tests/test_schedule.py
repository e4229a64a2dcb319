"""How long a training is, and its rate: against formulas written down again."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import params

from segpipe.errors import SegpipeError
from segpipe.training.schedule import Length, Rate, length


def block(**changes):
    """The settings of a training; `changes` to its schedule, but for those that name a block themselves."""
    return params(**{key if "__" in key else f"train__schedule__{key}": value for key, value in changes.items()}).train


def rate(of, total, per_epoch=1, learning_rate=None):
    if learning_rate is not None:
        of = of.model_copy(update={"optimiser": of.optimiser.model_copy(update={"learning_rate": learning_rate})})
    return Rate(of, Length(per_epoch, total))


def plain(name, p, exponent=0.9, final=0.01, factor=0.1, steps_at=(0.5, 0.75)):
    """The factors of the schedules, from their definitions."""
    if name == "poly":
        return math.pow(1 - p, exponent)
    if name == "cosine":
        return final + (1 - final) * math.cos(math.pi / 2 * p) ** 2
    if name == "exponential":
        return math.exp(p * math.log(final))
    if name == "step":
        return math.prod(factor for at in steps_at if at <= p)
    return 1.0


NAMES = ["poly", "cosine", "exponential", "step", "constant"]


# the default


def test_the_default_is_nnunets_polynomial():
    """PolyLRScheduler: 0.01 * (1 - epoch / 1000)^0.9; the numbers are nnU-Net's."""
    of = params(train__epochs=1000, train__iterations_per_epoch=250).train
    one = Rate(of, length(of, 20, 2))
    for step_in_epoch in (0, 1, 249):
        assert [one(epoch * 250 + step_in_epoch) for epoch in (0, 1, 500, 999)] == pytest.approx(
            [0.01, 0.00999099955, 0.00535886731, 1.99526231e-05], rel=1e-6
        )


# the schedules


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_a_schedule_per_iteration_is_its_formula(name, warmup):
    of = block(name=name, per="iteration", warmup_steps=warmup, poly_exponent=2.5, final_factor=0.2, step_factor=0.3)
    one = rate(of, 23, per_epoch=5, learning_rate=0.4)
    for step in range(23):
        factor = (
            (step + 1) / warmup
            if step < warmup
            else plain(name, (step - warmup) / (23 - warmup), exponent=2.5, final=0.2, factor=0.3)
        )
        assert one(step) == pytest.approx(0.4 * factor, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("total", "epochs"), [(20, 5), (18, 5), (17, 5)])  # the last epoch may be shorter
def test_a_schedule_per_epoch_is_its_formula_of_the_share_of_epochs(name, total, epochs):
    one = rate(block(name=name, per="epoch"), total, per_epoch=4, learning_rate=0.4)
    expected = [0.4 * plain(name, (step // 4) / epochs) for step in range(total)]
    assert [one(step) for step in range(total)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [1, 3, 4, 6, 8, 19])  # within an epoch, as long as one, longer
def test_a_warm_up_rises_with_each_step_in_front_of_a_schedule_per_epoch(name, warmup):
    """The rest of the epoch in which it ends has the full rate, and the schedule covers what is after the warm-up."""
    one = rate(block(name=name, per="epoch", warmup_steps=warmup), 20, per_epoch=4, learning_rate=0.4)
    assert [one(step) for step in range(warmup)] == pytest.approx([0.4 * (i + 1) / warmup for i in range(warmup)])
    for step in range(warmup, 20):
        first_of_epoch = step - step % 4
        p = (first_of_epoch - warmup) / (20 - warmup) if first_of_epoch >= warmup else 0
        assert one(step) == pytest.approx(0.4 * plain(name, p), rel=1e-12)


def test_steps_fall_at_the_shares_that_are_named():
    of = block(name="step", per="iteration", step_factor=0.5, steps_at=[0.3, 0.7, 0.9])
    one = rate(of, 10, learning_rate=0.8)
    assert [one(step) for step in range(10)] == pytest.approx([0.8] * 3 + [0.4] * 4 + [0.2] * 2 + [0.1])
    assert rate(block(name="step", steps_at=[]), 10)(9) == rate(block(name="constant"), 10)(9) == 0.01


SCHEDULES = st.builds(
    block,
    name=st.sampled_from(NAMES),
    per=st.sampled_from(["epoch", "iteration"]),
    warmup_steps=st.integers(0, 29),
    poly_exponent=st.floats(0.1, 5),
    final_factor=st.floats(0.001, 1),
    step_factor=st.floats(0.01, 1),
    steps_at=st.lists(st.floats(0.01, 0.99), max_size=3),
    train__optimiser__learning_rate=st.floats(1e-6, 10),
)


@settings(max_examples=60, deadline=None)
@given(of=SCHEDULES, per_epoch=st.integers(1, 40), total=st.integers(30, 90), data=st.data())
def test_the_rate_is_a_pure_function_of_the_step_and_never_above_the_learning_rate(of, per_epoch, total, data):
    one = rate(of, total, per_epoch)
    forwards = [one(step) for step in range(total)]
    for step in data.draw(st.lists(st.integers(0, total - 1), max_size=20)):
        assert one(step) == forwards[step]
        assert rate(of, total, per_epoch)(step) == forwards[step]
    assert all(0 < value <= of.optimiser.learning_rate for value in forwards)
    after = forwards[of.schedule.warmup_steps :]
    assert after == sorted(after, reverse=True)
    assert after[0] == of.optimiser.learning_rate


def test_the_schedule_of_an_import_path_gets_the_share_that_is_done_and_the_settings(tmp_path, monkeypatch):
    (tmp_path / "my_schedules.py").write_text("def own(p, settings):\n    return 1 - p * settings.final_factor\n")
    monkeypatch.chdir(tmp_path)
    one = rate(block(name="my_schedules:own", per="iteration", final_factor=0.5), 10, learning_rate=0.2)
    assert [one(0), one(5)] == pytest.approx([0.2, 0.2 * 0.75])


def custom(factor, **changes):
    """A rate by a factor of the user's own, over four epochs of five steps."""
    one = rate(block(**changes), 20, per_epoch=5, learning_rate=0.2)
    one.factor = lambda p, settings: factor(p)
    return one


@pytest.mark.parametrize("number", [np.float64, np.float32, torch.tensor, int])
def test_whatever_number_a_schedule_gives_the_rate_is_a_plain_float(number):
    """It is written into the checkpoint, which takes nothing else."""
    one = custom(lambda p: number(1), warmup_steps=2)
    assert [type(one(step)) for step in range(20)] == [float] * 20
    one.check()


@pytest.mark.parametrize("wrong", [math.nan, -1e-9, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_rate_that_is_none_is_told_with_its_step(wrong, epoch):
    one = custom(lambda p: wrong if p == epoch / 4 else 0.5)
    with pytest.raises(SegpipeError) as error:
        one.check()
    text = str(error.value)
    assert f"poly gives {0.2 * wrong} at step {5 * epoch}" in text
    assert "params.yaml: train.schedule.name" in text


def test_the_first_of_several_is_told():
    with pytest.raises(SegpipeError, match=r"gives -0\.1 at step 10"):
        custom(lambda p: -p if p >= 0.5 else 1.0).check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_all_schedules_give_rates(name, warmup):
    rate(block(name=name, warmup_steps=warmup), 20, per_epoch=5).check()
    custom(lambda p: 0.0).check()  # nothing is learnt, but that is a rate


# the length


@pytest.mark.parametrize(
    ("changes", "per_epoch", "total"),
    [
        ({"epochs": 3, "iterations_per_epoch": 25}, 25, 75),
        ({"epochs": None, "max_steps": 60, "iterations_per_epoch": 25}, 25, 60),
        ({"epochs": None, "max_steps": 10, "iterations_per_epoch": 25}, 25, 10),
        ({"epochs": 2, "iterations_per_epoch": "pass"}, 11, 22),  # 21 cases, batches of 2
        ({"epochs": 2, "iterations_per_epoch": "pass", "accumulate": 4}, 3, 6),
        ({"epochs": 2, "iterations_per_epoch": 5, "accumulate": 4}, 5, 10),  # steps, not batches
        ({"epochs": None, "max_steps": 30, "iterations_per_epoch": "pass"}, 11, 30),
    ],
)
def test_the_length_is_what_the_settings_name(changes, per_epoch, total):
    of = params(**{f"train__{key}": value for key, value in changes.items()}).train
    assert length(of, n_cases=21, batch_size=2) == Length(per_epoch, total)


def test_a_pass_over_fewer_cases_than_a_batch_is_one_step():
    assert length(params(train__iterations_per_epoch="pass").train, n_cases=3, batch_size=8) == Length(1, 3)


@given(per_epoch=st.integers(1, 9), total=st.integers(1, 60))
def test_epochs_follow_each_other_to_the_last_step(per_epoch, total):
    one, step, seen, left = Length(per_epoch, total), 0, [], []
    while step < total:
        left.append(one.epochs_after(step))
        steps = one.epoch_from(step)
        assert 0 < len(steps) <= per_epoch
        assert len(steps) == per_epoch or steps.stop == total
        seen, step = [*seen, *steps], steps.stop
    assert seen == list(range(total))
    assert left == list(range(len(left), 0, -1))
    assert one.epochs_after(total) == 0


def test_an_extended_training_first_ends_the_epoch_that_was_cut_short():
    longer = Length(5, 19)
    assert longer.epoch_from(12) == range(12, 15)
    assert longer.epochs_after(12) == 2
    assert longer.epoch_from(15) == range(15, 19)


@pytest.mark.parametrize("warmup", [9, 10, 500])
def test_a_warm_up_as_long_as_the_training_is_refused(warmup):
    with pytest.raises(SegpipeError) as error:
        length(block(warmup_steps=warmup), 4, 2)  # three epochs of three steps
    assert "train.schedule.warmup_steps" in str(error.value)
    assert f"found:    {warmup}" in str(error.value)
    assert "fewer than the 9 steps" in str(error.value)
    assert length(block(warmup_steps=8), 4, 2).total_steps == 9
