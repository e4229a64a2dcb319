"""Whether this process is a rank that cli/launch.py started, one of several that share a job. Standard library only."""

import ctypes
import os
import signal
import sys

LAUNCHER = "SEGPIPE_LAUNCHER"  # environment variable with the launcher's pid
LOST = 76  # exit code of a rank that lost the others (sysexits.h: EX_PROTOCOL)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
VISIBLE = "CUDA_VISIBLE_DEVICES"


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
    """In a rank, before anything is imported: see one GPU only, and end when the launcher does."""
    if is_rank():
        _see_own_gpu()
        _end_with_launcher()


def _see_own_gpu() -> None:
    """Each thread begins on the first GPU in sight: with several there, memory of the wrong one would be taken."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        os.environ[VISIBLE] = str(rank())
    elif n_ranks() == len(visible.split(",")):
        os.environ[VISIBLE] = visible.split(",")[rank()]


def _end_with_launcher() -> None:
    """SIGTERM when the launcher dies, of which a training saves its state and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it died before: nobody would ever tell
        sys.exit(LOST)
