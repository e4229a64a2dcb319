"""The plain U-Net: nnU-Net's names, shapes and outputs; weights decided by the seed."""

import json
from math import prod, sqrt

import numpy as np
import pytest
import torch
from tiny import DATA, planned, wave
from torch import nn

from segpipe.training.network import PlainConvUNet, build

SHAPES = json.loads((DATA / "network_shapes.json").read_text())
ORACLE = np.load(DATA / "core_oracle.npz")
# channels, classes, plan: as data/make_core_oracle.py has them
NETWORKS = {
    "3d": (1, 3, planned([8, 8, 12])),
    "2d": (
        2,
        2,
        planned(
            [16, 24],
            features_per_stage=[4, 8, 8, 8],
            kernel_sizes=[[3, 3]] * 4,
            strides=[[1, 1]] + [[2, 2]] * 3,
            n_conv_per_stage=[2] * 4,
            n_conv_per_stage_decoder=[2] * 3,
        ),
    ),
    "anisotropic": (
        1,
        2,
        planned(
            [6, 16, 8],
            features_per_stage=[4, 8, 12, 12],
            kernel_sizes=[[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
            n_conv_per_stage=[2] * 4,
            n_conv_per_stage_decoder=[2] * 3,
        ),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_nnunets(name):
    state = PlainConvUNet(*NETWORKS[name]).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == SHAPES[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_weights_give_nnunets_outputs(name):
    channels, classes, plan = NETWORKS[name]
    network = PlainConvUNet(channels, classes, plan).eval()
    state = network.state_dict()
    for number, key in enumerate(sorted(state)):
        state[key].copy_(wave(*state[key].shape, seed=1 + number / 7) / 3)
    image = wave(1, channels, *plan.patch_size)
    with torch.no_grad():
        outputs = network.supervised(image, 2)
        finest = network(image)
    assert torch.equal(finest, outputs[0])
    assert outputs[0].shape == (1, classes, *plan.patch_size)
    halves = torch.cat([output[0, :, : output.shape[2] // 2].flatten() for output in outputs])
    assert np.allclose(halves, ORACLE[f"network_{name}"], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_supervised_outputs_are_the_finest_stages(name):
    channels, classes, plan = NETWORKS[name]
    network = PlainConvUNet(channels, classes, plan).eval()
    image, n = wave(1, channels, *plan.patch_size), len(plan.strides) - 1
    everything = network.supervised(image, n)
    edges = list(plan.patch_size)
    for stride, output in zip(plan.strides[1:], everything, strict=True):
        assert list(output.shape) == [1, classes, *edges]
        edges = [edge // step for edge, step in zip(edges, stride, strict=True)]
    for fewer in range(1, n):
        for one, other in zip(network.supervised(image, fewer), everything, strict=False):
            assert torch.equal(one, other)


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def test_weights_are_decided_by_the_seed_alone():
    channels, classes, plan = NETWORKS["3d"]
    torch.manual_seed(1)
    first = build(channels, classes, plan, seed=5)
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(weights(first), weights(build(channels, classes, plan, seed=5)))
    assert not torch.equal(weights(first), weights(build(channels, classes, plan, seed=6)))


def test_weights_are_he_normal_for_the_leaky_slope():
    """The deviations nnU-Net starts from: sqrt(2 / (1 + 0.01^2) / fan in), zero biases, unit norms."""
    wide = planned([8, 8, 8], features_per_stage=[24, 48, 96])
    for module in build(2, 3, wide, seed=0).modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            fan_in = module.weight.shape[1] * prod(module.kernel_size)
            expected = sqrt(2 / (1 + 1e-4) / fan_in)
            assert float(module.weight.detach().std()) == pytest.approx(
                expected, rel=5 / sqrt(2 * module.weight.numel())
            )
            assert not module.bias.any()
        elif isinstance(module, nn.InstanceNorm3d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
