"""The optimiser and its rate. The rate is a pure function of the epoch, so a resume cannot get it wrong."""

import torch
from torch import nn

from segpipe.params import Train


def optimiser(network: nn.Module, settings: Train) -> torch.optim.SGD:
    """SGD with Nesterov momentum, fused where the device has it."""
    return torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=next(network.parameters()).device.type in ("cpu", "cuda"),
    )


def rate(settings: Train, epoch: int) -> float:
    """Polynomial decay per epoch (nnunetv2/training/lr_scheduler/polylr.py)."""
    return settings.learning_rate * (1 - epoch / settings.epochs) ** settings.poly_exponent
