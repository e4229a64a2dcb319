"""The running mean of the weights: its closed form."""

import math

import pytest
import torch
from tiny import params
from torch import nn

from segpipe.training import averaging
from segpipe.training.averaging import decay_at


def block(decay, ramp_steps=0):
    return params(train__ema={"decay": decay, "ramp_steps": ramp_steps}).train.ema


def network(*values):
    """Parameters of two shapes and a buffer."""
    one = nn.Module()
    one.first, one.second = nn.Parameter(torch.tensor(values)), nn.Parameter(torch.tensor([[values[0]]]))
    one.register_buffer("count", torch.tensor(0))
    return one


SEQUENCE = [[1.0, 5.0], [3.0, -2.0], [0.5, 4.0], [-6.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("ramp_steps", [0, 1, 4])
def test_the_mean_is_its_closed_form(ramp_steps):
    """mean_n = start * d_1 ... d_n + sum over t of (1 - d_t) w_t d_(t+1) ... d_n."""
    of = block(0.8, ramp_steps)
    averaged, current = network(10.0, -10.0), network(10.0, -10.0)
    for step, values in enumerate(SEQUENCE):
        with torch.no_grad():
            current.first.copy_(torch.tensor(values))
            current.second.fill_(values[0])
            current.count += 2
        averaging.update(averaged, current, decay_at(step, of))
    decays = [0.8 * (1 - math.exp(-t / ramp_steps)) if ramp_steps else 0.8 for t in range(1, len(SEQUENCE) + 1)]
    expected = [
        start * math.prod(decays)
        + sum((1 - decays[t]) * values[axis] * math.prod(decays[t + 1 :]) for t, values in enumerate(SEQUENCE))
        for axis, start in enumerate((10.0, -10.0))
    ]
    assert averaged.first.tolist() == pytest.approx(expected, rel=1e-5)
    assert averaged.second.item() == pytest.approx(expected[0], rel=1e-5)
    assert averaged.count == 10  # copied, not averaged
    assert current.first.tolist() == SEQUENCE[-1]


def test_the_decay_is_the_same_at_every_step_without_a_ramp():
    assert {decay_at(step, block(0.999)) for step in (0, 1, 10**6)} == {0.999}


def test_the_decay_grows_to_its_value_with_a_ramp():
    of = block(0.999, ramp_steps=100)
    decays = [decay_at(step, of) for step in range(2000)]
    assert decays[0] == pytest.approx(0.999 * (1 - math.exp(-0.01)))
    assert decays[99] == pytest.approx(0.999 * (1 - math.exp(-1)))
    assert decays == sorted(decays)
    assert decays[-1] == pytest.approx(0.999)


def test_the_mean_shares_no_memory_and_no_gradient_with_the_weights():
    averaged, current = network(1.0, 2.0), network(3.0, 4.0)
    averaging.update(averaged, current, 0.5)
    before = averaged.first.tolist()
    with torch.no_grad():
        current.first.fill_(100.0)
    current.count += 7
    assert averaged.first.tolist() == before == [2.0, 3.0]
    assert averaged.count == 0
    assert averaged.first.is_leaf
    assert averaged.first.grad is None
