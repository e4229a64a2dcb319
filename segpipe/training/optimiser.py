"""Parameter groups and the optimiser that updates them."""

from typing import Any

import torch
from torch import nn

from segpipe import plugins
from segpipe.params.train import Optimiser, Part
from segpipe.training.network import is_head
from segpipe.training.unet import UNet


def part_of(name: str) -> Part:
    """The part of the network that a parameter belongs to, by the name that the plan's networks give it."""
    return "heads" if is_head(name) else "encoder" if name.startswith("encoder.") else "decoder"


def groups(network: nn.Module, settings: Optimiser) -> list[dict[str, Any]]:
    """Parameters of equal rate and decay together, each that is learnt exactly once.

    With `decay_norm_and_bias: false` only kernels decay, which are the parameters of more than one axis.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = settings.decay_norm_and_bias or parameter.ndim > 1
            key = settings.rate_factors[part_of(name)], settings.weight_decay if decays else 0.0
            found.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": settings.learning_rate * factor, "rate_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in found.items()
    ]


def build(network: nn.Module, settings: Optimiser, scaled: bool) -> torch.optim.Optimizer:
    """The optimiser over the parameters that are learnt, fused where the device has it.

    scaled : gradients are those of a scaled loss (fp16). Then it is not fused: where the first step overflows, the
        fused SGD of torch 2.13 leaves its momentum uninitialised (torch/optim/sgd.py, `_fused_sgd`). Nor is it for a
        network of the user's own, which may learn other parameters in other steps: with the momentum of some only, the
        fused SGD fails.
    """
    parameters = groups(network, settings)
    on = parameters[0]["params"][0].device.type
    fused = on in ("cpu", "cuda") and not scaled and isinstance(network, UNet)
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused)
    if settings.name == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(parameters, betas=(first, second), fused=fused)
    custom: torch.optim.Optimizer = plugins.load(settings.name, "train.optimiser.name")(parameters, settings)
    return custom


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]
