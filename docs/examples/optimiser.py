"""Lion: steps of equal size in every weight, with half of AdamW's memory."""

from collections.abc import Callable
from typing import Any

import torch

from segpipe.params.train import Optimiser


class Lion(torch.optim.Optimizer):
    """The sign of a running mean of the gradients (Chen et al. 2023, algorithm 2).

    Usual are a third to a tenth of AdamW's learning rate, and so much more weight decay.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: Optimiser) -> None:
        super().__init__(groups, {"betas": settings.betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["mean"] = torch.zeros_like(parameter)
                    mean = state["mean"]
                    direction = torch.lerp(parameter.grad, mean, first).sign_()
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                    mean.lerp_(parameter.grad, 1 - second)
