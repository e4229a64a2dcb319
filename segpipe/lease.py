"""Which job computes on which GPU: a lease that a process holds until it ends, however it ends.

Each job that wants GPUs has a file in a folder of its user, and a lock on that file which the kernel frees with the
process; a file without its lock is a dead job's. The file says which devices the job has and how much memory of each it
keeps within, or what it waits for. Files are read and written under the lock of the folder.
"""

import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import gpus
from segpipe.claims import CONTEXT_BYTES, SHARED, Claim, choose, fits, gb, is_idle, promised
from segpipe.errors import SegpipeError, problem
from segpipe.gpus import Gpu

log = getLogger(__name__)

POLL_S, REMIND_S = 0.5, 60.0
JOB_CHARACTERS = 80  # of a command line, for messages


@dataclass
class _Own:
    """The claim of this process, in its file. lock : descriptor that holds the file's lock"""

    claim: Claim
    path: Path
    lock: int
    devices: tuple[Gpu, ...] = ()

    def write(self, **changes: Any) -> None:
        """Change what the claim says."""
        self.claim = replace(self.claim, **changes)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, json.dumps(asdict(self.claim)).encode(), 0)


_held: _Own | None = None


def take(n: int, n_bytes: float, number: int | None = None) -> Sequence[Gpu]:
    """Restrict CUDA in this process and its children to `n` devices, until it ends; wait until they can be had.

    An empty device comes first, then one whose jobs leave room for `n_bytes`. First come, first served: who waits for a
    device gets it before those who came later. A process that has its devices keeps them, and says the new `n_bytes`.

    n_bytes : of each device, that this job keeps within
    number : the one device that may be taken, in the order of CUDA_VISIBLE_DEVICES; None: any
    Returns the devices; none where there are none, or none of that number, or no folder to say it in.
    Raises SegpipeError where there are fewer than `n`.
    """
    global _held  # noqa: PLW0603  # what a process has
    if _held is None:
        if not candidates(n, number) or not _has_folder():
            return ()
        own = _waited(n, n_bytes, number)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own.claim.taken)
        _held = own
    elif n_bytes != _held.claim.n_bytes:
        promise(n_bytes)
    return _held.devices


def held() -> Sequence[Gpu]:
    """The devices that this process has."""
    return _held.devices if _held is not None else ()


def candidates(n: int, number: int | None, asked: str = "runtime.num_gpus") -> list[Gpu]:
    """The devices of which `take` takes `n`, now or later; none where there are none, or none of that number.

    Instances of a divided GPU are for jobs with one device: CUDA shows a process only one of them.
    Raises SegpipeError where there are fewer than `n`; `asked` says who wants so many.
    """
    visible = gpus.visible()
    found = visible if number is None else visible[number : number + 1]
    found = found if n == 1 else [gpu for gpu in found if gpu.uuid == gpu.parent]
    prohibited = [gpu for gpu in found if gpu.is_prohibited]
    found = [gpu for gpu in found if not gpu.is_prohibited]
    if prohibited and not found:
        raise SegpipeError(
            problem(
                "nobody may compute on this GPU",
                where=", ".join(map(str, prohibited)),
                found="compute mode: prohibited",
                expected="a GPU that jobs may use",
                cure="name another device or cpu; or let the administrator set its mode (nvidia-smi -c DEFAULT)",
            )
        )
    if len(found) < n and n > 1 and visible:
        raise too_few(len(found), n, asked)
    return found


def promise(n_bytes: float) -> None:
    """Say anew how much of each leased device this process keeps within, to those who may share it."""
    if _held is not None:
        with _alone():
            _held.write(n_bytes=n_bytes)


def left_bytes() -> float | None:
    """What the other jobs on the leased devices leave for the tensors of this process.

    None where there is no other one, or no lease.
    """
    if _held is None:
        return None
    with _alone():
        others = _others(_held)
    shared = [(gpu, cost) for gpu in _held.devices if (cost := promised(gpu, others))]
    return max(0, min(SHARED * gpu.total_bytes - cost - CONTEXT_BYTES for gpu, cost in shared)) if shared else None


def _waited(n: int, n_bytes: float, number: int | None) -> _Own:
    """A claim that has its devices."""
    own, reminded, free_since = None, -REMIND_S, time.monotonic()
    try:
        while True:
            found = candidates(n, number)
            with _alone() as folder:
                own = own or _claimed(folder, n, n_bytes, found)
                others = _others(own)
                if any(promised(gpu, others) for gpu in found):
                    free_since = time.monotonic()
                own.devices = tuple(choose(own.claim, found, others, time.monotonic() - free_since))
                own.write(taken=tuple(gpu.uuid for gpu in own.devices))
            if own.devices:
                _say(own, others)
                return own
            if others and time.monotonic() - reminded >= REMIND_S:
                log.info("waiting for %s", _who_is_before(own.claim, found, others))
                reminded = time.monotonic()
            time.sleep(POLL_S)
    except BaseException:
        if own is not None:
            os.close(own.lock)
        raise


def _claimed(folder: Path, n: int, n_bytes: float, found: Sequence[Gpu]) -> _Own:
    """A new file of this process, with its lock. Programs that it starts do not inherit the lock (close-on-exec)."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:JOB_CHARACTERS]
    now_ns, wanted = time.time_ns(), tuple(gpu.uuid for gpu in found)
    slurm_job = os.environ.get("SLURM_JOB_ID")
    claim = Claim(os.getpid(), f"{command} in {Path.cwd()}", slurm_job, now_ns, n, n_bytes, wanted)
    path = folder / f"{os.getpid()}-{now_ns}.json"
    own = _Own(claim, path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    fcntl.flock(own.lock, fcntl.LOCK_EX)
    own.write()
    return own


def _others(own: _Own) -> list[Claim]:
    """What other living jobs claim; the files of dead ones are removed."""
    claims = []
    for path in own.path.parent.glob("*.json"):
        if path != own.path:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    said = json.load(file)
                    claims.append(Claim(**{**said, "wanted": tuple(said["wanted"]), "taken": tuple(said["taken"])}))
    return [one for one in claims if one.slurm_job == own.claim.slurm_job]


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """The folder of the claims, which no other process reads or writes during the block."""
    folder = _folder()
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)


def _has_folder() -> bool:
    """Whether claims can be written, and a warning if not: the other jobs of this user do not hear of this one."""
    try:
        return _folder().is_dir()
    except OSError as error:
        log.warning("no GPU is leased, as no temporary directory can be written to (TMPDIR): %s", error)
        return False


def _folder() -> Path:
    """Where the claims of this user lie, on this machine's own disk.

    Raises SegpipeError where another user has made it.
    """
    path = Path(tempfile.gettempdir(), f"segpipe-gpu-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise SegpipeError(
            problem(
                "the folder of the GPU leases is not yours",
                where=path,
                found="a link, or what another user has made",
                expected="a folder that segpipe has made",
                cure="remove it, or set TMPDIR to a folder of your own on this machine's disk, for all of your jobs",
            )
        )
    return path


def too_few(n_found: int, n: int, asked: str) -> SegpipeError:
    """There are not `n` devices; asked : by which setting that many were wanted."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return SegpipeError(
        problem(
            "fewer GPUs than asked for",
            where=asked,
            found=f"{n_found} for this job" + (f", CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""),
            expected=f"{n}",
            cure="lower it, or let the job use more: device auto, CUDA_VISIBLE_DEVICES, the cluster's request",
        )
    )


def _who_is_before(own: Claim, found: Sequence[Gpu], others: Sequence[Claim]) -> str:
    lines = [f"{own.n} of {len(found)} GPUs, with {gb(own.n_bytes)}"]
    for gpu in found:
        holders = [str(one) for one in others if gpu.uuid in one.taken]
        lines.append(f"{gpu}: {'; '.join(holders) or 'no job of this user'}, {gpu.used_bytes / 1e9:.3g} GB are used")
    lines += [f"before this job comes {one}" for one in others if not one.taken and one.since_ns < own.since_ns]
    return "\n  ".join(lines)


def _say(own: _Own, others: Sequence[Claim]) -> None:
    for gpu in own.devices:
        sharing = [str(one) for one in others if gpu.uuid in one.taken]
        log.info("computes on %s%s", gpu, f", which it shares with {'; '.join(sharing)}" if sharing else "")
        if not sharing and not is_idle(gpu) and not fits(own.claim, gpu, gpu.used_bytes):
            log.warning("%s: others use %.3g GB of it, and no GPU here has more room", gpu, gpu.used_bytes / 1e9)


def _leave_to_parent() -> None:
    """In a forked child: the devices are its parent's, and are free when that ends."""
    global _held  # noqa: PLW0603
    if _held is not None:
        os.close(_held.lock)
        _held = None


os.register_at_fork(after_in_child=_leave_to_parent)
