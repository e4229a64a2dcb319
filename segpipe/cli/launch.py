"""One job as several processes, a rank per GPU: started and watched by torchrun.

The launcher is the process that Snakemake, DVC or Slurm knows. It passes signals on, ends all ranks when one has died,
and ends as the rank did that failed first.
"""

import os
import signal
import sys
import tempfile
import uuid
from logging import CRITICAL, getLogger
from typing import Any

from segpipe.errors import problem
from segpipe.params import Params

log = getLogger(__name__)

SIGNALS = "SIGTERM,SIGINT,SIGUSR1"
# Ranks that were asked to end finish a step and save; after this they are killed. Who asked has a limit of its own.
SAVING_S = 3600
LOOKING_S = 0.1
BAD_INPUT = 2


def reserve_gpus(params: Params) -> None:
    """Take the GPUs of all ranks, until this process ends; the ranks see these alone.

    Raises SegpipeError where there are fewer.
    """
    from segpipe import device  # noqa: PLC0415  # torch: seconds
    from segpipe.training import tiers  # noqa: PLC0415

    device.reserve(params.runtime, tiers.planned_bytes(params), params.runtime.num_gpus)


def ranks(n: int, threads: int | None) -> None:
    """Run this very command as `n` ranks, and end as they end.

    threads : CPU threads of the whole job; None for what OMP_NUM_THREADS says, or one per core
    Exits as the rank that failed first, with 128 + its number after a signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException  # noqa: PLC0415  # seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher import LaunchConfig, elastic_launch  # noqa: PLC0415

    given = threads or int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, given // n))
    getLogger("torch.distributed").setLevel(CRITICAL)  # what it says of signals and dead ranks is said below
    log.info("%d ranks of %s threads each", n, os.environ["OMP_NUM_THREADS"])
    with tempfile.TemporaryDirectory(prefix="segpipe-ranks-") as notes:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=LOOKING_S,
            signals_to_handle=SIGNALS,
            shutdown_timeout=SAVING_S,
            logs_specs=DefaultLogsSpecs(log_dir=notes),  # or it would leave them in the temporary folder
        )
        try:
            elastic_launch(config, sys.executable)("-u", *sys.argv)
        except SignalException as asked:
            sys.exit(128 + asked.sigval)
        except ChildFailedError as error:
            _explain(error.failures, n)


def _explain(failures: dict[int, Any], n: int) -> None:
    """Say which rank failed first. Those that only lost another one do not count."""
    from segpipe.ranks import LOST  # noqa: PLC0415

    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode != LOST} or failures
    rank, failure = min(causes.items(), key=lambda item: item[1].timestamp)
    code = failure.exitcode
    if code == BAD_INPUT:
        sys.exit(BAD_INPUT)  # the rank has said why
    if code > 128:
        sys.exit(code)
    if code > 0:
        log.error("rank %d of %d failed, with the message above; the others were ended", rank, n)
        sys.exit(code)
    log.error(
        "%s",
        problem(
            "a rank was killed",
            where=f"rank {rank} of {n}, pid {failure.pid}",
            found=signal.Signals(-code).name,
            expected="all ranks to end together",
            cure="see who sent it: the kernel where memory is short (dmesg), or the cluster; the same command goes on "
            "after the last checkpoint",
        ),
    )
    sys.exit(128 - code)
