"""The loss: nnU-Net's numbers, a plain implementation's for every setting, and what accumulation must not change."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from tiny import DATA, TESTS, labels_of, wave
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from segpipe.errors import SegpipeError
from segpipe.params.train import Loss
from segpipe.training.loss import SegmentationLoss, downsampled, focal, hardest, near_border

ORACLE = np.load(DATA / "core_oracle.npz")
DEFAULTS = yaml.safe_load((TESTS.parent / "params.yaml").read_text())["train"]["loss"]
LABELS = labels_of({"background": 0, "liver": 1, "tumour": 2, "vessel": 3})

# Every region term with every voxel term, and each thing that changes where they count.
COMBINATIONS = [
    *({"region": region, "voxel": voxel} for region in ("dice", "tversky") for voxel in ("cross_entropy", "focal")),
    *({"region": region, "voxel": "topk", "topk_percent": 21.0} for region in ("dice", "tversky")),
    {"region_weight": 0.0},
    {"voxel_weight": 0.0},
    {"region_weight": 0.4, "voxel_weight": 2.5},
    {"class_weights": {"liver": 2.0, "vessel": 0.25}},
    {"class_weights": {"background": 0.1, "tumour": 0.0}, "region": "tversky", "tversky_alpha": 0.8},
    {"boundary_weight": 3.0},
    {"boundary_weight": 0.5, "boundary_width": 2, "voxel": "focal", "focal_gamma": 0.7},
    {"voxel": "topk", "class_weights": {"background": 4.0}, "boundary_weight": 1.5},
]


def loss_of(batch_dice=False, labels=LABELS, on=None, **changes):
    """The loss of params.yaml with some settings changed."""
    return SegmentationLoss(Loss.model_validate({**DEFAULTS, **changes}), labels, batch_dice, on)


def first_classes(n):
    """The labels without the last ones."""
    return labels_of({name: value for name, (value,) in LABELS.names.items() if value < n})


def named(changes):
    return "-".join(f"{key}={value}" for key, value in changes.items())


def every_combination(test):
    test = pytest.mark.parametrize("changes", COMBINATIONS, ids=named)(test)
    return pytest.mark.parametrize("batch_dice", [False, True], ids=["sample", "batch"])(test)


def oracle_inputs():
    """What data/make_core_oracle.py gives nnU-Net: class 2 is missing in one sample, class 3 everywhere."""
    label = (wave(2, 8, 8, 8, seed=0.3) * 2.4).round().abs().clamp_max(2).long()
    label[1][label[1] == 2] = 0
    return [2 * wave(2, 4, n, n, n, seed=0.2 + n) for n in (8, 4, 2)], label


def blocks(n_samples, edge=8, seed=0):
    """Logits at two resolutions and a label of compact structures; the last sample has no foreground."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 4, (n_samples, *[edge // 4] * 3)), np.ones((1, 4, 4, 4), int))
    label[-1] = 0
    outputs = [torch.from_numpy(rng.normal(size=(n_samples, 4, *[n] * 3))).float() for n in (edge, edge // 2)]
    return outputs, torch.from_numpy(label)


def gradient(loss, logits, label):
    logits = logits.detach().clone().requires_grad_()
    value = loss([logits], label)
    value.backward()
    return value.detach(), logits.grad


# nnU-Net's numbers


@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_settings_of_params_yaml_are_nnunets(batch_dice):
    outputs, label = oracle_inputs()
    one, several = ORACLE[f"loss_{batch_dice}"]
    loss = loss_of(batch_dice)
    assert float(loss(outputs[:1], label)) == pytest.approx(one, abs=1e-5)
    # three decoder stages: the coarsest has weight 0 in nnU-Net and is left out here
    assert loss.n_outputs(4) == 2
    assert float(loss(outputs[:2], label)) == pytest.approx(several, abs=1e-5)


# a plain implementation's


def plain(logits, label, settings, batch_dice):
    """The same loss from its definition, one class and one voxel at a time, in float64."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    p = powers / powers.sum(1, keepdims=True)
    weights = np.array([(settings.class_weights or {}).get(name, 1.0) for name in LABELS.names])
    region = plain_region(p, label, settings, weights, batch_dice)
    voxel = np.mean([plain_voxel(p[i], label[i], settings, weights) for i in range(len(p))])
    return settings.region_weight * region + settings.voxel_weight * voxel


def plain_region(p, label, settings, weights, batch_dice):
    a, b = (settings.tversky_alpha, settings.tversky_beta) if settings.region == "tversky" else (0.5, 0.5)
    groups = [slice(None)] if batch_dice else [slice(i, i + 1) for i in range(len(label))]
    means = []
    for group in groups:
        indices = []
        for value in range(1, len(weights)):
            here, there = p[group, value], label[group] == value
            hit, false_positive, missed = here[there].sum(), here[~there].sum(), (1 - here[there]).sum()
            indices.append((hit + 0.5e-5) / (hit + a * false_positive + b * missed + 0.5e-5))
        means.append(np.average(indices, weights=weights[1:]))
    return -np.mean(means)


def plain_voxel(p, label, settings, weights):
    """The voxel term of one sample. p : (classes, ...); label : (...)"""
    voxels = list(np.ndindex(*label.shape))
    entropy = np.array([-np.log(p[(label[voxel], *voxel)]) for voxel in voxels])
    cost = entropy * (1 - np.exp(-entropy)) ** settings.focal_gamma if settings.voxel == "focal" else entropy.copy()
    for i, voxel in enumerate(voxels):
        box = tuple(slice(max(x - settings.boundary_width, 0), x + settings.boundary_width + 1) for x in voxel)
        near = (label[box] != label[voxel]).any()
        cost[i] *= weights[label[voxel]] * (1 + settings.boundary_weight * near)
    if settings.voxel == "topk":
        cost = cost[np.argsort(-entropy)[: int(len(entropy) * settings.topk_percent / 100)]]
    return cost.mean()


@every_combination
def test_equals_a_plain_implementation_in_value_and_slope(changes, batch_dice):
    outputs, label = blocks(2)
    for logits, coarse in ((outputs[0], label), (outputs[1][:, :, 0], label[:, 3, ::2, ::2])):  # 3D, 2D
        loss = loss_of(batch_dice, **changes)
        value, slopes = gradient(loss, logits, coarse)
        values, settings = logits.double().numpy(), loss.settings
        expected = plain(values, coarse.numpy(), settings, batch_dice)
        assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        rng = np.random.default_rng(1)
        for index in [tuple(rng.integers(values.shape)) for _ in range(3)]:
            step = np.zeros_like(values)
            step[index] = 1e-4
            up, down = (plain(values + sign * step, coarse.numpy(), settings, batch_dice) for sign in (1, -1))
            assert float(slopes[index]) == pytest.approx((up - down) / 2e-4, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_extreme_logits_keep_the_precision(batch_dice, scale):
    outputs, label = oracle_inputs()
    loss = loss_of(batch_dice)
    expected = plain((scale * outputs[0]).double().numpy(), label.numpy(), loss.settings, batch_dice)
    assert float(loss([scale * outputs[0]], label)) == pytest.approx(expected, abs=1e-4)


def test_a_perfect_prediction_costs_minus_one_and_a_wrong_one_more():
    label = torch.randint(0, 3, (2, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    perfect = 40 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()
    for batch_dice in (False, True):
        loss = loss_of(batch_dice, first_classes(3))
        assert float(loss([perfect], label)) == pytest.approx(-1, abs=1e-4)
        assert float(loss([-perfect], label)) > 1


def test_batch_dice_sums_over_the_batch():
    """One sample right and one wrong: the mean of two Dice values is not the Dice of both together."""
    label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    label[0, 0, 0, 0], label[1, :3] = 1, 1
    logits = torch.zeros(2, 2, 4, 4, 4)
    logits[:, 1] = torch.where(label == 1, 9.0, -9.0)
    logits[0] = logits[0].flip(0)
    apart, together = (loss_of(batch_dice, first_classes(2))([logits], label) for batch_dice in (False, True))
    assert abs(float(apart - together)) > 0.05


@pytest.mark.parametrize(("mass", "dice", "tversky"), [(0.0, 1, 1), (1e-5, 1 / 2, 1 / 1.6), (1.0, 0, 0)])
def test_an_absent_class_costs_what_is_predicted_of_it(mass, dice, tversky):
    """Nothing is right, and the smoothing decides how much is wrong."""
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    p = torch.tensor(max(mass / 16, 1e-30))
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    for region, index in (("dice", dice), ("tversky", tversky)):
        for batch_dice in (False, True):
            loss = loss_of(batch_dice, first_classes(2), region=region, voxel_weight=0.0)
            assert -float(loss([logits], label)) == pytest.approx(index, abs=1e-4)


# settings at which two losses are the same one


@pytest.mark.parametrize(
    "changes",
    [
        {"region": "tversky", "tversky_alpha": 0.5, "tversky_beta": 0.5},
        {"voxel": "focal", "focal_gamma": 0.0},
        {"voxel": "topk", "topk_percent": 100.0},
        {"class_weights": {"liver": 1.0}},
        {"boundary_width": 3},
        {"deep_supervision": [7.0]},
    ],
    ids=named,
)
def test_settings_that_change_nothing(changes):
    outputs, label = blocks(2)
    (value, slope), (same_value, same_slope) = (
        gradient(loss, outputs[0], label) for loss in (loss_of(), loss_of(**changes))
    )
    torch.testing.assert_close(same_value, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same_slope, slope, rtol=1e-5, atol=1e-9)


# the parts


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_flat_where_the_prediction_is_certain(gamma):
    """p from 1e-9 to 1: the closed form, and no slope of 0 * infinity."""
    p = np.array([1e-9, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0])
    entropy = torch.tensor(-np.log(p), dtype=torch.float32, requires_grad=True)
    cost = focal(entropy, gamma)
    cost.sum().backward()
    assert cost.detach().numpy() == pytest.approx((1 - p) ** gamma * -np.log(p), rel=1e-3, abs=1e-12)
    assert entropy.grad.isfinite().all()
    assert float(entropy.grad[-1]) == pytest.approx(float(gamma == 0), abs=1e-5)


def test_the_hardest_voxels_are_those_of_each_sample():
    entropy = torch.tensor([[5.0, 1.0, 2.0, 9.0, 3.0, 4.0, 0.0, 6.0, 7.0, 8.0], [0.1] * 9 + [0.2]])
    weights = hardest(entropy, 20.0)
    assert weights[0].tolist() == [0, 0, 0, 5, 0, 0, 0, 0, 0, 5]
    # nine voxels tie for the one place that is left
    assert weights[1].tolist() == pytest.approx([5 / 9] * 9 + [5])
    assert (weights * entropy).mean(1).tolist() == pytest.approx([8.5, 0.15])


@pytest.mark.parametrize(("percent", "chosen"), [(0.001, 1), (10, 1), (19.9, 1), (20, 2), (99, 9), (100, 10)])
def test_one_voxel_at_least_is_chosen(percent, chosen):
    weights = hardest(torch.arange(10.0)[None], percent)[0]
    assert weights.tolist() == pytest.approx([0] * (10 - chosen) + [10 / chosen] * chosen)


def test_ties_are_shared_so_that_no_order_decides():
    """All voxels alike: the mean of the hardest is that of all, and so is the slope."""
    label = blocks(1)[1]
    expected = gradient(loss_of(region_weight=0.0), torch.zeros(1, 4, 8, 8, 8), label)
    found = gradient(loss_of(region_weight=0.0, voxel="topk"), torch.zeros(1, 4, 8, 8, 8), label)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_border_has_two_sides_and_the_edge_of_the_patch_is_none():
    label = torch.tensor([0, 0, 0, 0, 2, 2, 2, 1, 0, 0, 0, 0])
    expected = {1: "000110111000", 2: "001111111100", 3: "011111111110", 20: "1" * 12}
    for width, digits in expected.items():
        for shape in ((1, 1, 12), (1, 12, 1), (1, 1, 1, 12), (1, 12, 1, 1)):  # 2D and 3D, first and last axis
            near = near_border(label.view(shape), width)
            assert near.shape == shape
            assert "".join(str(int(x)) for x in near.flatten()) == digits


def test_borders_are_seen_across_corners_but_not_across_samples():
    label = torch.zeros(3, 6, 6, 6, dtype=torch.long)
    label[1, 2, 2, 2], label[2] = 1, 3
    near = near_border(label, 1)
    assert [int(sample.sum()) for sample in near] == [0, 27, 0]
    assert near[1, 1:4, 1:4, 1:4].all()
    assert not near_border(torch.full((1, 4, 4), 7), 2).any()


# what accumulation must not change


def accumulated(loss, outputs, label, n_batches, joint, known=None):
    """What the loop does with micro-batches: mean loss and gradients of the outputs."""
    parts = [output.detach().clone().requires_grad_() for output in outputs]
    cut = [([part.chunk(n_batches)[j] for part in parts], label.chunk(n_batches)[j]) for j in range(n_batches)]
    of_cases = [None] * n_batches if known is None else known.chunk(n_batches)
    sums = [loss.sums(*batch, one) for batch, one in zip(cut, of_cases, strict=True)]
    total = [torch.stack(level).sum(0) for level in zip(*sums, strict=True)]
    losses = []
    for batch, own, one in zip(cut, sums, of_cases, strict=True):
        elsewhere = [all_ - mine for all_, mine in zip(total, own, strict=True)] if joint else None
        losses.append(loss(*batch, elsewhere, one))
        (losses[-1] / n_batches).backward()
    return torch.stack(losses).mean().detach(), [part.grad for part in parts]


@every_combination
@pytest.mark.parametrize("n_batches", [2, 4])
def test_micro_batches_equal_the_large_batch(changes, batch_dice, n_batches):
    outputs, label = blocks(4)
    loss = loss_of(batch_dice, **changes)
    assert loss.joint == (batch_dice and changes.get("region_weight") != 0)
    value, slopes = accumulated(loss, outputs, label, 1, False)
    mean, sums = accumulated(loss, outputs, label, n_batches, loss.joint)
    assert float(mean) == pytest.approx(float(value), rel=1e-5)
    for found, expected in zip(sums, slopes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_without_the_other_sums_a_batch_dice_would_differ():
    outputs, label = blocks(4)
    loss = loss_of(batch_dice=True, voxel_weight=0.0)
    value, slopes = accumulated(loss, outputs, label, 1, False)
    mean, sums = accumulated(loss, outputs, label, 2, False)
    assert abs(float(mean - value)) > 1e-3
    assert (sums[0] - slopes[0]).abs().max() > 0.1 * slopes[0].abs().max()


def test_a_loss_of_single_samples_takes_no_sums():
    outputs, label = blocks(2)
    for loss in (loss_of(False), loss_of(True, region_weight=0.0)):
        assert not loss.joint
        assert loss(outputs, label) == loss(outputs, label, loss.sums(outputs, label))


def test_sums_count_a_toy_exactly():
    label = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [3, 0]]])
    outputs = [torch.zeros(2, 4, 2, 2, requires_grad=True), torch.zeros(2, 4, 1, 1)]
    full, coarse = loss_of(True).sums(outputs, label)
    assert not full.requires_grad
    assert full.tolist() == [[0.75, 0, 0.25], [2, 2, 2], [3, 0, 1], [2, 2, 2]]
    assert coarse.tolist() == [[0.25, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [2, 2, 2]]


# regions, the ignore label, cases that are annotated for some classes only

REGIONS = labels_of({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}, [1, 2, 3])
IGNORING = labels_of({"background": 0, "liver": 1, "tumour": 2, "vessel": 3, "ignore": 4})
BOTH = labels_of({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3, "ignore": 4}, [1, 2, 3])
KINDS = {"regions": REGIONS, "ignore": IGNORING, "regions and ignore": BOTH}
WEIGHTS = {"liver": "whole", "tumour": "core", "vessel": "active", "background": "whole"}

# nnU-Net 2.8.1's losses of `peers_inputs`: value, sum of the gradient's sizes, and its product with another wave.
# Two samples differ between nnU-Net and this loss with an ignore label: there the voxels of a batch are one mean, here
# each sample has its own, so that accumulation changes nothing.
PEER = {
    ("ignore", 1, False): (1.4154322147369385, 1.5614616870880127, -0.06462820619344711),
    ("ignore", 1, True): (1.4154322147369385, 1.5614616870880127, -0.06462820619344711),
    ("regions", 1, False): (0.36741989850997925, 0.6610400080680847, 0.05457976460456848),
    ("regions", 2, False): (0.3628031015396118, 0.6583355069160461, 0.002425605431199074),
    ("regions", 2, True): (0.3627760410308838, 0.6583278179168701, 0.0023596188984811306),
}


def peers_inputs(n_samples):
    """Three outputs, and a label of the values 0 to 3, of which nnU-Net's plain losses ignored 3."""
    logits = 2 * wave(n_samples, 3, 6, 6, 6, seed=0.3)
    return logits, (wave(n_samples, 6, 6, 6, seed=0.7) * 3).abs().round().long()


@pytest.mark.parametrize("case", PEER, ids=str)
def test_regions_and_ignore_label_cost_what_they_do_in_nnunet(case):
    kind, n_samples, batch_dice = case
    labels = REGIONS if kind == "regions" else labels_of({"background": 0, "a": 1, "b": 2, "ignore": 3})
    logits, label = peers_inputs(n_samples)
    value, slopes = gradient(loss_of(batch_dice, labels), logits, label)
    along = (slopes * wave(*logits.shape, seed=0.9)).sum()
    assert [float(value), float(slopes.abs().sum()), float(along)] == pytest.approx(PEER[case], rel=1e-5, abs=1e-6)


def test_regions_with_an_ignore_label_are_a_mean_over_the_regions():
    """nnU-Net 2.8.1 has 2.2385929 here: it sums their binary entropies where there is an ignore label, and takes the
    mean where there is none. Ours is the mean always; the Dice is -0.5431978 in both."""
    logits, label = peers_inputs(1)
    label = label.masked_fill(wave(1, 6, 6, 6, seed=1.3) > 0.5, 4)
    dice = float(loss_of(False, BOTH, voxel_weight=0.0)([logits], label))
    both = float(loss_of(False, BOTH)([logits], label))
    assert dice == pytest.approx(-0.5431978106498718, abs=1e-6)
    assert dice + 3 * (both - dice) == pytest.approx(2.2385928630828857, abs=1e-5)


def patchy(kind, n_samples=2, seed=0):
    """`blocks` of a kind of labels; where the kind has an ignore label, 4 in some blocks, in one sample more."""
    labels = KINDS[kind]
    outputs, label = blocks(n_samples, seed=seed)
    rng = np.random.default_rng(seed + 5)
    if labels.ignore is not None:
        unknown = np.kron(rng.random((n_samples, 4, 4, 4)) < 0.3, np.ones((1, 2, 2, 2))) > 0
        unknown[0, :4] = True
        label = label.masked_fill(torch.from_numpy(unknown), 4)
    return [output[:, -len(labels.heads) :] for output in outputs], label


def of_kind(kind, changes):
    """The changes with the names of the kind's classes."""
    weights = changes.get("class_weights")
    if weights is None or kind == "ignore":
        return changes
    return {**changes, "class_weights": {WEIGHTS[name]: weight for name, weight in weights.items()}}


def plainly(logits, label, settings, labels, batch_dice):
    """The loss from its definition with masks, in float64, for any labels. logits : (B, heads, ...)"""
    inside = label != labels.ignore if labels.ignore is not None else np.ones(label.shape, bool)
    names = list(labels.heads)
    there = np.stack([np.isin(label, labels.heads[name]) for name in names], 1)
    if labels.has_regions:
        p = 1 / (1 + np.exp(-logits))
        entropy = -np.where(there, np.log(p), np.log(1 - p))
        foreground = slice(0, None)
    else:
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropy = -np.where(there, np.log(p), 0).sum(1, keepdims=True)
        foreground = slice(1, None)
    weights = np.array([(settings.class_weights or {}).get(name, 1.0) for name in names])
    a, b = (settings.tversky_alpha, settings.tversky_beta) if settings.region == "tversky" else (0.5, 0.5)
    region = []
    for group in [slice(None)] if batch_dice else [slice(i, i + 1) for i in range(len(label))]:
        here, true, known = p[group][:, foreground], there[group][:, foreground], inside[group][:, None]
        counted = [(one * known).sum((0, 2, 3, 4)) for one in (here * true, here * ~true, (1 - here) * true)]
        index = (counted[0] + 0.5e-5) / (counted[0] + a * counted[1] + b * counted[2] + 0.5e-5)
        region.append(np.average(index, weights=weights[foreground]))
    voxel = [plain_masked(*one, settings, labels, weights) for one in zip(entropy, there, label, inside, strict=True)]
    return -settings.region_weight * np.mean(region) + settings.voxel_weight * np.mean(voxel)


def plain_masked(entropy, there, label, inside, settings, labels, weights):
    """The voxel term of one sample, of the annotated voxels. entropy : (1 or regions, ...); there : (heads, ...)"""
    cost = entropy * (1 - np.exp(-entropy)) ** settings.focal_gamma if settings.voxel == "focal" else entropy
    by_voxel = weights.reshape(-1, 1, 1, 1) * (1 if labels.has_regions else there)
    cost = (cost * (by_voxel if labels.has_regions else by_voxel.sum(0))).mean(0)
    costs, hardness = [], []
    for voxel in np.argwhere(inside):
        box = tuple(slice(max(x - settings.boundary_width, 0), x + settings.boundary_width + 1) for x in voxel)
        near = (label[box][inside[box]] != label[tuple(voxel)]).any()  # what is ignored is no other class
        costs.append(cost[tuple(voxel)] * (1 + settings.boundary_weight * near))
        hardness.append(entropy.mean(0)[tuple(voxel)])
    if settings.voxel == "topk":
        costs = np.array(costs)[np.argsort(hardness)[::-1][: int(len(costs) * settings.topk_percent / 100)]]
    return np.mean(costs)


@pytest.mark.parametrize("kind", KINDS)
@every_combination
def test_every_setting_means_the_same_for_regions_and_ignored_voxels(changes, batch_dice, kind):
    outputs, label = patchy(kind)
    loss = loss_of(batch_dice, KINDS[kind], **of_kind(kind, changes))
    value, slopes = gradient(loss, outputs[0], label)
    values = outputs[0].double().numpy()

    def at(shifted):
        return plainly(shifted, label.numpy(), loss.settings, KINDS[kind], batch_dice)

    assert float(value) == pytest.approx(at(values), rel=1e-5, abs=1e-5)
    rng = np.random.default_rng(1)
    annotated = np.argwhere(label.numpy() != 4)
    for place in rng.choice(annotated, 2):
        step = np.zeros_like(values)
        index = (place[0], rng.integers(values.shape[1]), *place[1:])
        step[index] = 1e-4
        assert float(slopes[index]) == pytest.approx((at(values + step) - at(values - step)) / 2e-4, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("kind", ["ignore", "regions and ignore"])
@every_combination
def test_what_is_ignored_has_no_influence(changes, batch_dice, kind):
    outputs, label = patchy(kind)
    loss = loss_of(batch_dice, KINDS[kind], **of_kind(kind, changes))
    unknown = (label == 4)[:, None].expand_as(outputs[0])
    value, slopes = gradient(loss, outputs[0], label)
    other = torch.where(unknown, 30 * wave(*outputs[0].shape, seed=0.77), outputs[0])
    same_value, same_slopes = gradient(loss, other, label)
    assert value == same_value
    assert torch.equal(slopes, same_slopes)
    assert not slopes[unknown].any()
    assert slopes[~unknown].any()


@pytest.mark.parametrize("kind", ["ignore", "regions and ignore"])
@every_combination
def test_a_batch_that_nobody_annotated_teaches_nothing(changes, batch_dice, kind):
    outputs, label = patchy(kind)
    loss = loss_of(batch_dice, KINDS[kind], **of_kind(kind, changes))
    value, slopes = gradient(loss, outputs[0], torch.full_like(label, 4))
    assert value.isfinite()
    assert not slopes.any()


def test_the_edge_of_what_is_annotated_is_no_border():
    label = torch.tensor([0, 0, 9, 9, 0, 0, 9, 1, 1, 1, 9, 0, 1])
    expected = {1: "0000000000011", 2: "0000010101011"}
    for width, digits in expected.items():
        near = near_border(label.view(1, 1, -1), width, 9).flatten()
        annotated = label != 9
        wanted = torch.tensor([int(digit) for digit in digits])
        assert torch.equal(near[annotated].long(), wanted[annotated])
    assert near_border(label.view(1, 1, -1), 1).flatten()[1]  # a value that is not ignored is one


@pytest.mark.parametrize(
    ("percent", "chosen"), [(50.0, [8.0, 7.0]), (25.0, [8.0]), (1.0, [8.0]), (100.0, [8, 7, 2, 1])]
)
def test_the_hardest_voxels_are_a_share_of_the_annotated_ones(percent, chosen):
    entropy = torch.tensor([[8.0, 0.0, 7.0, 0.0, 2.0, 0.0, 1.0, 0.0]])
    inside = (entropy > 0).float()
    weights = hardest(entropy, percent, inside)
    assert float((weights * entropy).sum() / 4) == pytest.approx(np.mean(chosen))
    assert not weights[inside == 0].any()
    everywhere = hardest(entropy, percent, torch.ones_like(entropy))
    assert torch.equal(everywhere, hardest(entropy, percent))


# which classes a sample's case has annotations of, in turn; the background always
SOME = {
    "plain": [
        [True, False, True, False],
        [True, True, True, True],
        [True, False, False, False],
        [True, True, False, True],
    ],
    "regions": [[0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]],
}


def some(kind, n_samples):
    return torch.tensor(SOME["regions" if KINDS.get(kind, LABELS).has_regions else "plain"][:n_samples]).bool()


def test_what_a_case_is_not_annotated_for_belongs_to_its_background():
    """The marginal loss, written down: probabilities of unknown classes are added to the background's."""
    (logits, _), label = blocks(2)
    known = some("plain", 2)
    label[0][(label[0] == 1) | (label[0] == 3)] = 0  # nobody marked them
    parts = [logits.double().requires_grad_() for _ in range(2)]
    terms = []
    for i, own in enumerate(parts[0].softmax(1)):
        p = torch.stack([own[0] + sum(own[c] for c in (1, 2, 3) if not known[i, c]), *own[1:]])
        dice = []
        for c in (1, 2, 3):
            if known[i, c]:
                there = label[i] == c
                dice.append((2 * p[c][there].sum() + 1e-5) / (p[c].sum() + there.sum() + 1e-5))
        picked = p.gather(0, label[i][None])
        terms.append(-torch.stack(dice).mean() - picked.log().mean())
    torch.stack(terms).mean().backward()
    parts[1].retain_grad()
    value = loss_of()([parts[1]], label, None, known)
    value.backward()
    assert float(value) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)
    torch.testing.assert_close(parts[1].grad, parts[0].grad, rtol=1e-3, atol=1e-8)


def test_a_class_that_nobody_looked_for_is_pushed_only_with_the_background():
    """Unknown class and background gain alike, by their share; nothing is taken from one for the other."""
    (logits, _), label = blocks(1)
    label[:] = 0
    label[:, :2] = 2
    known = torch.tensor([[True, False, True, True]])
    logits = logits.clone().requires_grad_()
    loss_of()([logits], label, None, known).backward()
    slopes, p = logits.grad, logits.detach().softmax(1)
    ratio = slopes[:, 1] / slopes[:, 0]
    torch.testing.assert_close(ratio, p[:, 1] / p[:, 0], rtol=1e-3, atol=1e-6)
    assert (slopes[:, :2][:, :, 2:] < 0).all()  # more of both where neither is excluded


def test_a_case_of_all_classes_costs_what_it_did():
    for kind, labels in (("plain", LABELS), ("regions", REGIONS)):
        outputs, label = blocks(2)
        outputs = [output[:, -len(labels.heads) :] for output in outputs]
        known = torch.ones_like(some(kind, 2))
        for batch_dice in (False, True):
            loss = loss_of(batch_dice, labels)
            assert float(loss(outputs, label, None, known)) == pytest.approx(float(loss(outputs, label)), rel=1e-6)


def test_regions_that_a_case_is_not_annotated_for_are_left_out():
    outputs, label = patchy("regions")
    known = some("regions", 2)
    for batch_dice in (False, True):
        logits = outputs[0].clone().requires_grad_()
        loss_of(batch_dice, REGIONS)([logits], label, None, known).backward()
        assert not logits.grad[0, [0, 2]].any()
        assert logits.grad[0, 1].any()
        assert logits.grad[1].flatten(1).any(1).all()
    apart = loss_of(False, REGIONS, voxel_weight=0.0)
    first = float(apart([outputs[0][:1]], label[:1], None, known[:1]))
    p, there = outputs[0][0, 1].sigmoid(), label[0] >= 2
    index = (2 * p[there].sum() + 1e-5) / (p.sum() + there.sum() + 1e-5)
    assert first == pytest.approx(-float(index), abs=1e-5)  # the mean of the one that is known


@pytest.mark.parametrize("partly", [False, True], ids=["whole", "partly"])
@pytest.mark.parametrize("kind", ["plain", *KINDS])
@every_combination
def test_accumulation_changes_nothing_with_regions_ignored_voxels_and_unknown_classes(
    changes, batch_dice, kind, partly
):
    labels = KINDS.get(kind, LABELS)
    outputs, label = patchy(kind, 4) if kind in KINDS else blocks(4)
    known = some(kind, 4) if partly else None
    loss = loss_of(batch_dice, labels, **(of_kind(kind, changes) if kind in KINDS else changes))
    value, slopes = accumulated(loss, outputs, label, 1, False, known)
    mean, sums = accumulated(loss, outputs, label, 4, loss.joint, known)
    assert float(mean) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    for found, expected in zip(sums, slopes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


# numbers of few bits, classes without voxels


@every_combination
@pytest.mark.parametrize("extreme", [0.0, 60.0, -60.0])
def test_empty_classes_and_extreme_logits_are_finite(changes, batch_dice, extreme):
    """No foreground at all, or in one sample only; the network is sure of it, of the contrary, or of nothing."""
    for n_foreground in (0, 1):
        label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
        label[:n_foreground, 0] = 1
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = torch.zeros(2, 4, 4, 4, 4, dtype=dtype)
            logits[:, 0] = extreme
            value, slopes = gradient(loss_of(batch_dice, **changes), logits, label)
            assert value.dtype == torch.float32
            assert value.isfinite()
            assert slopes.dtype == dtype
            assert slopes.isfinite().all()


@every_combination
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_few_bits_are_computed_in_float32(changes, batch_dice, dtype, tolerance):
    """The very loss of the rounded logits, so only that rounding makes a difference."""
    outputs, label = blocks(2)
    loss = loss_of(batch_dice, **changes)
    value, slopes = gradient(loss, outputs[0].to(dtype), label)
    same, exact_slopes = gradient(loss, outputs[0].to(dtype).float(), label)
    assert value == same
    assert torch.equal(slopes, exact_slopes.to(dtype))
    assert float(value) == pytest.approx(float(loss(outputs[:1], label)), abs=tolerance)
    sums, exact_sums = (loss.sums([logits], label)[0] for logits in (outputs[0].to(dtype), outputs[0]))
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, exact_sums, rtol=tolerance, atol=tolerance)


def test_gradients_are_finite_under_bf16_autocast():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(1, 4, 3, padding=1)
    label = torch.randint(0, 4, (2, 8, 8, 8))
    losses = []
    for enabled in (False, True):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = conv(wave(2, 1, 8, 8, 8))
            loss = loss_of()([logits, logits[:, :, ::2, ::2, ::2]], label)
        assert (logits.dtype == torch.bfloat16) == enabled
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad.isfinite().all() and p.grad.any() for p in conv.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# determinism

# What the documentation of torch.use_deterministic_algorithms lists: operations that it refuses on CUDA or replaces by
# slower ones. And matrix products, of which cuBLAS has deterministic ones for some environments only.
REFUSED = re.compile(
    "nll_loss|cross_entropy|gather|scatter|index_|put_|bincount|histc|cumsum|median|kthvalue|embedding|upsample|"
    "grid_sampl|reflection_pad|replication_pad|max_pool.*_backward|avg_pool|max_unpool|ctc|repeat_inter|mm$"
)


class Recorded(TorchDispatchMode):
    """The names of all operations, of the gradient's too."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def nodes(root):
    """The names of the autograd graph below `root`."""
    names, stack = set(), [root.grad_fn]
    while stack:
        if (node := stack.pop()) is not None:
            names.add(node.name())
            stack += [child for child, _ in node.next_functions]
    return names


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@every_combination
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_every_operation_is_deterministic_on_cuda(changes, batch_dice, device, deterministic):
    """CUDA itself is not needed to see which operations a step would run there."""
    outputs, label = blocks(2)
    outputs, label = [output.to(device) for output in outputs], label.to(device)
    parts = [output.clone().requires_grad_() for output in outputs]
    loss = loss_of(batch_dice, on=torch.device(device), **changes)
    with Recorded() as recorded:
        value = loss(parts, label, loss.sums(parts, label))
        graph = nodes(value)
        value.backward()
    assert "_log_softmax_backward_data" in recorded.names  # the gradient's operations are seen
    assert [name for name in recorded.names if REFUSED.search(name)] == []
    assert [name for name in graph if re.search("Nll|Gather|Index|Scatter|Pool|Topk|Sort|Cumsum", name, re.I)] == []
    (value, slopes), (same_value, same_slopes) = (accumulated(loss, outputs, label, 2, loss.joint) for _ in range(2))
    assert value == same_value
    assert all(torch.equal(one, other) for one, other in zip(slopes, same_slopes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_so_is_what_regions_ignored_voxels_and_unknown_classes_take(kind, batch_dice, deterministic):
    outputs, label = patchy(kind)
    known = some(kind, 2)
    for changes in ({}, {"voxel": "topk", "class_weights": {"liver": 2.0}, "boundary_weight": 1.5}):
        loss = loss_of(batch_dice, KINDS[kind], **of_kind(kind, changes))
        parts = [output.clone().requires_grad_() for output in outputs]
        with Recorded() as recorded:
            value = loss(parts, label, loss.sums(parts, label, known), known)
            graph = nodes(value)
            value.backward()
        assert [name for name in recorded.names if REFUSED.search(name)] == []
        assert [name for name in graph if re.search("Nll|Gather|Index|Scatter|Pool|Topk|Sort|Cumsum", name, re.I)] == []


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.nn.functional.cross_entropy(x, torch.zeros(2, dtype=torch.long)),
        lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)).sum(),
        lambda x: x[torch.tensor([0, 1]), torch.tensor([1, 1])].sum(),
        lambda x: x.topk(2).values.sum(),
        lambda x: x.kthvalue(2).values.sum(),
        lambda x: x.cumsum(1).sum(),
    ],
)
def test_operations_that_are_not_would_be_seen(operation):
    with Recorded() as recorded:
        operation(torch.randn(2, 3, requires_grad=True)).backward()
    assert [name for name in recorded.names if REFUSED.search(name)]


# deep supervision


@pytest.mark.parametrize(("n_stages", "outputs"), [(2, 1), (3, 1), (4, 2), (6, 4), (8, 6)])
def test_weights_are_nnunets_without_the_coarsest(n_stages, outputs):
    nnunet = np.array([1 / 2**i for i in range(n_stages - 1)])
    nnunet[-1] = 0
    loss = loss_of()
    assert loss.n_outputs(n_stages) == outputs
    assert sum(loss.weights(outputs)) == pytest.approx(1)
    if n_stages > 2:  # nnU-Net divides 0 by 0 where the only output is the coarsest
        assert loss.weights(outputs) == pytest.approx((nnunet / nnunet.sum())[:-1].tolist())


def test_weights_may_be_given():
    loss = loss_of(deep_supervision=[3.0, 0.0, 1.0])
    assert [loss.n_outputs(n_stages) for n_stages in (4, 8)] == [3, 3]
    assert loss.weights(3) == [0.75, 0, 0.25]
    outputs, label = oracle_inputs()
    one = [float(loss_of()([logits], downsampled(label, logits.shape[2:]))) for logits in outputs]
    assert float(loss(outputs, label)) == pytest.approx(0.75 * one[0] + 0.25 * one[2], abs=1e-6)


def test_an_output_of_weight_zero_is_not_looked_at():
    outputs, label = oracle_inputs()
    outputs = [output.requires_grad_() for output in outputs[:2]]
    with torch.no_grad():
        outputs[1][0] = torch.nan
    loss_of(deep_supervision=[1.0, 0.0])(outputs, label).backward()
    assert outputs[0].grad.isfinite().all()
    assert outputs[1].grad is None


def test_more_weights_than_outputs_are_refused():
    loss = loss_of(deep_supervision=[1.0, 0.5, 0.25])
    with pytest.raises(SegpipeError) as error:
        loss.n_outputs(3)
    for part in ("train.loss.deep_supervision", "3 weights: [1.0, 0.5, 0.25]", "at most 2"):
        assert part in str(error.value)


def test_another_number_of_outputs_than_weights_is_no_silent_loss():
    outputs, label = oracle_inputs()
    with pytest.raises(ValueError, match="zip"):
        loss_of(deep_supervision=[1.0, 0.5, 0.25])(outputs[:2], label)


@pytest.mark.parametrize(
    ("label", "coarse"),
    [((8, 12, 16), (4, 6, 8)), ((8, 12, 16), (8, 3, 2)), ((5, 12, 8), (5, 6, 1)), ((24, 16), (3, 4))],
)
def test_labels_are_downsampled_as_nnunet_does(label, coarse):
    full = torch.from_numpy(np.random.default_rng(0).integers(0, 200, (2, *label)))
    expected = interpolate(full[:, None].float(), coarse, mode="nearest-exact")[:, 0].long()
    assert torch.equal(downsampled(full, coarse), expected)
    assert torch.equal(downsampled(full, label), full)


@every_combination
def test_the_sum_is_weighted_and_each_resolution_has_its_own_borders(changes, batch_dice):
    outputs, label = oracle_inputs()
    loss = loss_of(batch_dice, **changes)
    parts = [float(loss([logits], downsampled(label, logits.shape[2:]))) for logits in outputs]
    total = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert float(loss(outputs, label)) == pytest.approx(total, rel=1e-6)


# classes by name


def test_weights_follow_the_names_whatever_their_order():
    outputs, label = blocks(2)
    orders = [
        labels_of({name: value for name, (value,) in order}) for order in itertools.permutations(LABELS.names.items())
    ]
    settings = Loss.model_validate({**DEFAULTS, "class_weights": {"vessel": 5.0, "background": 0.5}})
    losses = {float(SegmentationLoss(settings, labels, False)(outputs, label)) for labels in orders}
    assert losses == {float(loss_of(class_weights={"background": 0.5, "vessel": 5.0})(outputs, label))}
    assert losses != {float(loss_of()(outputs, label))}


def test_unknown_classes_are_refused_all_at_once():
    with pytest.raises(SegpipeError) as error:
        loss_of(class_weights={"livr": 2.0, "liver": 2.0, "Tumor": 1.0, "zzz": 1.0})
    for part in (
        "3 problems",
        "params.yaml: train.loss.class_weights",
        "found:    'livr'",
        "did you mean 'liver'?",
        "did you mean 'tumour'?",
        "found:    'zzz'",
        "one of background, liver, tumour, vessel",
    ):
        assert part in str(error.value)


def test_a_class_must_be_left_to_learn():
    nothing = dict.fromkeys(["liver", "tumour", "vessel"], 0.0)
    with pytest.raises(SegpipeError, match="no class is left to learn"):
        loss_of(class_weights=nothing)
    loss_of(class_weights={**nothing, "vessel": 0.1})
    loss_of(class_weights={"background": 0.0})


# an own loss


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_loss_of_the_test.py").write_text(
        "def brier(logits, label):\n"
        "    assert logits.dtype.itemsize == 4\n"
        "    return ((logits.softmax(1)[:, 1] - (label == 1).float()) ** 2).mean()\n\n\n"
        "def per_voxel(logits, label):\n"
        "    return logits.sum(1)\n\n\n"
        "def no_tensor(logits, label):\n"
        "    return 0.5\n"
    )
    yield "own_loss_of_the_test"
    sys.modules.pop("own_loss_of_the_test", None)


def test_an_own_loss_replaces_both_terms_at_each_resolution(own):
    outputs, label = blocks(2)
    loss = loss_of(True, custom=f"{own}:brier", deep_supervision=[3.0, 1.0], class_weights={"liver": 9.0})
    assert not loss.joint
    parts = []
    for logits in outputs:
        p, there = logits.double().softmax(1).numpy()[:, 1], downsampled(label, logits.shape[2:]).numpy() == 1
        parts.append(((p - there) ** 2).mean())
    half = [logits.half() for logits in outputs]
    assert float(loss(outputs, label)) == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-5)
    assert float(loss(half, label)) == pytest.approx(float(loss(outputs, label)), rel=1e-3)
    assert gradient(loss_of(custom=f"{own}:brier"), half[0], label)[1].any()


@pytest.mark.parametrize(
    ("name", "found"), [("per_voxel", r"a tensor of shape \(2, 8, 8, 8\)"), ("no_tensor", "float")]
)
def test_an_own_loss_must_be_a_scalar(own, name, found):
    outputs, label = blocks(2)
    with pytest.raises(SegpipeError, match=rf"train\.loss\.custom\n  found:    {found}"):
        loss_of(custom=f"{own}:{name}")(outputs[:1], label)


def test_an_own_loss_must_exist(own):
    with pytest.raises(SegpipeError, match=r"train\.loss\.custom"):
        loss_of(custom=f"{own}:briar")
