"""What members of an ensemble disagree about: hand-computed numbers, bounds, and an independent formula."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from segpipe.evaluation.uncertainty import Disagreement

SHAPE = (2, 3, 4)


def gathered(members, has_regions=False, weights=None):
    members = [torch.as_tensor(member, dtype=torch.float32) for member in members]
    together = Disagreement(members[0].shape[1:], len(members[0]), has_regions)
    for member, weight in zip(members, weights or [1.0] * len(members), strict=True):
        together.add(member, weight)
    return together


def random_members(n, heads, seed=0, sharpness=3.0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(sharpness * rng.normal(size=(n, heads, *SHAPE))).float()


def test_members_that_contradict_each_other_disagree_completely():
    """Each is sure, of another class: the mean is as unsure as can be, and none of it is the members' own."""
    together = gathered([[[1.0], [0.0]], [[0.0], [1.0]]])
    assert together.mutual_information().tolist() == [1.0]
    assert together.predictive_entropy().tolist() == [1.0]
    assert together.mean().tolist() == [[0.5], [0.5]]


def test_members_that_are_unsure_alike_do_not_disagree():
    together = gathered([[[0.5], [0.5]], [[0.5], [0.5]]])
    assert together.mutual_information().tolist() == [0.0]
    assert together.predictive_entropy().tolist() == [1.0]


def test_a_number_computed_by_hand():
    """(0.9, 0.1) and (0.6, 0.4): H(0.75) = 0.8113 bits, the members' own 0.4690 and 0.9710."""
    together = gathered([[[0.9], [0.1]], [[0.6], [0.4]]])
    assert together.mutual_information().item() == pytest.approx(0.8112781 - (0.4689956 + 0.9709506) / 2, abs=1e-6)
    assert together.predictive_entropy().item() == pytest.approx(0.8112781, abs=1e-6)


@pytest.mark.parametrize("heads", [2, 5])
def test_plain_classes_agree_with_scipy(heads):
    members = random_members(4, heads).softmax(1)
    together = gathered(members)
    mean = members.mean(0)
    own = np.mean([entropy(member.numpy(), axis=0) for member in members], axis=0)
    expected = (entropy(mean.numpy(), axis=0) - own) / math.log(heads)
    assert together.mutual_information().numpy() == pytest.approx(expected, abs=1e-6)
    assert together.predictive_entropy().numpy() == pytest.approx(
        entropy(mean.numpy(), axis=0) / math.log(heads), abs=1e-6
    )
    assert together.mean().numpy() == pytest.approx(mean.numpy(), abs=1e-7)
    assert together.mutual_information().shape == SHAPE


def test_of_regions_the_one_most_disagreed_about_counts():
    members = random_members(3, 3, seed=1).sigmoid()
    both = torch.stack([members, 1 - members])  # inside, outside
    bits = entropy(both.mean(1).numpy(), axis=0, base=2) - entropy(both.numpy(), axis=0, base=2).mean(0)
    assert gathered(members, has_regions=True).mutual_information().numpy() == pytest.approx(bits.max(0), abs=1e-6)
    assert (bits[0] > bits[1]).any()
    assert (bits[0] < bits[1]).any()
    entropies = entropy(both.mean(1).numpy(), axis=0, base=2)
    assert gathered(members, True).predictive_entropy().numpy() == pytest.approx(entropies.max(0), abs=1e-6)


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_equal_members_agree(has_regions, n):
    """Up to rounding, and never below 0; one member alone has nobody to disagree with."""
    member = random_members(1, 4, seed=2, sharpness=8.0)[0]
    member = member.sigmoid() if has_regions else member.softmax(0)
    shared = gathered([member] * n, has_regions).mutual_information()
    assert 0 <= shared.min() <= shared.max() < 1e-5


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_stays_between_nothing_and_the_whole_entropy(has_regions, seed):
    members = random_members(5, 3, seed, sharpness=10.0**seed)
    members = members.sigmoid() if has_regions else members.softmax(1)
    together = gathered(members.half(), has_regions)
    shared, whole = together.mutual_information(), together.predictive_entropy()
    assert shared.min() >= 0
    assert (shared <= whole + 1e-6).all()
    assert whole.max() <= 1
    assert torch.isfinite(whole).all()


def test_a_weight_counts_a_member_several_times():
    members = random_members(2, 3, seed=3).softmax(1)
    twice = gathered([members[0], members[0], members[1]])
    weighted = gathered(members, weights=[2.0, 1.0])
    assert torch.allclose(twice.mutual_information(), weighted.mutual_information(), atol=1e-6)
    assert torch.allclose(twice.mean(), weighted.mean(), atol=1e-7)
    assert twice.mutual_information().max() > 0.01


def test_half_precision_is_summed_in_single():
    members = random_members(3, 3, seed=5).softmax(1).half()
    half = Disagreement(SHAPE, 3, has_regions=False)
    for member in members:
        half.add(member)
    assert torch.equal(half.mutual_information(), gathered(members).mutual_information())


def test_numbers_may_be_asked_for_in_between():
    """Nothing that was gathered is changed by looking at it."""
    members = random_members(3, 3, seed=4).softmax(1)
    looked_at = gathered(members[:2])
    looked_at.mutual_information(), looked_at.predictive_entropy(), looked_at.mean()
    looked_at.add(members[2])
    assert torch.equal(looked_at.mutual_information(), gathered(members).mutual_information())
    assert torch.equal(looked_at.mean(), gathered(members).mean())
