"""What of this machine is this process's: main memory and processors, within the limits of its job. No torch."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from segpipe import launched

OWN, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# of a group that is limited, in version 2 of the control groups and in version 1: the limit, and what counts as taken.
# Caches do not, as the kernel drops them; files that are in memory alone (tmpfs) do.
MEMORY = (("memory.max", ("anon", "shmem")), ("memory.limit_in_bytes", ("total_rss", "total_shmem")))


def available_bytes() -> int:
    """Main memory that this process may still take: of the machine's, and of its job's.

    A job that takes more than its limit (Slurm, a container) is killed without a word. Ranks have equal shares.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_bytes()])) // launched.n_ranks()


def n_threads(wanted: int | None) -> int:
    """CPU threads of this process: as wanted, or what OMP_NUM_THREADS says, as Snakemake does, or one per processor.

    Processors are those that it is bound to, or fewer where its job's time on them is limited.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted or (int(said) if said.isdecimal() else 0) or max(1, int(min([bound, *_quotas()])))


def at_once(threads: int | None, bytes_each: int) -> int:
    """How many pieces of work may be done together: as many as `n_threads`, if half of the memory holds them."""
    return max(1, min(n_threads(threads), available_bytes() // 2 // bytes_each))


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, each of which may set a limit.

    Version 2 has one tree for all controllers, version 1 a tree per controller. In a container the path may be the one
    that the host sees, and the container's own group lies at the root.
    """
    for line in OWN.read_text().splitlines() if OWN.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            tree = MOUNTED / controller if controllers else MOUNTED
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield tree / group.relative_to("/")


def _left_bytes() -> Iterator[int]:
    """What each limit on this process's memory leaves."""
    for group in _groups("memory"):
        for name, counted in MEMORY:
            if (limit := _read(group / name)) not in ("", "max"):
                stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                yield int(limit) - sum(int(stat.get(key, 0)) for key in counted)


def _quotas() -> Iterator[float]:
    """How many processors' time each limit grants."""
    for group in _groups("cpu"):
        version_1 = f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        quota, _, period = (_read(group / "cpu.max") or version_1).partition(" ")
        if quota.isdecimal():  # neither "max" nor, in version 1, -1
            yield int(quota) / int(period)


def _read(path: Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
