"""What a job claims of GPUs, and which ones it gets beside the claims of others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segpipe.gpus import Gpu

CONTEXT_BYTES = 600e6  # what CUDA and its libraries take of a device for a process, beside its tensors
SHARED = 0.95  # of a device's memory that jobs which share it may keep within: the rest is lost between their blocks
IDLE = 0.1  # of a device's memory that may be used without a job being on it: a desktop, the driver
LEAVING_S = 3.0


@dataclass(frozen=True)
class Claim:
    """What a job's file says.

    since_ns : time of day at which it came
    n_bytes : of each device that it keeps within, without what CUDA takes for itself; infinite: it shares none
    wanted : uuids of the devices it may have, of which it wants n; taken : those that it has, none while it waits
    slurm_job : Slurm gives each job devices of its own, or says who shares one: jobs of another one do not count
    """

    pid: int
    job: str
    slurm_job: str | None
    since_ns: int
    n: int
    n_bytes: float
    wanted: tuple[str, ...]
    taken: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """All that it takes of a device's memory, bytes."""
        return self.n_bytes + CONTEXT_BYTES

    def __str__(self) -> str:
        return f"pid {self.pid}, {self.job} ({gb(self.n_bytes)})"


def gb(n_bytes: float) -> str:
    """What a job claims of a device, for messages."""
    return f"{n_bytes / 1e9:.3g} GB" if math.isfinite(n_bytes) else "all of its memory"


def choose(claim: Claim, devices: Sequence[Gpu], others: Sequence[Claim], free_s: float) -> list[Gpu]:
    """The devices that a job gets now: as many as it wants, or none.

    One on which processes that have no claim leave too little is taken only where there is no job to wait for.

    free_s : for how long there has been none; who was killed may not have given its memory back yet
    """
    before = {uuid for one in others if not one.taken and one.since_ns < claim.since_ns for uuid in one.wanted}
    free = [gpu for gpu in devices if gpu.uuid not in before]
    costs = {gpu.uuid: promised(gpu, others) for gpu in devices}
    empty = sorted((gpu for gpu in free if not costs[gpu.uuid]), key=_in_use)
    roomy = [gpu for gpu in empty if is_idle(gpu) or fits(claim, gpu, gpu.used_bytes)]
    shared = [gpu for gpu in free if costs[gpu.uuid] and fits(claim, gpu, max(costs[gpu.uuid], gpu.used_bytes))]
    usable = [*roomy, *sorted(shared, key=lambda gpu: costs[gpu.uuid] - gpu.total_bytes)]
    if len(usable) < claim.n and not any(costs.values()) and free_s >= LEAVING_S:
        taken_anyway = (gpu for gpu in empty if is_idle(gpu) or not gpu.is_exclusive)
        usable = sorted(taken_anyway, key=lambda gpu: gpu.used_bytes - gpu.total_bytes)
    return usable[: claim.n] if len(usable) >= claim.n else []


def _in_use(gpu: Gpu) -> tuple[bool, int]:
    """The order of devices without a job; an exclusive one refuses whoever comes beside the smallest process."""
    return not is_idle(gpu), gpu.used_bytes if gpu.is_exclusive else 0


def is_idle(gpu: Gpu) -> bool:
    """Whether it looks as if nobody computed on it."""
    return gpu.used_bytes <= IDLE * gpu.total_bytes


def fits(claim: Claim, gpu: Gpu, taken_bytes: float) -> bool:
    """Whether a device of which others have taken so much has room for a job, and may be shared with them."""
    return not gpu.is_exclusive and taken_bytes + claim.cost <= SHARED * gpu.total_bytes


def promised(gpu: Gpu, claims: Sequence[Claim]) -> float:
    """All that these jobs take of a device's memory, bytes."""
    return sum(one.cost for one in claims if gpu.uuid in one.taken)
