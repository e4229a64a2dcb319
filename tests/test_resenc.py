"""The residual encoder U-Net: nnU-Net's names, shapes, first weights and outputs."""

import numpy as np
import pytest
import torch
from tiny import DATA, params, planned, wave
from torch import nn

from segpipe.data.labels import parse
from segpipe.training.network import build, create, n_available_outputs, n_inputs, outputs
from segpipe.training.resenc import MeanPool, ResidualEncoderUNet
from segpipe.training.unet import PlainConvUNet

ORACLE = np.load(DATA / "resenc_oracle.npz")
# channels, classes, plan: as data/make_resenc_oracle.py has them
NETWORKS = {
    "3d": (
        2,
        3,
        planned(
            [8, 8, 12],
            architecture="resenc",
            features_per_stage=[4, 8, 8],
            n_conv_per_stage=[1, 3, 2],
            n_conv_per_stage_decoder=[1, 1],
        ),
    ),
    "2d": (
        1,
        2,
        planned(
            [16, 24],
            architecture="resenc",
            features_per_stage=[4, 8, 8, 8],
            kernel_sizes=[[3, 3]] * 4,
            strides=[[1, 1]] + [[2, 2]] * 3,
            n_conv_per_stage=[1, 3, 4, 6],
            n_conv_per_stage_decoder=[1, 1, 1],
        ),
    ),
    "anisotropic": (
        1,
        4,
        planned(
            [4, 16, 8],
            architecture="resenc",
            features_per_stage=[4, 8, 12],
            kernel_sizes=[[1, 3, 3], [1, 3, 3], [3, 3, 3]],
            strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            n_conv_per_stage=[2, 1, 2],
            n_conv_per_stage_decoder=[2, 1],
        ),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_nnunets(name):
    state = ResidualEncoderUNet(*NETWORKS[name]).state_dict()
    expected = dict(zip(ORACLE[f"{name}_names"], ORACLE[f"{name}_shapes"], strict=True))
    assert {key: str(list(value.shape)) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_weights_give_nnunets_outputs(name):
    channels, classes, plan = NETWORKS[name]
    network = create(channels, classes, plan, None).eval()
    state = network.state_dict()
    for number, key in enumerate(sorted(state)):
        state[key].copy_(wave(*state[key].shape, seed=1 + number / 7) / 3)
    image = wave(1, channels, *plan.patch_size)
    with torch.no_grad():
        found = outputs(network, image, n_available_outputs(network, plan))
        finest = network(image)
    assert torch.equal(finest, found[0])
    assert np.allclose(torch.cat([output.flatten() for output in found]), ORACLE[f"{name}_outputs"], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scheme", ["he", "orthogonal"])
def test_residual_blocks_begin_as_their_skips(name, scheme):
    """What nnU-Net sets to zero is zero: biases, and the last norm of each block."""
    settings = params(train__initialisation=scheme).train
    state = build(*NETWORKS[name], settings).state_dict()
    assert {key for key, value in state.items() if not value.any()} == set(ORACLE[f"{name}_zeros"])


def test_no_module_is_one_that_deterministic_mode_refuses():
    """nn.AvgPool3d has no deterministic gradient on CUDA (torch.use_deterministic_algorithms)."""
    for channels, classes, plan in NETWORKS.values():
        for module in ResidualEncoderUNet(channels, classes, plan).modules():
            assert not isinstance(module, nn.AvgPool2d | nn.AvgPool3d | nn.MaxPool3d)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_pooling_is_the_mean_of_blocks(stride):
    image = wave(2, 3, 4, 6, 8)
    assert torch.allclose(MeanPool(stride)(image), nn.functional.avg_pool3d(image, stride, stride), atol=1e-6)


def test_the_plan_decides_which_network_is_made():
    assert type(create(1, 2, planned(), None)) is PlainConvUNet
    assert type(create(1, 2, planned(architecture="resenc"), None)) is ResidualEncoderUNet


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        ({"background": 0, "a": 1, "b": 2}, None, 2),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None, 2),
        ({"background": 0, "whole": [1, 2, 3], "part": [2, 3]}, [1, 2], 3),
    ],
)
def test_the_stage_before_adds_a_channel_per_foreground_value(labels, order, expected):
    parsed = parse(labels, order, "dataset.json")
    assert n_inputs(2, parsed, planned()) == 2
    assert n_inputs(2, parsed, planned(previous_stage="3d_lowres")) == 2 + expected
