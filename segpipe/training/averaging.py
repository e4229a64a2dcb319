"""The exponential moving average of the weights, kept as a network of its own."""

import math

import torch
from torch import nn

from segpipe.params.train import Ema


def decay_at(step: int, settings: Ema) -> float:
    """The decay of a step, counted from 0; it grows with `ramp_steps`, as the classic detector trainers have it."""
    assert settings.decay is not None
    return settings.decay * (1 - math.exp(-(step + 1) / settings.ramp_steps)) if settings.ramp_steps else settings.decay


@torch.no_grad()
def update(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network, parameter by parameter; buffers are copied."""
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
    for mine, current in zip(averaged.buffers(), network.buffers(), strict=True):
        mine.copy_(current)
