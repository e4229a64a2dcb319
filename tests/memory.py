"""A training on random cases in memory, set up as from params.yaml and a store."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tiny import FOUR, params, planned, random_case
from torch import nn

from segpipe.prepare.plan import Configuration
from segpipe.prepare.store import StoredCase
from segpipe.training import tiers
from segpipe.training.feed import Feed
from segpipe.training.loop import Training, fit
from segpipe.training.setup import Setup
from segpipe.training.unet import PlainConvUNet

TRAIN, VAL = ["c0", "c1", "c2"], ["c3"]


class Cases(SimpleNamespace):
    """What a training asks of the list of cases. partly : the classes of cases that are not annotated for all"""

    def annotated(self, case: str) -> list[str] | None:
        return self.partly.get(case)


class Store(SimpleNamespace):
    """What a training asks of a store."""

    def open(self, case: str) -> StoredCase:
        return self.content[case]


def store(plan: Configuration | None = None, n_cases: int = 4, shape: tuple[int, ...] = (14, 14, 14)) -> Store:
    plan = plan or planned()
    n_channels = len(plan.normalisation)
    content = {f"c{i}": random_case(shape, n_channels, seed=i) for i in range(n_cases)}
    names = tuple(f"channel {i}" for i in range(n_channels))
    return Store(content=content, planned=plan, cases=Cases(labels=FOUR, channel_names=names, partly={}))


def feed(plan: Configuration | None = None, shape: tuple[int, ...] = (20, 20, 20), **changes: Any) -> Feed:
    """Four training and two validation cases; `changes` name settings as `train__seed`."""
    return feed_of(store(plan, 6, shape), **changes)


def feed_of(content: Store, on: str = "cpu", **changes: Any) -> Feed:
    """The same of a store of six cases."""
    settings = params(**changes)
    held = tiers.hold(content, [f"c{i}" for i in range(6)], settings, torch.device(on))
    return Feed(content, ["c0", "c1", "c2", "c3"], ["c4", "c5"], settings.train, held)


def setup(plan: Configuration | None = None, **changes: Any) -> Setup:
    return Setup.of(store(plan), {"train": TRAIN, "val": VAL}, params(**changes))


def training(plan: Configuration | None = None, **changes: Any) -> Training:
    return setup(plan, **changes).training(None, lambda: None)


def run(one: Training, between: Callable[[], None] = lambda: None) -> Training:
    """Train to the end, or to what `between` raises."""
    fit(one, between, lambda row, seconds: None)
    return one


def weights(network: torch.nn.Module) -> torch.Tensor:
    """All of them, in one row."""
    return torch.cat([value.flatten() for value in network.state_dict().values()])


class Dropping(nn.Module):
    """A network with dropout and batch norm. `drawn` : a mask of each forward pass while training."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(n_channels, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.drop, self.last = nn.Dropout(0.5), nn.Conv3d(8, n_classes, 1)
        self.drawn: list[list[float]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.drop(self.norm(self.first(image)).relu())
        if self.training:
            self.drawn.append(self.drop(torch.ones(64)).tolist())
        return self.last(features)


class Idle(nn.Module):
    """A network of which a part is never used."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__()
        self.used, self.idle = (nn.Conv3d(n_channels, n_classes, 3, padding=1) for _ in range(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.used(image)


class IdleUNet(PlainConvUNet):
    """The plan's network with a layer that is never used."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__(n_channels, n_classes, plan)
        self.idle = nn.Linear(2, 2)


def unpadded(n_channels: int, n_classes: int, plan: Configuration) -> nn.Module:
    return nn.Conv3d(n_channels, n_classes, 3)


def one_class_too_many(n_channels: int, n_classes: int, plan: Configuration) -> nn.Module:
    return nn.Conv3d(n_channels, n_classes + 1, 1)
