"""A rate that stays for most of the training, so that the training can be made longer without a new start."""

from segpipe.params.train import Schedule

FALLS_FROM = 0.8


def hold_then_fall(p: float, settings: Schedule) -> float:
    """1 up to p = 0.8, then down to 0 as 1 - sqrt (Hägele et al. 2024). p : share of the training that is done."""
    return 1 - max((p - FALLS_FROM) / (1 - FALLS_FROM), 0) ** 0.5
