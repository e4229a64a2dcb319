"""The U-Nets: nnU-Net's names, shapes and outputs; weights decided by the seed."""

import json
from math import prod, sqrt

import numpy as np
import pytest
import torch
from tiny import DATA, params, planned, wave
from torch import nn

from segpipe.errors import SegpipeError
from segpipe.training.network import (
    PlainConvUNet,
    build,
    create,
    is_head,
    n_available_outputs,
    outputs,
    require_shape,
)

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


def settings(**changes):
    return params(**{f"train__{name}": value for name, value in changes.items()}).train


# initial weights


class OneLayer(nn.Module):
    """A custom network without deep supervision, which initialises itself as torch does."""

    def __init__(self, n_channels, n_classes, plan):
        super().__init__()
        self.plan = plan
        self.conv = nn.Conv3d(n_channels, n_classes, 1)
        self.noise = nn.Parameter(torch.rand(5))

    def forward(self, x):
        return self.conv(x)


class Supervised(OneLayer):
    """The same with as many outputs as are asked for."""

    def supervised(self, x, n_outputs):
        return tuple(self(x[..., :: 2**i]) for i in range(n_outputs))


def no_network(n_channels, n_classes, plan):
    return [n_channels, n_classes, plan]


CUSTOM = {"network": f"{__name__}:OneLayer"}


@pytest.mark.parametrize("changes", [{"initialisation": name} for name in ("he", "xavier", "orthogonal")] + [CUSTOM])
def test_weights_are_decided_by_the_seed_alone(changes):
    channels, classes, plan = NETWORKS["3d"]
    torch.manual_seed(1)
    first = build(channels, classes, plan, settings(seed=5, **changes))
    torch.manual_seed(2)
    torch.rand(10)
    assert torch.equal(weights(first), weights(build(channels, classes, plan, settings(seed=5, **changes))))
    assert not torch.equal(weights(first), weights(build(channels, classes, plan, settings(seed=6, **changes))))


@pytest.mark.parametrize("changes", [{}, {"initialisation": "orthogonal"}, CUSTOM])
def test_building_takes_no_random_number_from_others(changes):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build(*NETWORKS["3d"], settings(**changes))
    assert torch.equal(torch.rand(4), expected)


def convolutions(network):
    return [module for module in network.modules() if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)]


WIDE = planned([8, 8, 8], features_per_stage=[24, 48, 96])


@pytest.mark.parametrize("scheme", ["he", "xavier", "orthogonal"])
def test_biases_are_zero_and_norms_are_unit(scheme):
    network = build(2, 3, WIDE, settings(initialisation=scheme))
    assert not any(module.bias.any() for module in convolutions(network))
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_weights_are_he_normal_for_the_leaky_slope():
    """The deviations nnU-Net starts from: sqrt(2 / (1 + 0.01^2) / fan in)."""
    for module in convolutions(build(2, 3, WIDE, settings())):
        fan_in = module.weight.shape[1] * prod(module.kernel_size)
        expected = sqrt(2 / (1 + 1e-4) / fan_in)
        tolerance = 5 / sqrt(2 * module.weight.numel())
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=tolerance)


def test_xavier_weights_are_uniform_up_to_their_bound():
    """Glorot and Bengio: uniform within sqrt(6 / (fan in + fan out))."""
    for module in convolutions(build(2, 3, WIDE, settings(initialisation="xavier"))):
        bound = sqrt(6 / (sum(module.weight.shape[:2]) * prod(module.kernel_size)))
        relative = module.weight.detach() / bound
        assert relative.abs().max() <= 1
        assert float(relative.std()) == pytest.approx(1 / sqrt(3), rel=5 / sqrt(module.weight.numel()))


def test_orthogonal_weights_keep_lengths_up_to_the_gain():
    """Rows (or columns, where they are fewer) of the flattened kernel are orthogonal; the gain is the leaky ReLU's."""
    for module in convolutions(build(2, 3, WIDE, settings(initialisation="orthogonal"))):
        kernel = module.weight.detach().flatten(1)
        product = kernel @ kernel.T if len(kernel) <= kernel.shape[1] else kernel.T @ kernel
        assert torch.allclose(product, torch.eye(len(product)) * 2 / (1 + 1e-4), atol=1e-5)


# custom networks


def test_a_custom_network_is_made_for_the_plan_and_keeps_its_own_weights():
    network = build(2, 3, WIDE, settings(seed=5, **CUSTOM))
    assert isinstance(network, OneLayer)
    assert network.plan is WIDE
    assert network.conv.weight.shape == (3, 2, 1, 1, 1)
    torch.manual_seed(5)
    own = OneLayer(2, 3, WIDE)
    assert torch.equal(weights(network), weights(own))
    assert own.conv.bias.any()


def test_create_makes_the_plans_network_without_a_path():
    assert type(create(2, 3, WIDE, None)) is PlainConvUNet
    assert type(create(2, 3, WIDE, CUSTOM["network"])) is OneLayer


def test_what_is_no_network_is_refused():
    with pytest.raises(SegpipeError, match=r"train\.network") as error:
        create(1, 2, WIDE, f"{__name__}:no_network")
    assert "of type list" in str(error.value)
    with pytest.raises(SegpipeError, match="did you mean 'OneLayer'") as error:
        create(1, 2, WIDE, f"{__name__}:OneLayers")
    assert "params.yaml: train.network" in str(error.value)


def test_outputs_are_the_supervised_ones_where_a_network_has_them():
    channels, classes, plan = NETWORKS["anisotropic"]
    network = create(channels, classes, plan, None).eval()
    image = wave(1, channels, *plan.patch_size)
    assert n_available_outputs(network, plan) == 3
    for n in (1, 2, 3):
        found, expected = outputs(network, image, n), network.supervised(image, n)
        assert len(found) == n
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_network_without_supervised_has_one_output():
    network = OneLayer(1, 2, WIDE)
    image = wave(1, 1, 8, 8, 8)
    assert n_available_outputs(network, WIDE) == 1
    (found,) = outputs(network, image, 1)
    assert torch.equal(found, network(image))


def test_a_custom_network_may_be_supervised():
    network = Supervised(1, 2, WIDE)
    assert n_available_outputs(network, WIDE) == 2
    found = outputs(network, wave(1, 1, 8, 8, 8), 2)
    assert isinstance(found, list)
    assert [tuple(output.shape) for output in found] == [(1, 2, 8, 8, 8), (1, 2, 8, 8, 4)]


# what the loop asks of a network


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 4, 6, 8, 8), (2, 5, 8, 8, 8), (1, 4, 8, 8, 8), (4, 2, 8, 8, 8)])
def test_logits_of_another_shape_are_refused_with_both(shape):
    with pytest.raises(SegpipeError) as error:
        require_shape(torch.zeros(shape), torch.zeros(2, 8, 8, 8), 4)
    assert f"found:    logits of shape {shape}" in str(error.value)
    assert "expected: (2, 4, 8, 8, 8), classes and then the shape of the patch" in str(error.value)


def test_logits_that_fit_are_taken():
    require_shape(torch.zeros(2, 4, 8, 7, 6), torch.zeros(2, 8, 7, 6), 4)
    require_shape(torch.zeros(3, 2, 7, 6), torch.zeros(3, 7, 6), 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("decoder.seg_layers.0.weight", True),
        ("seg_layers.1.bias", True),
        ("decoder.my_seg_layers.0.weight", False),
        ("decoder.seg_layers_2.weight", False),
        ("encoder.stages.0.0.convs.0.conv.weight", False),
    ],
)
def test_heads_are_known_by_their_module(name, expected):
    assert is_head(name) == expected
