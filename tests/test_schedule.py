"""The optimiser of the settings, and nnU-Net's learning rate."""

import pytest
import torch
from tiny import params

from segpipe.training.schedule import optimiser, rate


def test_rate_is_nnunets_polynomial():
    """PolyLRScheduler: 0.01 * (1 - epoch / 1000)^0.9; the numbers are nnU-Net's."""
    settings = params(train__epochs=1000).train
    assert [rate(settings, epoch) for epoch in (0, 1, 500, 999)] == pytest.approx(
        [0.01, 0.00999099955, 0.00535886731, 1.99526231e-05], rel=1e-6
    )


def test_rate_follows_its_settings_and_nothing_else():
    settings = params(train__epochs=4, train__learning_rate=0.8, train__poly_exponent=2.0).train
    assert [rate(settings, epoch) for epoch in (3, 0, 2, 1)] == pytest.approx([0.05, 0.8, 0.2, 0.45])


def test_optimiser_is_sgd_with_nesterov_momentum_and_decay():
    """Against the update written down: v = m v + g + wd w; w = w - lr (g + wd w + m v)."""
    settings = params(train__learning_rate=0.1, train__momentum=0.9, train__weight_decay=0.01).train
    network = torch.nn.Linear(3, 1, bias=False)
    expected, velocity = network.weight.detach().clone(), torch.zeros(1, 3)
    sgd = optimiser(network, settings)
    for step in range(4):
        gradient = torch.tensor([[1.0, -2.0, 0.5]]) * (step + 1)
        network.weight.grad = gradient.clone()
        sgd.step()
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
        assert torch.allclose(network.weight, expected, atol=1e-6)


def test_momentum_may_be_off():
    network = torch.nn.Linear(1, 1)
    assert not optimiser(network, params(train__momentum=0.0).train).defaults["nesterov"]
