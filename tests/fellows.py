"""Trainings of several ranks, each a process, beside the same training of one: python tests/fellows.py OUT.

One process imports everything and forks the ranks before anything is computed, which saves most of the time.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import memory
import torch
from tiny import params, planned

from segpipe import device, gpus, launched, ranks
from segpipe.errors import SegpipeError
from segpipe.gpus import Gpu
from segpipe.prepare.plan import Configuration
from segpipe.ranks import ALONE, Ranks
from segpipe.training.feed import Batch, Feed
from segpipe.training.loop import fit
from segpipe.training.setup import Setup

STEPS = 3


@dataclass(frozen=True)
class Fellowship:
    """A training, and how many ranks share it. partly : classes of the cases that are not annotated for all"""

    plan: Configuration
    n: int = 2
    partly: dict[str, list[str]] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


# No Adam: it divides by their size the gradients of biases in front of a norm, which are nothing but rounding.
OTHERS = {
    "train__optimiser__clip_norm": 0.5,
    "train__schedule__name": "cosine",
    "train__schedule__per": "iteration",
    "train__ema": {"decay": 0.9, "ramp_steps": 3},
    "train__replacement": False,
}
FELLOWSHIPS = {
    "Dice of each sample": Fellowship(planned()),
    "Dice of the batch": Fellowship(planned(batch_dice=True)),
    "uneven shares": Fellowship(planned(batch_size=3)),
    "uneven shares of a common Dice": Fellowship(planned(batch_size=3, batch_dice=True)),
    "a rank per sample": Fellowship(planned(batch_size=3, batch_dice=True), n=3),
    "accumulated": Fellowship(planned(batch_size=3), changes={"train__accumulate": 2}),
    "accumulated with a common Dice": Fellowship(planned(batch_dice=True), changes={"train__accumulate": 3}),
    "clipped, running mean, passes": Fellowship(planned(), changes=OTHERS),
    "2d": Fellowship(planned((8, 8))),
    "partly annotated": Fellowship(planned(batch_dice=True), partly={"c1": ["one"], "c2": ["two", "three"]}),
    "a network with idle parts": Fellowship(planned(), changes={"train__network": "memory:Idle"}),
    "a plan's network with idle parts": Fellowship(planned(), changes={"train__network": "memory:IdleUNet"}),
    "an output that counts for nothing": Fellowship(planned(), changes={"train__loss__deep_supervision": [1.0, 0.0]}),
    "frozen parts": Fellowship(planned(), changes={"train__freeze": ["encoder.*"]}),
}


def begun(fellowship: Fellowship, fellows: Ranks) -> Setup:
    store = memory.store(fellowship.plan)
    store.cases.partly.update(fellowship.partly)
    settings = params(train__epochs=2, train__iterations_per_epoch=STEPS, **fellowship.changes)
    fold = {"train": memory.TRAIN, "val": memory.VAL}
    return Setup.of(store, fold, settings, fellows)


def trained(fellowship: Fellowship, fellows: Ranks) -> dict[str, Any]:
    """What came of it in a rank."""
    seen: list[list[Any]] = []
    one = begun(fellowship, fellows).training(None, lambda: None)
    one.feed = _noting(one.feed, seen)
    fit(one, lambda: None, lambda row, seconds: None)
    averaged = None if one.averaged is None else memory.weights(one.averaged)
    return {"weights": memory.weights(one.network), "averaged": averaged, "rows": one.rows, "seen": seen}


def _noting(feed: Feed, seen: list[list[Any]]) -> Feed:
    """A feed that notes the case and the box of each training sample, and its voxels."""

    class Noting(Feed):
        def training(self, number: int) -> Batch:
            batch = super().training(number)
            boxes = [[case, list(box.start), list(box.size)] for case, box in batch.sources]
            seen.extend([number, *box, float(image.sum())] for box, image in zip(boxes, batch.image, strict=True))
            return batch

    return Noting(**{one.name: getattr(feed, one.name) for one in fields(feed)})


def talked(fellows: Ranks) -> dict[str, Any]:
    """What ranks tell each other."""
    items = list("abcde")
    return {
        "share": list(fellows.share(5)),
        "turns": list(fellows.turns(items)),
        "collected": fellows.collected(fellows.own(items)),
        "same": fellows.same(f"from {fellows.rank}"),
        "highest": fellows.highest(15 * fellows.rank),
        "total": fellows.total(torch.tensor([1.0, fellows.rank])).tolist(),
        "gpus": gpus_of(fellows),
        "kinds": kinds_of(fellows),
        "parallel": order_of_parallel(fellows),
        "order": fellows.first_before_others(lambda: fellows.rank),
    }


def gpus_of(fellows: Ranks) -> tuple[list[str], list[str]]:
    """Of the device's facts and of a training's, where CUDA shows each rank one GPU, as if the CPU were it."""
    on = torch.device("cuda")
    own = Gpu(f"GPU-{fellows.rank}", f"GPU-{fellows.rank}", fellows.rank, "NVIDIA T", 24 * 10**9, 0)
    with patch.object(gpus, "visible", lambda: [own]):
        facts = device.facts(on, fellows)
        with patch.object(device, "facts", lambda _, fellows, asked=device.facts: asked(on, fellows)):
            setup = begun(Fellowship(planned(batch_size=3)), fellows)
    return [gpu["uuid"] for gpu in facts["gpus"]], [gpu["uuid"] for gpu in setup.computes_on["gpus"]]


def kinds_of(fellows: Ranks) -> tuple[str, str, list[float]]:
    """What is said where the first rank has a GPU, and the others not; how long NCCL waits where all have one."""
    try:
        fellows.on(torch.device("cpu" if fellows.rank else "cuda"))
        said = ""
    except SegpipeError as error:
        said = str(error)
    asked: list[float] = []
    with patch.object(
        ranks.dist, "new_group", lambda backend, timeout: asked.append(timeout.total_seconds()) or backend
    ):
        return said, fellows.on(torch.device("cuda")).group, asked


def order_of_parallel(fellows: Ranks) -> list[str]:
    """Who has read its cases sooner waits for the others before NCCL is asked for anything, which waits an hour."""
    setup, done = begun(Fellowship(planned(batch_size=3)), fellows), list[str]()
    with (
        patch.object(Ranks, "meet", lambda _: done.append("met")),
        patch("segpipe.training.setup.Parallel", lambda *arguments: done.append("built")),
    ):
        setup.training(None, lambda: None)
    return done


def late(fellows: Ranks) -> bool:
    """Whether all have come when the ranks have met; the last one takes its time."""
    came = Path(os.environ["CAME"])
    if fellows.rank == fellows.n - 1:
        time.sleep(1)
    (came / str(fellows.rank)).touch()
    fellows.meet()
    return len(list(came.iterdir())) == fellows.n


def forked(n: int, work: Callable[[Ranks], Any], out: Path) -> None:
    """Do work in `n` ranks, and write what each of them returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(n):
        if (pid := os.fork()) == 0:
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_PORT": port}
            told |= {"MASTER_ADDR": "127.0.0.1", launched.LAUNCHER: os.getppid()}
            os.environ |= {name: str(value) for name, value in told.items()}
            status = 1
            try:
                with ranks.joined() as fellows:
                    torch.save(work(fellows), out.with_name(f"{out.name}.{rank}"))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert statuses == [0] * n, (out.name, statuses)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)  # imports for seconds what each training imports
    for index, fellowship in enumerate(FELLOWSHIPS.values()):
        forked(fellowship.n, lambda fellows, one=fellowship: trained(one, fellows), out / str(index))
    for n in (2, 3):
        forked(n, talked, out / f"talked{n}")
    os.environ["CAME"] = str(out / "came")
    (out / "came").mkdir()
    forked(8, late, out / "late")
    for index, fellowship in enumerate(FELLOWSHIPS.values()):
        torch.save(trained(fellowship, ALONE), out / f"{index}.alone")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
