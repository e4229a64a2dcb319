"""Parameter groups and the updates of SGD and AdamW, written down again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import params, planned
from torch import nn

from segpipe.training import optimiser, pretrained
from segpipe.training.network import build
from segpipe.training.optimiser import groups, part_of, set_rate


def block(**changes):
    return params(**{f"train__optimiser__{key}": value for key, value in changes.items()}).train.optimiser


def unet(axes=3):
    return build(1, 4, planned([8] * axes), params().train)


def by_name(network, found):
    """Each learnt parameter's group, by name."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group for group in found for parameter in group["params"]}


# groups


FACTORS = st.sampled_from([0.1, 0.5, 1.0, 2.0])


@settings(max_examples=20, deadline=None)
@given(
    decay_everything=st.booleans(),
    decay=st.sampled_from([0.0, 0.01]),
    factors=st.fixed_dictionaries({"encoder": FACTORS, "decoder": FACTORS, "heads": FACTORS}),
    freeze=st.sets(st.sampled_from(["encoder.*", "decoder.stages.*", "*.bias", "*seg_layers.0*"])),
    axes=st.sampled_from([2, 3]),
    name=st.sampled_from(["sgd", "adamw"]),
)
def test_each_learnt_parameter_is_in_one_group_with_its_own_rate_and_decay(
    decay_everything, decay, factors, freeze, axes, name
):
    network = unet(axes)
    frozen = set(pretrained.freeze(network, sorted(freeze)))
    of = block(
        name=name,
        learning_rate=0.2,
        weight_decay=decay,
        decay_norm_and_bias=decay_everything,
        rate_factors=factors,
    )
    built = optimiser.build(network, of, scaled=False)
    found = built.param_groups
    assert sum(len(group["params"]) for group in found) == len(by_name(network, found))  # none twice
    group_of = by_name(network, found)
    assert set(group_of) == {key for key, _ in network.named_parameters()} - frozen
    for key, group in group_of.items():
        part = "heads" if ".seg_layers." in key else key.split(".")[0]
        is_kernel = key.endswith("weight") and ".norm." not in key
        assert group["lr"] == pytest.approx(0.2 * factors[part])
        assert group["weight_decay"] == (decay if decay_everything or is_kernel else 0)
    set_rate(built, 0.05)
    assert all(group["lr"] == pytest.approx(0.05 * factors[part_of(key)]) for key, group in group_of.items())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.stages.0.0.convs.0.conv.weight", "encoder"),
        ("decoder.stages.0.convs.0.norm.bias", "decoder"),
        ("decoder.transpconvs.1.weight", "decoder"),
        ("decoder.seg_layers.0.weight", "heads"),
        ("seg_layers.0.weight", "heads"),
        ("block.encoder.weight", "decoder"),
    ],
)
def test_parts_are_known_by_name(name, part):
    assert part_of(name) == part


def test_every_parameter_of_the_network_has_the_default_rate_and_decay_as_in_nnunet():
    network = unet()
    (group,) = groups(network, block())
    assert len(group["params"]) == len(list(network.parameters()))
    assert (group["lr"], group["weight_decay"]) == (0.01, 3e-5)


def test_a_parameter_that_two_modules_share_is_updated_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    assert sum(len(group["params"]) for group in groups(network, block(decay_norm_and_bias=False))) == 3


# updates


def updated(of, rates):
    """Weight and bias of a small network after some steps, as the optimiser computes them and as `expected` does."""
    network = nn.Linear(3, 1)
    start = {key: value.detach().clone() for key, value in network.named_parameters()}
    gradients = {"weight": torch.tensor([[1.0, -2.0, 0.5]]), "bias": torch.tensor([0.7])}
    one = optimiser.build(network, of, scaled=False)
    for i, rate in enumerate(rates):
        set_rate(one, rate)
        for key, value in network.named_parameters():
            value.grad = gradients[key] * (i + 1) * (-1) ** i
        one.step()
    after = {key: value.detach() for key, value in network.named_parameters()}
    return start, gradients, after


RATES = [0.1, 0.1, 0.05, 0.02]


@pytest.mark.parametrize("decay_everything", [True, False])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_nesterovs_momentum_with_an_l2_penalty(momentum, decay_everything):
    """v = m v + g + wd w; w = w - lr (g + wd w + m v)."""
    of = block(momentum=momentum, weight_decay=0.01, decay_norm_and_bias=decay_everything)
    start, gradients, after = updated(of, RATES)
    for key in start:
        w = start[key]
        v = torch.zeros_like(w)
        decay = 0.01 if decay_everything or key == "weight" else 0
        for i, rate in enumerate(RATES):
            g = gradients[key] * (i + 1) * (-1) ** i + decay * w
            v = momentum * v + g
            w = w - rate * (g + momentum * v)
        assert torch.allclose(after[key], w, atol=1e-6)


@pytest.mark.parametrize("decay_everything", [True, False])
def test_adamw_decays_the_weights_themselves(decay_everything):
    """Loshchilov and Hutter 2019, algorithm 2."""
    of = block(name="adamw", betas=[0.8, 0.95], weight_decay=0.3, decay_norm_and_bias=decay_everything)
    start, gradients, after = updated(of, RATES)
    for key in start:
        w = start[key]
        m = v = torch.zeros_like(w)
        decay = 0.3 if decay_everything or key == "weight" else 0
        for i, rate in enumerate(RATES):
            g = gradients[key] * (i + 1) * (-1) ** i
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
            first, second = m / (1 - 0.8 ** (i + 1)), v / (1 - 0.95 ** (i + 1))
            w = w - rate * decay * w - rate * first / (second.sqrt() + 1e-8)
        assert torch.allclose(after[key], w, atol=1e-6)


def test_rate_factors_scale_the_step_of_each_part():
    network = unet()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    factors = {"encoder": 0.5, "decoder": 1.0, "heads": 4.0}
    one = optimiser.build(network, block(rate_factors=factors, momentum=0.0, weight_decay=0.0), scaled=False)
    set_rate(one, 0.01)
    for value in network.parameters():
        value.grad = torch.ones_like(value)
    one.step()
    for key, value in network.named_parameters():
        assert torch.allclose(before[key] - value, torch.tensor(0.01 * factors[part_of(key)]), atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("scaled", [False, True])
def test_updates_are_fused_where_gradients_are_not_scaled(name, scaled):
    """torch's fused SGD would begin with whatever memory held, where the first step overflows."""
    one = optimiser.build(unet(), block(name=name), scaled)
    assert one.defaults["fused"] is not scaled


def test_momentum_may_be_off():
    assert not optimiser.build(nn.Linear(1, 1), block(momentum=0.0), scaled=False).defaults["nesterov"]


def test_an_optimiser_of_an_import_path_gets_the_groups_and_the_settings(tmp_path, monkeypatch):
    (tmp_path / "my_optimisers.py").write_text(
        "import torch\ndef own(groups, settings):\n    return torch.optim.RMSprop(groups, alpha=settings.momentum)\n"
    )
    monkeypatch.chdir(tmp_path)
    of = block(name="my_optimisers:own", momentum=0.7, decay_norm_and_bias=False)
    one = optimiser.build(nn.Linear(2, 1), of, scaled=False)
    assert isinstance(one, torch.optim.RMSprop)
    assert one.defaults["alpha"] == 0.7
    assert [group["weight_decay"] for group in one.param_groups] == [3e-5, 0]
    set_rate(one, 0.5)
    assert [group["lr"] for group in one.param_groups] == [0.5, 0.5]


class Sometimes(nn.Module):
    """Learns its second kernel from the second step on."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.n = nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1), 0

    def forward(self, x):
        self.n += 1
        return self.first(x) if self.n == 1 else self.second(self.first(x))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_network_may_learn_other_parameters_in_other_steps(name):
    network = Sometimes()
    one = optimiser.build(network, block(name=name), scaled=False)
    before = network.second.weight.clone()
    for _ in range(3):
        one.zero_grad(set_to_none=True)
        network(torch.ones(1, 1, 4, 4, 4)).square().mean().backward()
        one.step()
    assert not torch.equal(network.second.weight, before)
