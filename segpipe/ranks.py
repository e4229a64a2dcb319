"""The processes that share one job, a rank per device: which of them this one is, and what they tell each other.

torchrun starts them (cli/launch.py) and tells each through its environment. What steers the job (signals, decisions,
numbers of an epoch) goes between processors through gloo, so that no device is waited for; gradients go through NCCL.
A rank whose partner has died ends with LOST: it is not the one that knows why.
"""

import contextlib
import ctypes
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, zip_longest
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segpipe import digest

log = getLogger(__name__)

T = TypeVar("T")

LOST = 76  # exit code of a rank that lost the others (sysexits.h: EX_PROTOCOL)
LOST_AFTER_S = 2.0  # the launcher shall see first who died
# A rank may wait for days, for a lock that an earlier training holds; that a partner died is noticed by its connection.
PATIENCE = timedelta(days=30)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GONE = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|socket closed|nccl|timed out", re.I)
NOBODY = object()


class Lost(SystemExit):
    """Another rank is gone. The exit status is LOST."""

    def __init__(self) -> None:
        super().__init__(LOST)


@dataclass(frozen=True)
class Ranks:
    """Who shares the job.

    rank : of this process, from 0
    n : how many there are
    group : through which tensors of the device go; None for one that is alone
    """

    rank: int = 0
    n: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def on(self, device: torch.device) -> "Ranks":
        """The same, for tensors on a device."""
        return replace(self, group=dist.new_group(backend="nccl")) if self.n > 1 and device.type == "cuda" else self

    def share(self, n_items: int) -> range:
        """Which of `n_items` in a row are this rank's; the shares differ by one at most."""
        return range(self.rank * n_items // self.n, (self.rank + 1) * n_items // self.n)

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Every n-th item: those that this rank takes in `turns`."""
        return items[self.rank :: self.n]

    def turns(self, items: Sequence[T]) -> Iterator[T | None]:
        """Every n-th item; None where the others have one more, so that all ranks take as many turns."""
        for turn in range(math.ceil(len(items) / self.n)):
            number = turn * self.n + self.rank
            yield items[number] if number < len(items) else None

    def collected(self, own: Sequence[T]) -> list[T]:
        """What all ranks made of their `own` items, in the order of the items. Plain data."""
        if self.n == 1:
            return list(own)
        parts: list[Any] = [None] * self.n
        with watched(self):
            dist.all_gather_object(parts, list(own))
        return [one for one in chain(*zip_longest(*parts, fillvalue=NOBODY)) if one is not NOBODY]

    def same(self, value: T) -> T:
        """The first rank's value, in all ranks. Plain data; waits until all have come here."""
        if self.n == 1:
            return value
        values = [value]
        with watched(self):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def highest(self, number: int) -> int:
        """The highest of all ranks' numbers; waits until all have come here."""
        if self.n == 1:
            return number
        value = torch.tensor(number)
        with watched(self):
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def total(self, own: Tensor) -> Tensor:
        """The sum of all ranks' tensors, of a shape that all share; on a device nothing is waited for."""
        if self.n == 1:
            return own
        value = own.detach().clone()
        with watched(self):
            dist.all_reduce(value, group=self.group)
        return value

    def meet(self) -> None:
        """Wait until all have come here."""
        self.same(None)

    def first_before_others(self, work: Callable[[], T]) -> T:
        """Do what leaves files behind in the first rank, then in the others, which find them."""
        if self.is_first:
            result = work()
            self.meet()
            return result
        self.meet()
        return work()

    @contextlib.contextmanager
    def exclusive(self, lock: Path, doing: str) -> Iterator[Callable[[str], None]]:
        """`digest.exclusive` for all of them: the first one holds the lock, the others begin when it does."""
        if not self.is_first:
            self.meet()
            yield lambda progress: None
            return
        with digest.exclusive(lock, doing) as report:
            self.meet()
            yield report


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other ranks, where torchrun has started several; this process ends when the launcher does."""
    if n_local() == 1:
        yield ALONE
        return
    _end_with_parent()
    dist.init_process_group("gloo", timeout=PATIENCE)
    with watched(ranks := Ranks(dist.get_rank(), dist.get_world_size())):
        yield ranks
        dist.barrier()  # none ends while another one still writes: the launcher would end it
    dist.destroy_process_group()


def n_local() -> int:
    """How many ranks torchrun started on this machine; 1 for a process that it did not start."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def watched(ranks: Ranks) -> Iterator[None]:
    """Where the block fails because another rank is gone, leave it to that one, or to the launcher, to say why.

    Raises Lost.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.n == 1 or not GONE.search(str(error)):
            raise
        log.warning("another rank has ended")
        time.sleep(LOST_AFTER_S)
        raise Lost from error


def _end_with_parent() -> None:
    """Have SIGTERM sent to this process when its launcher dies: it saves its state and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
