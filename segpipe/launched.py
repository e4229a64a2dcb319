"""Whether this process is a rank that cli/launch.py started, one of several that share a job. Standard library only."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

LAUNCHER = "SEGPIPE_LAUNCHER"  # environment variable with the launcher's pid
SHARE = "segpipe.share"  # logger of what every rank says, of its own share of the work
LOST = 76  # exit code of a rank that lost the others (sysexits.h: EX_PROTOCOL)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
VISIBLE = "CUDA_VISIBLE_DEVICES"
STDIN = 0
_lock: int | None = None  # descriptor of the launcher's lock, in a rank; of one that is kept


def is_rank() -> bool:
    """Whether a launcher started this process."""
    return LAUNCHER in os.environ


def rank() -> int:
    """Which rank this process is, from 0; 0 for one that is alone."""
    return int(os.environ["LOCAL_RANK"]) if is_rank() else 0


def n_ranks() -> int:
    """How many ranks share the job; 1 for a process that is alone."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if is_rank() else 1


def begin() -> None:
    """Before anything is imported: number GPUs as nvidia-smi does, not by their speed, as CUDA would.

    In a rank: see one GPU only, share the lock, and end when the launcher does.
    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    _fill_input()
    if is_rank():
        _see_own_gpu()
        _end_with_launcher()
        _keep_lock()


def _fill_input() -> None:
    """Where standard input is closed, its number would go to the next file that is opened, which `hand_down` closes."""
    try:
        os.fstat(STDIN)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)


def hand_down(lock: int) -> None:
    """Let the ranks that this process will start hold its lock as well, until the last of them has ended.

    They inherit it as standard input, as torchrun closes all else. lock : descriptor of the file that is locked
    """
    os.dup2(lock, STDIN)
    os.set_inheritable(STDIN, True)  # the lock may have taken the place of an input that was closed


def holds(lock: Path) -> bool:
    """Whether this process has inherited the lock of that file, or keeps it."""
    return _lock is not None and os.path.samestat(os.fstat(_lock), lock.stat())


@contextlib.contextmanager
def keeping(lock: int) -> Iterator[None]:
    """In the block, who asks for this lock in this process has it. lock : descriptor of the file that is locked"""
    global _lock  # noqa: PLW0603  # of a process
    before, _lock = _lock, lock
    try:
        yield
    finally:
        _lock = before


def _see_own_gpu() -> None:
    """Each thread begins on the first GPU in sight: with several there, memory of the wrong one would be taken."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        os.environ[VISIBLE] = str(rank())
    elif n_ranks() <= len(visible.split(",")):
        os.environ[VISIBLE] = visible.split(",")[rank()]


def _end_with_launcher() -> None:
    """SIGTERM when the launcher dies, of which a training saves its state and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it died before: nobody would ever tell
        sys.exit(LOST)


def _keep_lock() -> None:
    """Keep what `hand_down` gave where no program that this process starts inherits it."""
    global _lock  # noqa: PLW0603  # of a process
    with contextlib.suppress(OSError):  # nothing was given, and there was no input
        _lock = os.dup(STDIN)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), STDIN)
