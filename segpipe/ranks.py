"""The processes that share one job, a rank per device: which of them this one is, and what they tell each other.

torchrun starts them (cli/launch.py) and tells each through its environment. What steers the job (signals, decisions,
numbers of an epoch) goes between processors through gloo, so that no device is waited for; gradients go through NCCL.
A rank whose partner has died ends with LOST: who died knows why, or the launcher.
"""

import contextlib
import math
import re
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

from segpipe import digest, launched
from segpipe.errors import SegpipeError, problem

log = getLogger(__name__)

T = TypeVar("T")

LOST_AFTER_S = 5.0  # the launcher shall see first who died, and ends the others before they speak
MEETING = timedelta(minutes=10)  # all ranks have begun
# A rank may wait for days, for a lock that an earlier job holds; that a partner died is noticed by its connection.
PATIENCE = timedelta(days=30)
# What NCCL waits between two steps at most: one rank may read its cases, compile or validate longer than another. torch
# takes 10 minutes, and its watchdog then aborts the process.
WATCHDOG = timedelta(hours=1)
# How gloo, torch's store and NCCL say that a partner is gone. What else they say is an error of this rank.
GONE = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)|broken pipe|socket closed|caused pair closure"
    r"|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)
NOBODY = object()


class Lost(SystemExit):
    """Another rank is gone."""

    def __init__(self) -> None:
        super().__init__(launched.LOST)


@dataclass(frozen=True)
class Ranks:
    """Who shares the job.

    rank : of this process, from 0
    n : how many there are
    control : through which go what is no tensor of the device, and waiting; group : through which those go. Both None
        for one that is alone
    """

    rank: int = 0
    n: int = 1
    control: Any = None
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def on(self, device: torch.device) -> "Ranks":
        """The same, for tensors on a device; waits until all have come here.

        Raises SegpipeError where they are on different kinds of devices: they would wait for each other for ever.
        """
        kinds = self.collected([device.type])
        if len({*kinds}) > 1:
            raise SegpipeError(
                problem(
                    "the ranks are on different kinds of devices",
                    where="params.yaml: runtime.num_gpus",
                    found=", ".join(f"rank {rank} on {kind}" for rank, kind in enumerate(kinds)),
                    expected="a GPU for each, or cpu for all",
                    cure="set it to the number of GPUs that work (nvidia-smi) and that CUDA_VISIBLE_DEVICES names",
                )
            )
        is_nccl = self.n > 1 and device.type == "cuda"
        return replace(self, group=dist.new_group(backend="nccl", timeout=WATCHDOG)) if is_nccl else self

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
            dist.all_gather_object(parts, list(own), group=self.control)
        return [one for one in chain(*zip_longest(*parts, fillvalue=NOBODY)) if one is not NOBODY]

    def same(self, value: T) -> T:
        """The first rank's value, in all ranks, which wait for it. Plain data."""
        if self.n == 1:
            return value
        values = [value]
        with watched(self):
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def highest(self, number: int) -> int:
        """The highest of all ranks' numbers; waits until all have come here."""
        if self.n == 1:
            return number
        value = torch.tensor(number)
        with watched(self):
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
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
        if self.n > 1:
            with watched(self):
                dist.barrier(group=self.control)

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
    """Meet the other ranks, where a launcher has started several; wait for them at the end, which it sees as one."""
    if launched.n_ranks() == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=MEETING)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), control, control)
    yield ranks
    ranks.meet()
    dist.destroy_process_group()


@contextlib.contextmanager
def watched(ranks: Ranks) -> Iterator[None]:
    """Where the block fails because another rank is gone, end: that one, or the launcher, says why.

    Raises Lost.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.n == 1 or not GONE.search(str(error)):
            raise
        time.sleep(LOST_AFTER_S)
        log.error("another rank has ended (%s)", str(error).split("\n")[0])
        raise Lost from error
