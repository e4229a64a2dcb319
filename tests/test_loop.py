"""The loop: the same steps as written down plainly, accumulation, running mean, resume at any point, Dice."""

import threading
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from memory import run, setup, training, weights
from tiny import FOUR, planned

from segpipe.errors import SegpipeError
from segpipe.training import loop, selection
from segpipe.training.checkpoint import load, save, snapshot
from segpipe.training.loop import evaluate, fit, train_step
from segpipe.training.network import build, outputs

CLASSES = ["one", "two", "three"]


def plain_loss(logits, label, batch_dice=False):
    """nnU-Net's soft Dice plus cross-entropy, of one resolution."""
    reference = torch.nn.functional.one_hot(label, 4).movedim(-1, 1)[:, 1:].flatten(2).float()
    probability = logits.softmax(1)[:, 1:].flatten(2)
    sums = [(probability * reference).sum(2), probability.sum(2), reference.sum(2)]
    overlap, mass, voxels = [one.sum(0) for one in sums] if batch_dice else sums
    dice = (2 * overlap + 1e-5) / (mass + voxels + 1e-5)
    return torch.nn.functional.cross_entropy(logits, label) - dice.mean()


# the plain loop


def test_fit_is_the_plain_loop():
    """Epochs, steps, rate, loss, clipping and SGD, without segpipe's loop, loss and optimiser."""
    changes = {"train__epochs": 3, "train__optimiser__learning_rate": 0.05, "train__optimiser__clip_norm": 0.5}
    one, other = training(**changes), training(**changes)
    seen = []
    fit(one, lambda: seen.append(one.step), lambda row, seconds: None)
    assert seen == [0, 1, 2, 3, 3, 3, 4, 5, 6, 6, 6, 7, 8, 9, 9]  # three steps and two validation batches, three times
    network = other.network.train()
    sgd = torch.optim.SGD(network.parameters(), 1, momentum=0.99, nesterov=True, weight_decay=3e-5)
    for epoch in range(3):
        for group in sgd.param_groups:
            group["lr"] = 0.05 * (1 - epoch / 3) ** 0.9
        losses = []
        for step in range(epoch * 3, epoch * 3 + 3):
            batch = other.feed.training(step)
            loss = plain_loss(network(batch.image), batch.label)
            sgd.zero_grad()
            loss.backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters() if p.grad is not None))
            assert norm > 0.5  # the clipping is seen to work
            for p in network.parameters():
                if p.grad is not None:
                    p.grad *= 0.5 / norm
            sgd.step()
            losses.append(loss.item())
        assert one.rows[epoch]["epoch"] == epoch + 1
        assert one.rows[epoch]["step"] == 3 * epoch + 3
        assert one.rows[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert one.rows[epoch]["learning_rate"] == pytest.approx(0.05 * (1 - epoch / 3) ** 0.9)
    assert torch.allclose(weights(one.network), weights(network), atol=1e-4)
    assert not torch.allclose(weights(one.network), weights(training().network), atol=1e-3)


def test_without_a_clip_norm_gradients_keep_their_length():
    """As with one that no gradient reaches. The loss is so steep that the default one would shorten them."""
    steep = {"train__epochs": 1, "train__loss__voxel_weight": 1000.0, "train__optimiser__learning_rate": 1e-5}
    none, large, default = (run(training(train__optimiser__clip_norm=norm, **steep)) for norm in (None, 1e6, 12.0))
    assert torch.equal(weights(none.network), weights(large.network))
    assert not torch.allclose(weights(none.network), weights(default.network), atol=1e-4)


def test_the_rate_of_an_iteration_is_used_and_the_last_one_is_written(monkeypatch):
    rates = []
    one = training(
        train__epochs=2,
        train__schedule__per="iteration",
        train__schedule__warmup_steps=4,
        train__schedule__name="cosine",
    )
    original = one.optimiser.step
    monkeypatch.setattr(one.optimiser, "step", lambda: rates.append(one.optimiser.param_groups[0]["lr"]) or original())
    run(one)
    assert rates == [one.rate(step) for step in range(6)]
    assert len(set(rates)) == 5  # the last of the warm-up and the first after it are both the full rate
    assert [row["learning_rate"] for row in one.rows] == [one.rate(2), one.rate(5)]


def test_max_steps_ends_within_an_epoch_which_is_evaluated_too():
    one = run(training(train__epochs=None, train__max_steps=7))
    assert [row["step"] for row in one.rows] == [3, 6, 7]
    assert one.is_over()
    whole = run(training(train__epochs=3, train__schedule__name="constant"))
    cut = run(training(train__epochs=None, train__max_steps=7, train__schedule__name="constant"))
    assert cut.rows[:2] == whole.rows[:2]
    assert cut.epochs == whole.epochs == 3


def test_an_epoch_may_be_a_pass_over_the_cases():
    one = run(training(train__epochs=2, train__iterations_per_epoch="pass", train__replacement=False))
    assert [row["step"] for row in one.rows] == [2, 4]  # three cases in batches of two


def test_the_loss_falls():
    one = training(
        train__epochs=8, train__iterations_per_epoch=6, train__augment=False, train__optimiser__learning_rate=0.02
    )
    for case in one.feed.store.content.values():  # something to be learnt: the label is seen in the image
        case.image[0] += case.label
    run(one)
    assert one.rows[-1]["train_loss"] < one.rows[0]["train_loss"] - 0.2
    assert one.rows[-1]["val_loss"] < one.rows[0]["val_loss"] - 0.2


def test_adamw_trains():
    adamw = {"train__optimiser__name": "adamw", "train__optimiser__learning_rate": 0.01}
    one, other = run(training(**adamw)), run(training())
    assert one.rows[-1]["train_loss"] < one.rows[0]["train_loss"]
    assert not torch.allclose(weights(one.network), weights(other.network), atol=1e-3)


def test_the_seed_decides_everything():
    one, same, other = run(training()), run(training()), run(training(train__seed=1))
    assert one.rows == same.rows
    assert torch.equal(weights(one.network), weights(same.network))
    assert one.rows != other.rows


def test_frozen_parameters_stay_as_they_are():
    one = training(train__freeze=["encoder.*"], train__epochs=1, train__ema__decay=0.5)
    before = {key: value.clone() for key, value in one.network.state_dict().items()}
    run(one)
    for network in (one.network, one.averaged):
        same = {key for key, value in network.state_dict().items() if torch.equal(value, before[key])}
        assert {key for key in before if key.startswith("encoder.")} <= same
        assert "decoder.seg_layers.1.weight" not in same


# what a network draws itself


DROPPING = {"train__network": "memory:Dropping"}
JOINT = {**DROPPING, "train__accumulate": 2}


def test_dropout_is_decided_by_the_seed():
    one, same = training(**DROPPING), training(**DROPPING)
    run(one)
    torch.rand(7)
    run(same, lambda: torch.rand(3))  # numbers that others draw do not matter
    assert one.rows == same.rows
    assert one.network.drawn == same.network.drawn
    other = run(training(**DROPPING, train__seed=1))
    masks = [tuple(mask) for mask in one.network.drawn + other.network.drawn]
    assert len(masks) == len(set(masks)) == 18  # other in each step and with each seed


def test_the_batches_of_an_accumulated_step_have_masks_of_their_own():
    one = run(training(**JOINT, train__epochs=1))
    assert len({tuple(mask) for mask in one.network.drawn}) == len(one.network.drawn) == 6


def test_both_passes_of_a_joint_step_see_the_same_dropout():
    plan = planned(batch_dice=True)
    one, seen = training(plan, **JOINT), []
    one.forward = lambda network, x, n: [seen.append(y.detach().clone()) or y for y in outputs(network, x, n)]
    step_by_step(one, 2)
    first, again = [seen[0], seen[1], seen[4], seen[5]], [seen[2], seen[3], seen[6], seen[7]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(seen[0], seen[1])


def test_batch_norm_counts_each_batch_of_a_joint_step_once():
    """As where the batches need not know of each other; what it has counted is there before the second step."""
    joint, apart = (training(planned(batch_dice=batch_dice), **JOINT) for batch_dice in (True, False))
    step_by_step(joint, 1)
    step_by_step(apart, 1)
    for one, other in zip(joint.network.norm.buffers(), apart.network.norm.buffers(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(joint.network.norm.running_mean, torch.zeros(8))
    run(joint)
    assert joint.network.norm.num_batches_tracked == 2 + 2 * 9  # the step above, then nine


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("call", [1, 2, 5, 9])
def test_a_training_with_dropout_continues_bit_by_bit(batch_dice, call):
    plan = planned(batch_dice=batch_dice)
    whole, stopped, one = (training(plan, **{**RESUMED, **DROPPING}) for _ in range(3))
    run(whole)
    with pytest.raises(Stop):
        run(stopped, stop_at(call))
    torch.rand(5)  # another process has drawn others
    restore(one, stopped)
    assert same(run(one), whole)


@pytest.mark.parametrize(
    ("network", "found"), [("unpadded", "(2, 4, 6, 6, 6)"), ("one_class_too_many", "(2, 5, 8, 8, 8)")]
)
@pytest.mark.parametrize("plan", [planned(), planned(batch_dice=True)])
def test_a_network_whose_output_does_not_fit_is_told_with_both_shapes(plan, network, found):
    one = training(plan, train__network=f"memory:{network}", train__accumulate=2)
    with pytest.raises(SegpipeError) as error:
        run(one)
    text = str(error.value)
    assert "where:    params.yaml: train.network" in text
    assert f"found:    logits of shape {found}" in text
    assert "expected: (2, 4, 8, 8, 8)" in text


# fp16


def scaled(**changes):
    """A training as under fp16, on the CPU, in float32: what is tested is the scaler."""
    made = replace(setup(**changes), dtype=torch.float16)
    return replace(made.training(None, lambda: None), dtype=torch.float32)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_overflow_in_the_first_step_leaves_it_out_and_trains_on(name):
    one = scaled(train__optimiser__name=name)
    assert one.scaler.is_enabled()
    start, after, calls, step = weights(one.network).clone(), [], [], one.scaler.step

    def overflow(gradient):
        calls.append(1)
        return gradient * torch.inf if len(calls) == 1 else gradient

    next(one.network.parameters()).register_hook(overflow)
    one.scaler.step = lambda optimiser: [step(optimiser), after.append(weights(one.network).clone())]
    scale = one.scaler.get_scale()
    run(one)
    assert len(calls) == len(after) == 9
    assert torch.equal(after[0], start)
    assert not torch.equal(after[1], start)
    assert one.scaler.get_scale() == scale / 2
    kept = [value for state in one.optimiser.state.values() for value in state.values()]
    assert kept
    assert all(torch.as_tensor(value).isfinite().all() for value in kept)
    assert weights(one.network).isfinite().all()
    assert [row["step"] for row in one.rows] == [3, 6, 9]
    assert all(np.isfinite(row["train_loss"]) for row in one.rows)


def test_without_an_overflow_scaling_changes_nothing_that_counts():
    """Gradients are clipped and averaged as if they had never been scaled."""
    changes = {"train__accumulate": 2, "train__optimiser__clip_norm": 0.5}
    one, plain = run(scaled(**changes)), run(training(**changes))
    assert [row["train_loss"] for row in one.rows] == pytest.approx([row["train_loss"] for row in plain.rows], abs=1e-5)
    assert torch.allclose(weights(one.network), weights(plain.network), atol=1e-5)


# precision, determinism


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_close_to_float32(dtype):
    plan = planned((16, 16, 16))
    full, half = training(plan, train__epochs=1), training(plan, train__epochs=1)
    half.dtype = dtype
    run(full)
    run(half)
    assert half.rows[0]["train_loss"] == pytest.approx(full.rows[0]["train_loss"], abs=0.02)
    assert half.rows[0]["val_loss"] == pytest.approx(full.rows[0]["val_loss"], abs=0.02)
    assert half.rows[0]["train_loss"] != full.rows[0]["train_loss"]
    assert half.rows[0]["val_loss"] != full.rows[0]["val_loss"]
    assert all(p.dtype == torch.float32 for p in half.network.parameters())


def test_bf16_is_chosen_by_the_settings():
    assert training(planned((16, 16, 16)), train__precision="bf16").dtype == torch.bfloat16
    assert training(train__precision="off").dtype == torch.float32


@pytest.fixture
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.mark.usefixtures("deterministic")
def test_a_deterministic_training_runs_and_is_the_same_on_the_cpu():
    plain = run(training(train__ema__decay=0.9))
    one = training(train__ema__decay=0.9, train__deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    run(one)
    assert one.rows == plain.rows
    assert torch.equal(weights(one.network), weights(plain.network))
    training()
    assert not torch.are_deterministic_algorithms_enabled()


# a step


def test_the_step_trains_after_a_validation_and_returns_its_loss_without_gradient():
    one = training()
    evaluate(one, lambda: None)
    assert not one.network.training
    loss = train_step(one, 0, [one.feed.training(0)])
    assert not loss.requires_grad
    assert one.network.training


def gradients(one):
    return torch.cat([p.grad.flatten() for p in one.network.parameters() if p.grad is not None])


def step_by_step(one, steps):
    """Loss and gradient of each step."""
    result, k = [], one.settings.accumulate
    for step in range(steps):
        loss = train_step(one, step, [one.feed.training(k * step + i) for i in range(k)])
        result.append((loss, gradients(one).clone()))
    return result


@pytest.mark.parametrize("batch_dice", [False, True])
def test_four_accumulated_batches_of_two_equal_one_of_eight(batch_dice):
    plan, clipped = planned(batch_dice=batch_dice), {"train__optimiser__clip_norm": 0.5}
    large = training(replace(plan, batch_size=8), **clipped)
    small = training(plan, train__accumulate=4, **clipped)
    found, expected = step_by_step(small, 4), step_by_step(large, 4)
    for (loss, gradient), (whole_loss, whole_gradient) in zip(found, expected, strict=True):
        assert float(loss) == pytest.approx(float(whole_loss), abs=1e-5)
        assert torch.allclose(gradient, whole_gradient, atol=1e-5)
    assert torch.allclose(weights(small.network), weights(large.network), atol=1e-6)
    # and it is seen what is tested: neither two samples nor the other Dice come close
    for other in (training(plan, **clipped), training(planned(batch_size=8, batch_dice=not batch_dice), **clipped)):
        assert not torch.allclose(step_by_step(other, 1)[0][1], expected[0][1], atol=1e-3)


def test_a_whole_accumulated_training_equals_the_large_one():
    settings = {"train__epochs": 2, "train__replacement": False, "train__ema__decay": 0.5}
    large, small = training(planned(batch_size=8), **settings), training(train__accumulate=4, **settings)
    run(large)
    run(small)
    assert [row["step"] for row in small.rows] == [row["step"] for row in large.rows] == [3, 6]
    for row, other in zip(small.rows, large.rows, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert row["learning_rate"] == other["learning_rate"]
    assert torch.allclose(weights(small.averaged), weights(large.averaged), atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "changes", "forwards"),
    [
        (planned(batch_dice=True), {"train__accumulate": 3}, 6),
        (planned(batch_dice=True), {}, 1),
        (planned(), {"train__accumulate": 3}, 3),
        (planned(batch_dice=True), {"train__accumulate": 3, "train__loss__region_weight": 0.0}, 3),
    ],
)
def test_the_second_forward_pass_is_only_made_where_the_dice_needs_it(plan, changes, forwards):
    one, calls = training(plan, **changes), []
    one.forward = lambda network, x, n: calls.append(1) or outputs(network, x, n)
    step_by_step(one, 1)
    assert len(calls) == forwards


# feeding


@pytest.fixture(scope="module")
def unthreaded():
    return run(training(train__epochs=2, train__accumulate=2))


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 9), (1, 1), (3, 1), (3, 4), (2, 50)])
def test_threads_that_prepare_batches_change_nothing(unthreaded, threads, prefetch):
    one = training(train__epochs=2, train__accumulate=2, runtime__feed_threads=threads, runtime__prefetch=prefetch)
    assert (one.feed_threads, one.prefetch) == (threads, prefetch)
    run(one)
    assert one.rows == unthreaded.rows
    assert torch.equal(weights(one.network), weights(unthreaded.network))


@pytest.mark.parametrize("threads", [0, 3])
def test_an_error_in_a_feeding_thread_ends_the_training(threads):
    one, before = training(runtime__feed_threads=threads), threading.active_count()
    del one.feed.held.cases["c1"]
    with pytest.raises(KeyError, match="c1"):
        run(one)
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_training_that_stops_early_leaves_no_thread(threads):
    before = threading.active_count()
    stopping = {"patience": 2, "monitor": "val_loss", "min_delta": 100.0, "min_epochs": 0}
    one = training(train__epochs=500, train__early_stopping=stopping, runtime__feed_threads=threads)
    run(one)
    assert len(one.rows) == 3
    assert one.is_over()
    assert threading.active_count() == before
    run(one)  # nothing is left to do
    assert len(one.rows) == 3


# the running mean of the weights


def test_the_averaged_weights_are_those_after_each_step(monkeypatch):
    one, seen = training(train__epochs=2, train__ema__decay=0.7), []
    start = weights(one.network).clone()
    original = train_step
    monkeypatch.setattr(loop, "train_step", lambda *a: [original(*a), seen.append(weights(one.network).clone())][0])
    run(one)
    expected = 0.7**6 * start + sum(0.3 * 0.7 ** (5 - i) * value for i, value in enumerate(seen))
    assert len(seen) == 6
    assert torch.allclose(weights(one.averaged), expected, atol=1e-5)
    assert not torch.allclose(weights(one.averaged), weights(one.network), atol=1e-3)


def test_the_ramp_follows_the_steps_of_the_whole_training(monkeypatch):
    decays = []
    one = training(train__epochs=2, train__ema={"decay": 0.9, "ramp_steps": 3})
    monkeypatch.setattr(loop.averaging, "update", lambda averaged, network, decay: decays.append(decay))
    run(one)
    assert decays == pytest.approx([0.9 * (1 - np.exp(-t / 3)) for t in range(1, 7)])


def test_keeping_an_average_changes_nothing_but_adds_its_columns():
    plain, one = run(training()), run(training(train__ema__decay=0.9))
    assert torch.equal(weights(one.network), weights(plain.network))
    for row, other in zip(one.rows, plain.rows, strict=True):
        averaged = {key: value for key, value in row.items() if key.startswith("averaged_")}
        assert {key: value for key, value in row.items() if key not in averaged} == other
        assert set(averaged) == {"averaged_val_loss", "averaged_dice_mean", *(f"averaged_dice_{c}" for c in CLASSES)}
        assert averaged["averaged_val_loss"] != row["val_loss"]
    # the columns of the last row are what the averaged weights give
    raw = training()
    raw.network.load_state_dict(one.averaged.state_dict())
    assert {f"averaged_{key}": value for key, value in evaluate(raw, lambda: None).items()} == averaged


def test_without_a_decay_there_is_no_average():
    assert training().averaged is None


# rows


@pytest.mark.parametrize("changes", [{}, {"train__ema__decay": 0.9}])
def test_rows_have_the_columns_in_their_order(changes):
    one = run(training(train__epochs=1, **changes))
    assert list(one.rows[0]) == selection.columns(one.settings, CLASSES)


def test_whole_cases_are_scored_every_so_many_epochs_with_the_weights_of_the_setting():
    for chosen in ("raw", "averaged"):
        full = {"every": 2, "weights": chosen, "step_size": 1.0, "mirroring": False}
        networks, scores = [], iter([0.25, 0.5])

        def score(network, seen=networks, scores=scores):
            seen.append(network)
            return dict.fromkeys([f"case_dice_{name}" for name in ["mean", *CLASSES]], next(scores))

        made = setup(train__epochs=4, train__ema__decay=0.9, train__full_validation=full)
        one = made.training(lambda *_, score=score: score, lambda: None)
        run(one)
        assert networks == [one.averaged if chosen == "averaged" else one.network] * 2
        assert [row["case_dice_mean"] for row in one.rows] == [None, 0.25, None, 0.5]
        assert [row["case_dice_two"] for row in one.rows] == [None, 0.25, None, 0.5]
        for row in one.rows:
            assert list(row) == selection.columns(one.settings, CLASSES)


def test_the_running_means_are_those_of_the_settings():
    best = {"fitness": {"dice_one": 0.5, "val_loss": -0.1}, "smoothing": 0.8}
    one = run(training(train__epochs=3, train__best=best))
    dice, fitness = None, None
    for row in one.rows:
        value = 0.5 * row["dice_one"] - 0.1 * row["val_loss"]
        dice = row["dice_mean"] if dice is None else 0.8 * dice + 0.2 * row["dice_mean"]
        fitness = value if fitness is None else 0.8 * fitness + 0.2 * value
        assert (row["dice_ema"], row["fitness_ema"]) == (pytest.approx(dice), pytest.approx(fitness))


def test_what_is_called_at_the_end_of_an_epoch_gets_its_row_and_a_time():
    one, calls = training(), []
    fit(one, lambda: None, lambda row, seconds: calls.append((row, seconds, len(one.rows), len(one.losses))))
    assert [row for row, *_ in calls] == one.rows
    assert [n for _, _, n, _ in calls] == [1, 2, 3]
    assert all(0 < seconds < 60 and n == 0 for _, seconds, _, n in calls)


# resume


RESUMED = {
    "train__epochs": 3,
    "train__iterations_per_epoch": 2,
    "train__val_iterations_per_epoch": 1,
    "train__ema": {"decay": 0.8, "ramp_steps": 3},
    "train__accumulate": 2,
    "train__replacement": False,
    "train__schedule__per": "iteration",
}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.float64(0.5), "numpy.float64"),
        (np.int64(3), "numpy.int64"),
        (np.ones(2), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (Fraction(1, 2), "fractions.Fraction"),
        (len, "builtins.builtin_function_or_method"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"rows": [{"mine": (1.0, value)}]}])
def test_what_a_resume_could_not_read_is_refused_when_it_is_saved(value, found, wrap):
    with pytest.raises(SegpipeError) as error:
        snapshot({"state": wrap(value)})
    text = str(error.value)
    assert f"of type {found}\n" in text
    assert "convert it: float(...)" in text


def test_all_of_a_training_can_be_read_again(tmp_path):
    one = run(scaled(**RESUMED))
    content = {
        "optimiser": one.optimiser.state_dict(),
        "scaler": one.scaler.state_dict(),
        "rows": one.rows,
        "network": one.network.state_dict(),
    }
    save(tmp_path / "a.pth", snapshot(content))
    assert load(tmp_path / "a.pth")["rows"] == one.rows


class Stop(Exception):
    pass


def stop_at(call):
    """A `between` that raises when it is called for the `call`th time."""
    calls = iter(range(10**6))

    def between():
        if next(calls) == call:
            raise Stop

    return between


def resumed(one, **changes):
    """A new training that goes on where `one` was stopped."""
    other = training(**RESUMED, **changes)
    restore(other, one)
    return other


def restore(other, one):
    """Bring a training to where another was stopped, from copies of what a checkpoint holds."""
    other.network.load_state_dict(snapshot(one.network.state_dict()))
    other.averaged.load_state_dict(snapshot(one.averaged.state_dict()))
    other.optimiser.load_state_dict(snapshot(one.optimiser.state_dict()))
    other.rows, other.losses = [dict(row) for row in one.rows], snapshot(one.losses)


@pytest.fixture(scope="module")
def undisturbed():
    return run(training(**RESUMED))


def same(one, other):
    return (
        one.rows == other.rows
        and torch.equal(weights(one.network), weights(other.network))
        and torch.equal(weights(one.averaged), weights(other.averaged))
    )


CALLS = 3 * (2 + 2)  # two steps, one validation batch of the raw and one of the averaged weights per epoch


@pytest.mark.parametrize("call", range(CALLS))
def test_a_training_that_is_stopped_anywhere_continues_bit_by_bit(undisturbed, call):
    stopped = training(**RESUMED, runtime__feed_threads=call % 3)
    with pytest.raises(Stop):
        run(stopped, stop_at(call))
    assert (len(stopped.rows), len(stopped.losses)) == (call // 4, min(call % 4, 2))
    assert not stopped.is_over()
    one = resumed(stopped)
    assert one.step == stopped.step
    assert one.epochs == 3
    assert same(run(one), undisturbed)


def test_between_is_called_that_often_and_a_training_may_be_stopped_again_and_again(undisturbed):
    one = training(**RESUMED)
    with pytest.raises(Stop):
        run(one, stop_at(1))
    for call in (0, 1, 1, 2, 1, 3, 1):  # 2 is right before an evaluation
        one = resumed(one)
        with pytest.raises(Stop):
            run(one, stop_at(call))
    assert same(run(one), undisturbed)  # the same object goes on as well
    assert run(training(**RESUMED), stop_at(CALLS)).is_over()


def test_a_finished_training_is_extended_from_its_end():
    """With a constant rate and whole epochs the longer training is the same as one of that length from the start."""
    changes = {"train__schedule__name": "constant"}
    long = run(training(**{**RESUMED, "train__epochs": 4, **changes}))
    short = run(training(**{**RESUMED, "train__epochs": 2, **changes}))
    one = training(**{**RESUMED, "train__epochs": 4, **changes})
    one.network.load_state_dict(short.network.state_dict())
    one.averaged.load_state_dict(short.averaged.state_dict())
    one.optimiser.load_state_dict(short.optimiser.state_dict())
    one.rows = short.rows
    assert same(run(one), long)


# validation


class Prescribed(torch.nn.Module):
    """A network that is certain of given label maps."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def supervised(self, image, n_outputs):
        assert not self.training
        hot = torch.nn.functional.one_hot(self.maps.pop(0), 4).movedim(-1, 1).float()
        return [10 * hot]


def validated(one):
    return evaluate(one, lambda: None)


def test_dice_counts_the_voxels_of_all_patches_together():
    one = training()
    references = [one.feed.validation(step).label for step in range(one.settings.val_iterations_per_epoch)]
    generator = torch.Generator().manual_seed(0)
    # right in part; class 1 is never predicted
    predictions = [
        torch.where(torch.rand(label.shape, generator=generator) < 0.3, 2, label).where(label != 1, 0)
        for label in references
    ]
    network, one.network = one.network, Prescribed([p.clone() for p in predictions])
    row = validated(one)
    predicted, reference = torch.stack(predictions).numpy(), torch.stack(references).numpy()
    expected = {
        name: 2 * ((predicted == v) & (reference == v)).sum() / ((predicted == v).sum() + (reference == v).sum())
        for name, (v,) in FOUR.foreground.items()
    }
    assert {name: row[f"dice_{name}"] for name in expected} == pytest.approx(expected)
    assert row["dice_one"] == 0
    assert row["dice_mean"] == pytest.approx(np.mean(list(expected.values())))
    per_patch = [
        2 * ((p == 2) & (r == 2)).sum() / ((p == 2).sum() + (r == 2).sum())
        for p, r in zip(predicted.reshape(-1, 8, 8, 8), reference.reshape(-1, 8, 8, 8), strict=True)
    ]
    assert row["dice_two"] != pytest.approx(np.mean(per_patch), abs=1e-4)
    # the loss is the mean over the batches
    one.network = network
    losses = []
    for step in range(one.settings.val_iterations_per_epoch):
        batch = one.feed.validation(step)
        with torch.no_grad():
            losses.append(float(plain_loss(network(batch.image), batch.label)))
    assert validated(one)["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_class_that_is_nowhere_has_no_dice_and_leaves_the_mean_alone():
    one = training()
    for case in one.feed.store.content.values():
        case.label[case.label == 3] = 0
    references = [one.feed.validation(step).label for step in range(one.settings.val_iterations_per_epoch)]
    one.network = Prescribed(list(references))
    row = validated(one)
    assert row["dice_three"] is None
    assert row["dice_one"] == row["dice_two"] == row["dice_mean"] == 1
    for case in one.feed.store.content.values():
        case.label[:] = 0
    one.network = Prescribed([torch.zeros_like(label) for label in references])
    nothing = validated(one)
    assert (nothing["dice_mean"], nothing["dice_one"]) == (None, None)  # no class was there, none was missed


def without_loss(epochs, **changes):
    """A training whose validation loss is no number in some epochs."""
    one = training(train__augment=False, **changes)
    case = one.feed.store.content["c3"]
    sound = case.image.copy()

    def on_epoch_end(row, seconds):
        case.image[:] = np.nan if row["epoch"] + 1 in epochs else sound

    fit(one, lambda: None, on_epoch_end)
    return one


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_validation_loss_that_is_no_number_does_not_exist(value):
    one = training()
    one.objective = lambda outputs, label, elsewhere, known: outputs[0].mean() + value
    assert validated(one)["val_loss"] is None


def test_an_epoch_without_a_validation_loss_leaves_the_fitness():
    best = {"fitness": {"val_loss": -1.0}, "smoothing": 0.5}
    one, plain = without_loss([2], train__best=best), without_loss([], train__best=best)
    losses, expected = ([row["val_loss"] for row in of.rows] for of in (one, plain))
    assert losses == [expected[0], None, expected[2]]
    assert None not in expected
    means = [row["fitness_ema"] for row in one.rows]
    assert means == pytest.approx([-losses[0], -losses[0], -(losses[0] + losses[2]) / 2])
    assert torch.equal(weights(one.network), weights(plain.network))


def test_an_epoch_without_a_validation_loss_ends_no_training():
    """The third would be the second without an improvement; the fourth is measured, and is the third."""
    early = {"patience": 2, "monitor": "val_loss", "min_delta": 100.0, "min_epochs": 0}
    one = without_loss([3], train__epochs=9, train__early_stopping=early)
    assert [row["val_loss"] is None for row in one.rows] == [False, False, True, False]
    assert one.is_over()
    never = without_loss(range(2, 10), train__epochs=5, train__early_stopping=early)
    assert len(never.rows) == 5


def test_validation_changes_neither_weights_nor_later_epochs():
    one = training(train__ema__decay=0.9)
    before = weights(one.network)
    assert validated(one) == validated(one)
    assert torch.equal(weights(one.network), before)
    assert all(p.grad is None for p in one.network.parameters())
    one.settings = one.settings.model_copy(update={"val_iterations_per_epoch": 5})
    run(one)
    plain = run(training(train__ema__decay=0.9))
    assert torch.equal(weights(one.network), weights(plain.network))


def test_as_many_validation_batches_as_the_settings_say():
    calls = []
    evaluate(training(train__val_iterations_per_epoch=5), lambda: calls.append(1))
    evaluate(training(train__val_iterations_per_epoch=5, train__ema__decay=0.9), lambda: calls.append(1))
    assert len(calls) == 5 + 10


# networks of other forms


def test_two_stages_have_one_supervised_output():
    """Where nnU-Net's weights are 0 / 0."""
    flat = planned(
        features_per_stage=[4, 8],
        kernel_sizes=[[3] * 3] * 2,
        strides=[[1] * 3, [2] * 3],
        n_conv_per_stage=[2, 2],
        n_conv_per_stage_decoder=[2],
    )
    one = run(training(flat, train__epochs=1))
    assert one.n_outputs == 1
    assert np.isfinite(one.rows[0]["train_loss"])


def test_all_resolutions_that_are_weighted_enter_the_loss():
    one = training(train__loss__deep_supervision=[0.75, 0.25])
    batch = one.feed.training(0)
    network = build(1, 4, planned(), one.settings)
    fine, coarse = network.supervised(batch.image, 2)
    expected = 0.75 * plain_loss(fine, batch.label) + 0.25 * plain_loss(coarse, batch.label[:, 1::2, 1::2, 1::2])
    assert float(train_step(one, 0, [batch])) == pytest.approx(expected.item(), rel=1e-5)


def test_slices_train_too():
    one = run(training(planned((8, 8)), train__epochs=1))
    assert np.isfinite(one.rows[0]["train_loss"])
    assert setup(planned((8, 8))).facts["parameters"] < setup().facts["parameters"]
