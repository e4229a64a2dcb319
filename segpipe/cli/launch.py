"""One job as several processes, a rank per GPU: started and watched by torchrun.

The launcher is the process that Snakemake, DVC or Slurm knows. It passes signals on, ends all ranks when one has died,
and ends as the rank did that failed first.
"""

import contextlib
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from logging import CRITICAL, Logger, getLogger, root
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from segpipe import digest, launched, machine
from segpipe.errors import SegpipeError, problem

log = getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
NOT_OURS = "SIGQUIT"  # torchrun insists on obeying some signal itself; of those above it would forget all but the first
LOOKING_S = 0.1
BAD_INPUT = 2
SETTINGS = ("params.yaml: runtime.num_gpus", "params.yaml: runtime.device")


def ranks(
    command: Sequence[str],
    n: int,
    device: str,
    lock: Path,
    threads: int | None = None,
    named: tuple[str, str] = SETTINGS,
) -> None:
    """Run a command as `n` ranks, each on a GPU of its own, and end as they end.

    command : what stands behind `python`
    lock : of what the ranks write. Who waits for it has no GPU yet: its holder may wait for one
    threads : of all ranks together; None: those that OMP_NUM_THREADS says, or one per core
    named : what the user calls number and device, for messages
    Exits as the rank that failed first; after a signal, which all ranks get, with 128 + the first one's number.
    Raises SegpipeError where there are fewer GPUs.
    """
    from segpipe import device as devices  # noqa: PLC0415  # torch: seconds

    requests = _Requests()
    _require_gpus(n, device, named)
    with digest.locked(lock, f"{n} ranks that begin") as held:
        launched.hand_down(held)
        devices.reserve(device, float("inf"), n)  # shared with no other job
        _run(command, n, threads, requests)


def _run(command: Sequence[str], n: int, threads: int | None, requests: "_Requests") -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: PLC0415  # torch: seconds
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher import LaunchConfig, elastic_launch  # noqa: PLC0415

    os.environ["OMP_NUM_THREADS"] = str(max(1, machine.n_threads(threads) // n))
    os.environ[launched.LAUNCHER] = str(os.getpid())
    log.info("%d ranks of %s threads each", n, os.environ["OMP_NUM_THREADS"])
    for name, logger in root.manager.loggerDict.items():
        if name.startswith("torch.distributed") and isinstance(logger, Logger):
            logger.setLevel(CRITICAL)  # what they say of signals and dead ranks is said below
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
            signals_to_handle=NOT_OURS,
            logs_specs=DefaultLogsSpecs(log_dir=notes),  # or it would leave them in the temporary folder
        )
        try:
            elastic_launch(config, sys.executable)("-u", *command)
        except ChildFailedError as error:
            requests.obey()
            _explain(error.failures, n)


class _Requests:
    """The signals that came: noted, and passed on. number : of the first one, None while there was none."""

    number: int | None = None

    def __init__(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        found = psutil.Process().children()
        if not found:  # not yet, or no longer
            self.obey()
        for rank in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    def obey(self) -> None:
        """End as who is ended by the first signal, if there was one."""
        if self.number is not None:
            sys.exit(128 + self.number)


def _require_gpus(n: int, device: str, named: tuple[str, str]) -> None:
    """Raise SegpipeError where there are not as many GPUs as ranks."""
    from segpipe import device as devices  # noqa: PLC0415  # torch: seconds

    if device == "mps":
        found = f"{n}, with {named[1]} mps"
        raise SegpipeError(
            problem("there is one such device", where=named[0], found=found, expected="1", cure="lower it")
        )
    devices.require(device, n, named)


def _explain(failures: dict[int, Any], n: int) -> None:
    """Say which rank failed first, and end as it did. Those that only lost another one do not count."""
    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode != launched.LOST} or failures
    rank, failure = min(causes.items(), key=lambda item: item[1].timestamp)
    code = failure.exitcode
    if code < 0:
        log.error("%s", _killed(f"rank {rank} of {n}, pid {failure.pid}", -code))
        sys.exit(128 - code)
    if code not in (BAD_INPUT, launched.LOST) and code <= 128:  # else it has said why, or was asked to end
        log.error("rank %d of %d failed, with the message above; the others were ended", rank, n)
    if code == launched.LOST:
        log.error("the %d ranks lost each other, with the messages above", n)
    sys.exit(code)


def _killed(where: str, number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    outside = number in (signal.SIGKILL, signal.SIGTERM)
    cure = (
        "see who sent it: the kernel where memory is short (dmesg), or the cluster" if outside else "see the log above"
    )
    return problem(
        "a rank was killed",
        where=where,
        found=name,
        expected="all ranks to end together",
        cure=f"{cure}; the same command goes on after the last checkpoint, or with the cases that are left",
    )
