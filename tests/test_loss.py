"""Soft Dice and cross-entropy with deep supervision: nnU-Net's numbers, and a plain implementation's."""

import numpy as np
import pytest
import torch
from tiny import DATA, wave
from torch.nn.functional import interpolate

from segpipe.training.loss import (
    dice_and_cross_entropy,
    downsampled,
    n_supervised,
    supervised_loss,
    supervision_weights,
)

ORACLE = np.load(DATA / "core_oracle.npz")


def oracle_inputs():
    """What data/make_core_oracle.py gives nnU-Net: class 2 is missing in one sample, class 3 everywhere."""
    label = (wave(2, 8, 8, 8, seed=0.3) * 2.4).round().abs().clamp_max(2).long()
    label[1][label[1] == 2] = 0
    return [2 * wave(2, 4, n, n, n, seed=0.2 + n) for n in (8, 4, 2)], label


@pytest.mark.parametrize("batch_dice", [False, True])
def test_numbers_are_nnunets(batch_dice):
    outputs, label = oracle_inputs()
    one, several = ORACLE[f"loss_{batch_dice}"]
    assert float(dice_and_cross_entropy(outputs[0], label, batch_dice)) == pytest.approx(one, abs=1e-5)
    # three decoder stages: the coarsest has weight 0 in nnU-Net and is left out here
    assert n_supervised(4) == 2
    assert float(supervised_loss(outputs[:2], label, batch_dice)) == pytest.approx(several, abs=1e-5)


def plain(logits, label, batch_dice):
    """The same loss, one class and voxel set at a time, in float64."""
    logits, label = logits.double().numpy(), label.numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    p = powers / powers.sum(1, keepdims=True)
    entropy = -np.mean([np.log(p[(b, label[b, z, y, x], z, y, x)]) for b, z, y, x in np.ndindex(*label.shape)])
    groups = [slice(None)] if batch_dice else [slice(b, b + 1) for b in range(len(label))]
    dice = []
    for group in groups:
        for value in range(1, logits.shape[1]):
            here, there = p[group, value], label[group] == value
            dice.append((2 * here[there].sum() + 1e-5) / (here.sum() + there.sum() + 1e-5))
    return entropy - np.mean(dice)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_equals_a_plain_implementation(batch_dice, scale):
    outputs, label = oracle_inputs()
    loss = dice_and_cross_entropy(scale * outputs[0], label, batch_dice)
    assert float(loss) == pytest.approx(plain(scale * outputs[0], label, batch_dice), abs=1e-4)


def test_a_perfect_prediction_costs_minus_one_and_a_wrong_one_more():
    label = torch.randint(0, 3, (2, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    perfect = 40 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    for batch_dice in (False, True):
        assert float(dice_and_cross_entropy(perfect, label, batch_dice)) == pytest.approx(-1, abs=1e-4)
        assert float(dice_and_cross_entropy(-perfect, label, batch_dice)) > 1


def test_batch_dice_sums_over_the_batch():
    """One sample right and one wrong: the mean of two Dice values is not the Dice of both together."""
    label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    label[0, 0, 0, 0], label[1, :3] = 1, 1
    logits = torch.zeros(2, 2, 4, 4, 4)
    logits[:, 1] = torch.where(label == 1, 9.0, -9.0)
    logits[0] = logits[0].flip(0)
    apart, together = (dice_and_cross_entropy(logits, label, batch_dice) for batch_dice in (False, True))
    assert abs(float(apart - together)) > 0.05


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("extreme", [0.0, 60.0])
def test_empty_classes_and_extreme_logits_are_finite(batch_dice, dtype, extreme):
    """No foreground at all; the network is sure of it, or of nothing."""
    label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    logits = torch.zeros(2, 3, 4, 4, 4, dtype=dtype)
    logits[:, 0] = extreme
    logits.requires_grad_()
    loss = dice_and_cross_entropy(logits, label, batch_dice)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_gradients_are_finite_under_bf16_autocast():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(1, 3, 3, padding=1)
    label = torch.randint(0, 3, (2, 8, 8, 8))
    losses = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = conv(wave(2, 1, 8, 8, 8))
        assert (logits.dtype == torch.bfloat16) == enabled
        loss = supervised_loss([logits, logits[:, :, ::2, ::2, ::2]], label, batch_dice=False)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad.isfinite().all() and p.grad.any() for p in conv.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# ---- deep supervision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_stages", "outputs"), [(2, 1), (3, 1), (4, 2), (6, 4), (8, 6)])
def test_weights_are_nnunets_without_the_coarsest(n_stages, outputs):
    nnunet = np.array([1 / 2**i for i in range(n_stages - 1)])
    nnunet[-1] = 0
    assert n_supervised(n_stages) == outputs
    assert sum(supervision_weights(outputs)) == pytest.approx(1)
    if n_stages > 2:  # nnU-Net divides 0 by 0 where the only output is the coarsest
        assert supervision_weights(outputs) == pytest.approx((nnunet / nnunet.sum())[:-1].tolist())


@pytest.mark.parametrize(
    ("label", "coarse"),
    [((8, 12, 16), (4, 6, 8)), ((8, 12, 16), (8, 3, 2)), ((5, 12, 8), (5, 6, 1)), ((24, 16), (3, 4))],
)
def test_labels_are_downsampled_as_nnunet_does(label, coarse):
    full = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (2, *label)))
    expected = interpolate(full[:, None].float(), coarse, mode="nearest-exact")[:, 0].long()
    assert torch.equal(downsampled(full, coarse), expected)
    assert torch.equal(downsampled(full, label), full)


def test_the_sum_is_weighted():
    outputs, label = oracle_inputs()
    parts = [float(dice_and_cross_entropy(logits, downsampled(label, logits.shape[2:]), False)) for logits in outputs]
    total = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert float(supervised_loss(outputs, label, False)) == pytest.approx(total, abs=1e-6)
