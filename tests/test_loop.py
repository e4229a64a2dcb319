"""The loop: the same steps as written down plainly, Dice over all validation patches, the running mean."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import params, planned, random_case

from segpipe.errors import SegpipeError
from segpipe.training import loop
from segpipe.training.feed import Feed
from segpipe.training.loop import Training, evaluate, fit, train_step
from segpipe.training.loss import supervised_loss
from segpipe.training.network import build
from segpipe.training.schedule import optimiser

LABELS = {"background": 0, "one": 1, "two": 2, "three": 3}


def training(dtype=torch.float32, **changes) -> Training:
    """A training on cases in memory."""
    settings = params(**changes).train
    content = {f"c{i}": random_case((14, 14, 14), seed=i) for i in range(4)}
    store = SimpleNamespace(open=content.get, content=content, planned=planned(), cases=SimpleNamespace(labels=LABELS))
    network = build(1, 4, planned(), settings.seed)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    feed = Feed(store, ["c0", "c1", "c2"], ["c3"], settings)
    return Training(network, optimiser(network, settings), scaler, feed, settings, torch.device("cpu"), dtype, 0, [])


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def run(one: Training) -> list[tuple[int, int]]:
    steps = []
    fit(one, lambda epoch, step: steps.append((epoch, step)), lambda row, seconds: None)
    return steps


def test_fit_is_the_plain_loop():
    """Epochs, steps, rate, loss, clipping and SGD, without segpipe's loop and optimiser."""
    changes = {"train__epochs": 3, "train__learning_rate": 0.05, "train__gradient_clip_norm": 0.5}
    one, other = training(**changes), training(**changes)
    assert run(one) == [(epoch, step) for epoch in range(3) for step in range(3)]
    network, settings = other.network.train(), other.settings
    sgd = torch.optim.SGD(network.parameters(), 1, momentum=0.99, nesterov=True, weight_decay=3e-5)
    for epoch in range(3):
        for group in sgd.param_groups:
            group["lr"] = 0.05 * (1 - epoch / 3) ** 0.9
        losses = []
        for step in range(epoch * 3, epoch * 3 + 3):
            batch = other.feed.training(step)
            loss = supervised_loss([network(batch.image)], batch.label, batch_dice=False)
            sgd.zero_grad()
            loss.backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters() if p.grad is not None))
            assert norm > settings.gradient_clip_norm  # the clipping is seen to work
            for p in network.parameters():
                if p.grad is not None:
                    p.grad *= settings.gradient_clip_norm / norm
            sgd.step()
            losses.append(loss.item())
        assert one.rows[epoch]["epoch"] == epoch + 1
        assert one.rows[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert one.rows[epoch]["learning_rate"] == pytest.approx(0.05 * (1 - epoch / 3) ** 0.9)
    assert torch.allclose(weights(one.network), weights(network), atol=1e-4)
    assert not torch.allclose(weights(one.network), weights(training().network), atol=1e-3)


def test_a_training_continues_where_its_rows_end():
    whole, parts = training(), training()
    run(whole)

    def interrupt(epoch, step):
        if (epoch, step) == (2, 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(parts, interrupt, lambda row, seconds: None)
    assert len(parts.rows) == 2
    assert run(parts) == [(2, 0), (2, 1), (2, 2)]
    assert parts.rows == whole.rows
    assert torch.equal(weights(parts.network), weights(whole.network))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_threads_that_prepare_batches_change_nothing(prefetch):
    one, plain = training(train__epochs=2), training(train__epochs=2)
    one.prefetch = prefetch
    run(one)
    run(plain)
    assert one.rows == plain.rows
    assert torch.equal(weights(one.network), weights(plain.network))


def test_the_loss_falls():
    one = training(train__epochs=8, train__iterations_per_epoch=6, train__augment=False, train__learning_rate=0.02)
    for case in one.feed.store.content.values():  # something to be learnt: the label is seen in the image
        case.image[0] += case.label
    run(one)
    assert one.rows[-1]["train_loss"] < one.rows[0]["train_loss"] - 0.2
    assert one.rows[-1]["val_loss"] < one.rows[0]["val_loss"] - 0.2


def test_bf16_trains_close_to_float32():
    full, half = training(train__epochs=1), training(torch.bfloat16, train__epochs=1)
    run(full)
    run(half)
    assert half.rows[0]["train_loss"] == pytest.approx(full.rows[0]["train_loss"], abs=0.02)
    assert half.rows[0]["train_loss"] != full.rows[0]["train_loss"]
    assert all(p.dtype == torch.float32 for p in half.network.parameters())


def test_the_step_returns_its_loss_without_gradient():
    one = training()
    loss = train_step(one, one.feed.training(0))
    assert not loss.requires_grad
    assert one.network.training


def test_a_training_that_diverges_stops():
    one = training()
    with torch.no_grad():
        next(one.network.parameters()).fill_(float("nan"))
    with pytest.raises(SegpipeError, match=r"nan in epoch 1.*learning_rate"):
        run(one)
    assert one.rows == []


# ---- validation ------------------------------------------------------------------------------------------------------


class Prescribed(torch.nn.Module):
    """A network that is certain of given label maps."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def supervised(self, image, n_outputs):
        assert not self.training
        hot = torch.nn.functional.one_hot(self.maps.pop(0), 4).movedim(-1, 1).float()
        return [10 * hot]


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
    row = evaluate(one)
    predicted, reference = torch.stack(predictions).numpy(), torch.stack(references).numpy()
    expected = {
        name: 2 * ((predicted == v) & (reference == v)).sum() / ((predicted == v).sum() + (reference == v).sum())
        for name, v in LABELS.items()
        if v
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
            losses.append(float(supervised_loss([network(batch.image)], batch.label, batch_dice=False)))
    assert evaluate(one)["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_class_that_is_nowhere_has_no_dice_and_leaves_the_mean_alone():
    one = training()
    for case in one.feed.store.content.values():
        case.label[case.label == 3] = 0
    references = [one.feed.validation(step).label for step in range(one.settings.val_iterations_per_epoch)]
    one.network = Prescribed(list(references))
    row = evaluate(one)
    assert row["dice_three"] is None
    assert row["dice_one"] == row["dice_two"] == row["dice_mean"] == 1
    for case in one.feed.store.content.values():
        case.label[:] = 0
    one.network = Prescribed([torch.zeros_like(label) for label in references])
    assert evaluate(one)["dice_mean"] == 0


def test_validation_changes_neither_weights_nor_later_epochs():
    one = training()
    before = weights(one.network)
    first, second = evaluate(one), evaluate(one)
    assert first == second
    assert torch.equal(weights(one.network), before)
    assert all(p.grad is None for p in one.network.parameters())


def test_running_mean_of_the_dice(monkeypatch):
    dice = [0.5, 0.9, 0.0, 0.4]
    values = iter(dice)
    monkeypatch.setattr(loop, "evaluate", lambda training: {"val_loss": 0.0, "dice_mean": next(values)})
    one = training(train__epochs=4)
    one.settings = one.settings.model_copy(update={"best_ema": 0.8})
    run(one)
    expected, mean = [], None
    for value in dice:
        mean = value if mean is None else 0.8 * mean + 0.2 * value
        expected.append(mean)
    assert [row["dice_ema"] for row in one.rows] == pytest.approx(expected)


def test_rows_are_complete():
    one = training(train__epochs=1)
    run(one)
    assert list(one.rows[0]) == [
        "epoch",
        "learning_rate",
        "train_loss",
        "val_loss",
        "dice_mean",
        "dice_one",
        "dice_two",
        "dice_three",
        "dice_ema",
    ]


def test_two_stages_have_one_supervised_output():
    """Where nnU-Net's weights are 0 / 0."""
    one = training(train__epochs=1)
    flat = replace(
        planned(),
        features_per_stage=[4, 8],
        kernel_sizes=[[3] * 3] * 2,
        strides=[[1] * 3, [2] * 3],
        n_conv_per_stage=[2, 2],
        n_conv_per_stage_decoder=[2],
    )
    one.feed.store.planned = flat
    one.network = build(1, 4, flat, 0)
    one.optimiser = optimiser(one.network, one.settings)
    run(one)
    assert np.isfinite(one.rows[0]["train_loss"])
