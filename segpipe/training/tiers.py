"""Which memory a training's cases are fed from: the device's, the process's own, or their files.

The samples are the same in all three; only the speed differs. So this module is part of no digest.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from logging import getLogger
from typing import Any, Literal

import torch

from segpipe import device, gpus, lease, machine
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params, Runtime
from segpipe.prepare.presets import PRESETS
from segpipe.prepare.store import Store, StoredCase
from segpipe.training.held import HeldCase, Place

log = getLogger(__name__)

GB = 1e9
SHARE = 0.5  # of what is free: another fold may start on the same machine at the same moment, or one on each GPU
LOADING_THREADS = 4
LINE_EVERY_S = 30.0

Tier = Literal["device", "host", "file"]
Feeding = Literal["auto"] | Tier


@dataclass(frozen=True)
class Room:
    """What there is; bytes, but for `gpus`.

    dataset : of the cases of the fold, as they would be held
    planned : what the training itself is planned to take on a GPU
    device_free : on the CUDA device; None without one
    host_free : in main memory, for this process
    gpus : on this machine
    """

    dataset: int
    planned: int
    device_free: int | None
    host_free: int
    gpus: int


@dataclass(frozen=True)
class Choice:
    """A tier, and why."""

    tier: Tier
    reason: str


@dataclass(frozen=True)
class Held:
    """The cases of a training, where they are held."""

    cases: Mapping[str, HeldCase]
    place: Place
    choice: Choice
    room: Room

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        room = {key if key == "gpus" else f"{key}_bytes": value for key, value in asdict(self.room).items()}
        return {**asdict(self.choice), **room}


def choose(wanted: Feeding, on: str, room: Room) -> Choice:
    """The tier that `runtime.feeding` means on a type of device.

    Raises SegpipeError where a tier is asked for whose memory is not there.
    """
    if wanted != "auto":
        _require_room(wanted, on, room)
        return Choice(wanted, f"runtime.feeding: {wanted}")
    if on == "cpu":
        return Choice("file", "on the CPU the page cache holds what was read")
    if room.device_free is None:
        return off_device(room, f"no tier on {on}")
    left = room.device_free - room.planned
    found = f"{_gb(room.device_free)} GB are free on the GPU, {_gb(room.planned)} of them planned for the training"
    if room.dataset <= SHARE * left:
        return Choice("device", found)
    return off_device(room, found)


def off_device(room: Room, why: str) -> Choice:
    """The tier for a dataset that is not held on the device."""
    found = f"{why}; {_gb(room.host_free)} GB are free in memory"
    share = min(SHARE, 1 / max(room.gpus, 1))
    return Choice("host" if room.dataset <= share * room.host_free else "file", found)


def _require_room(wanted: Tier, on: str, room: Room) -> None:
    """A file needs none. What is asked for may take all that is free: whoever asks knows what else runs."""
    free = {"device": room.host_free if on == "cpu" else room.device_free, "host": room.host_free, "file": None}[wanted]
    if wanted == "device" and free is None:
        raise _refused(wanted, f"the device is {on}", "cuda or cpu")
    if free is not None and room.dataset > free:
        raise _refused(wanted, f"{_gb(room.dataset)} GB of cases", f"at most the {_gb(free)} GB that are free there")


def _refused(wanted: Tier, found: str, expected: str) -> SegpipeError:
    return SegpipeError(
        problem(
            "the cases cannot be held where the settings want them",
            where=f"params.yaml: runtime.feeding: {wanted}",
            found=found,
            expected=expected,
            cure="set runtime.feeding: auto, which takes what there is room for",
        )
    )


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / GB:.3g}"


def hold(store: Store, cases: Iterable[str], params: Params, on: torch.device) -> Held:
    """Choose a tier for these cases, bring them there, and say so in the log.

    Raises SegpipeError where `runtime.feeding` asks for a tier that they do not fit into.
    """
    stored = {case: store.open(case) for case in sorted(set(cases))}
    highest = len(store.cases.labels.file_values) - 1
    maps = torch.int8 if highest <= torch.iinfo(torch.int8).max else torch.int16
    n_bytes, planned = _n_bytes(stored.values(), maps), planned_bytes(params)
    free = device.free_bytes(on) if on.type == "cuda" else None
    room = Room(n_bytes, planned, free, machine.available_bytes(), len(gpus.installed()))
    choice = choose(params.runtime.feeding, on.type, room)
    if choice.tier == "device":
        lease.promise(planned + n_bytes)
    try:
        return _hold(stored, maps, on, params.runtime, choice, room)
    except torch.OutOfMemoryError:
        if params.runtime.feeding != "auto":
            found = f"{_gb(room.dataset)} GB of cases, and the GPU was full before all of them were there"
            raise _refused(choice.tier, found, "room for all of them") from None
    torch.cuda.empty_cache()  # for other processes
    lease.promise(planned)
    choice = off_device(room, "the GPU was full before all cases were there")
    return _hold(stored, maps, on, params.runtime, choice, room)


def planned_bytes(params: Params) -> int:
    """What a training takes of a GPU by its plan, without the cases; a prediction takes less, or what is left."""
    return int(GB * (params.plan.gpu_memory_gb or PRESETS[params.plan.preset].gb))


def _n_bytes(stored: Iterable[StoredCase], maps: torch.dtype) -> int:
    """Of images and label maps, as they would be held."""
    return sum(one.image.nbytes + (1 + (one.previous is not None)) * one.label.size * maps.itemsize for one in stored)


def _hold(
    stored: Mapping[str, StoredCase], maps: torch.dtype, on: torch.device, runtime: Runtime, choice: Choice, room: Room
) -> Held:
    cpu = torch.device("cpu")
    patches = on if on.type == "cuda" else cpu  # elsewhere batches are made on the CPU
    voxels = {"device": patches, "host": cpu, "file": None}[choice.tier]
    place = Place(voxels, maps, patches, pin=runtime.pin_memory and patches.type == "cuda")
    log.info("feeding from tier %s: cases of %s GB (%s)", choice.tier, _gb(room.dataset), choice.reason)
    return Held(_bring(stored, place), place, choice, room)


def _bring(stored: Mapping[str, StoredCase], place: Place) -> dict[str, HeldCase]:
    """Bring the cases to their place, a few at a time: memory for one copy is enough.

    Raises torch.OutOfMemoryError where the place is full; what was brought is gone then.
    """
    if place.voxels is None:
        return {case: HeldCase.of(one, place) for case, one in stored.items()}
    held: dict[str, HeldCase] = {}
    pool, last_line = ThreadPoolExecutor(LOADING_THREADS), time.monotonic()
    try:
        for case, one in zip(stored, pool.map(lambda one: HeldCase.of(one, place), stored.values()), strict=True):
            held[case] = one
            if time.monotonic() - last_line > LINE_EVERY_S:
                log.info("%d of %d cases are there", len(held), len(stored))
                last_line = time.monotonic()
    except torch.OutOfMemoryError:
        held.clear()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if place.voxels.type == "cuda":
        torch.cuda.synchronize(place.voxels)  # batches are made on a stream of their own
    return held
