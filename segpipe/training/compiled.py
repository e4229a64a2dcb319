"""Functions of whole batches, compiled for devices where passes over memory cost more than what is computed."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from segpipe.training.execution import FallingBack, can_compile


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call for arguments of any size.

    As it is where nothing can be compiled, and where deterministic algorithms are asked for: what is compiled may sum
    in another order the next time.
    """
    return function if torch.are_deterministic_algorithms_enabled() or not can_compile() else _compiled(function)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return FallingBack(torch.compile(function, dynamic=True), function)
