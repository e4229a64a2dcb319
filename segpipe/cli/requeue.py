"""A job of Slurm that goes on later: its time limit is near, or another job still writes its results.

`scontrol requeue` brings it back under its own number, at the earliest when its old credential has expired (two
minutes by default). Snakemake sees it pending, so neither a retry is used up nor has Snakemake to be there.
"""

import os
import signal
import subprocess
import time
from logging import getLogger

from segpipe import launched

log = getLogger(__name__)

# profiles/slurm has Slurm send SIGUSR1 before the time limit. SIGTERM is what cancels: that job shall not come back.
TIME_IS_UP = 128 + signal.SIGUSR1
# Less work than this before the limit is a limit too short: the job fails, and Snakemake's retries are counted.
LEAST_WORK_S = 10
_started_s = time.monotonic()


def when_time_is_up(exit_status: object) -> None:
    """Requeue the job of a process that ends with this status, where that is because its time limit is near."""
    if exit_status != TIME_IS_UP or launched.is_rank():  # of several ranks, their launcher does it
        return
    if time.monotonic() - _started_s >= LEAST_WORK_S:
        _requeue("its time limit is near")


def when_busy() -> None:
    """Requeue a job whose results another process is writing: it looks again later."""
    _requeue("another process writes its results")


def _requeue(why: str) -> None:
    """Nothing where this is no step of a batch job: an interactive job cannot come back, and a batch script that runs
    Snakemake itself has other jobs to lose.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or "SLURM_STEP_ID" not in os.environ:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        log.info("job %s of Slurm is requeued: %s", job, why)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        log.warning("job %s of Slurm could not be requeued, %s (%s)", job, why, str(said).strip())
