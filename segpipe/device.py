"""Which device, which precision, how many threads. Nothing here imports CUDA-only code, or starts CUDA on import."""

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch

from segpipe import gpus, launched, lease, machine
from segpipe.errors import SegpipeError, problem
from segpipe.params import Runtime
from segpipe.ranks import Ranks

log = getLogger(__name__)

# glibc's mallopt parameters (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
HEAP_RESERVE_BYTES = 256 * 2**20
CUDNN = 91501  # before it: pytorch/pytorch#166122 (conv3d under AMP four times slower), #163539 (wrong in bf16)
MOST_FILES = 65536  # asked for where the system sets no limit; macOS refuses to be asked for infinity


def start(runtime: Runtime, gpu_bytes: float) -> torch.device:
    """`begin` as params.yaml says."""
    return begin(runtime.device, runtime.threads, gpu_bytes, "params.yaml: runtime.device")


def begin(wanted: str, threads: int | None, gpu_bytes: float, where: str) -> torch.device:
    """Set threads and allocator of this process and return its device: of the GPUs one that is kept until it ends.

    wanted : name of the device; where : who named it, for the message
    threads : None for all that the process has
    gpu_bytes : memory of a GPU that this job keeps within, if others share it
    Raises SegpipeError where the device is absent.
    """
    if threads:
        torch.set_num_threads(max(1, threads // launched.n_ranks()))
    else:  # torch does not see that a container may be granted less time than its processors have
        torch.set_num_threads(min(torch.get_num_threads(), machine.n_threads(None)))
    device = use(reserve(wanted, gpu_bytes), where)
    _require_own_gpu(device)
    return device


def reserve(wanted: str, gpu_bytes: float, n_gpus: int = 1) -> str:
    """Take GPUs for this process and its children, where the device `wanted` is one; what it is called then.

    A rank sees one already, of those that its launcher has taken; so does a later trial of a search, which says its own
    `gpu_bytes`. Where somebody else has started CUDA, in a notebook say, it is too late to choose.
    """
    if not _is_cuda(wanted):
        return wanted
    is_too_late = torch.cuda.is_initialized() and not lease.held()
    number = _number(wanted)
    taken = launched.is_rank() or (not is_too_late and lease.take(n_gpus, gpu_bytes, number))
    return "cuda" if taken and number is not None else wanted


def _require_own_gpu(device: torch.device) -> None:
    """Raise SegpipeError where CUDA computes on another GPU than this job's: it was started before that was chosen."""
    own = gpus.visible() if launched.is_rank() else lease.held()
    for gpu in own[:1] if device.type == "cuda" else ():
        seen = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        if seen != gpu.uuid == gpu.parent:  # of an instance CUDA may say the GPU's
            raise SegpipeError(
                problem(
                    "CUDA was started before this job had its GPU",
                    where="a module that is imported when Python starts",
                    found=f"CUDA computes on {seen}",
                    expected=f"{gpu.uuid}, {gpu}",
                    cure="ask for devices (torch.cuda.is_available()) in functions, not where a module is imported",
                )
            )


def require(wanted: str, n_gpus: int, named: tuple[str, str]) -> None:
    """Raise SegpipeError where `reserve` would find fewer GPUs, or there is no such device. Nothing is taken.

    named : what the user calls number and device, for the message
    """
    if _is_cuda(wanted) and lease.candidates(n_gpus, _number(wanted), named[0]):
        return
    device = _device(wanted, named[1])
    n_found = torch.cuda.device_count() if device.index is None else 1
    if device.type == "cuda" and n_found < n_gpus:  # without NVML, CUDA itself has been asked
        raise lease.too_few(n_found, n_gpus, named[0])


def _is_cuda(name: str) -> bool:
    """Whether it may be a GPU that is leased. What a malformed name lacks, `_device` says."""
    kind, colon, number = name.partition(":")
    return kind in ("auto", "cuda") and number.isdecimal() == bool(colon) and torch.backends.cuda.is_built()


def _number(name: str) -> int | None:
    number = name.partition(":")[2]
    return int(number) if number else None


def use(name: str, where: str = "device") -> torch.device:
    """The device of that name (`auto`: the fastest there is), with this process set up for it.

    where : who named it, for the message
    Raises SegpipeError where it is absent, or no device that segpipe computes on.
    """
    device = _device(name, where)
    if device.type == "cpu":
        keep_heap()
    if device.index is not None:
        torch.cuda.set_device(device)
    if device.type == "cuda":
        _warn_of_cudnn()
    raise_file_limit()
    return device


def _warn_of_cudnn() -> None:
    version = torch.backends.cudnn.version()  # of AMD's library a number of its own
    if torch.version.hip is None and version is not None and version < CUDNN:
        log.warning(
            "cuDNN %d is older than %d (9.15.1): slow in 3d, and 9.8 to 9.10 compute large bf16 convolutions wrong; "
            "install a newer torch, or nvidia-cudnn",
            version,
            CUDNN,
        )


def _device(name: str, where: str) -> torch.device:
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = ["cuda", *(f"cuda:{i}" for i in range(n_cuda))] if n_cuda else []
    present = [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name not in ("auto", *present):
        expected, cure = ", ".join(["auto", *present]), "name a device of this machine, or auto"
        raise SegpipeError(problem("no such device", where=where, found=name, expected=expected, cure=cure))
    return torch.device(present[0] if name == "auto" else name)


def facts(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The device and, where it is one, the GPUs of the job, for run.json: what CUDA sees in each rank; all of them ask.

    gpus : index as nvidia-smi counts, name, uuid and memory of each
    cuda, cudnn, driver : versions, of the first rank
    """
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": gpus.driver()}
    found = gpus.visible() if device.type == "cuda" else []
    named = [{"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid, "bytes": gpu.total_bytes} for gpu in found]
    all_named = ranks.collected(named)
    return {"device": str(device), "gpus": all_named, **(versions if device.type == "cuda" else {})}


def set_deterministic(wanted: bool) -> None:
    """Let CUDA choose algorithms that give the same bits twice, or the fastest ones for fixed shapes.

    The CPU is deterministic in any case.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; what cuBLAS needs for it
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads memory that it has not written


@contextlib.contextmanager
def tuned(wanted: bool) -> Iterator[None]:
    """Let cuDNN try what is fastest for each shape that it meets in the block, if `wanted`; else all is as it was."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows: a memory-mapped case holds three or four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_heap() -> None:
    """Let glibc keep freed blocks instead of returning each large tensor to the kernel: 1.5x faster on the CPU."""
    if libc := _libc("mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, HEAP_RESERVE_BYTES)


def trim_heap() -> None:
    """Return what is free in the heap to the kernel, between two steps of large and different needs.

    A kept heap has holes: what one step leaves does not fit the next one, and both would add up.
    """
    if libc := _libc("malloc_trim"):
        libc.malloc_trim(0)


def _libc(function: str) -> ctypes.CDLL | None:
    """glibc, where it has the function."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, function) else None


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type of convolutions under autocast; float32 is no autocast.

    Raises SegpipeError for fp16 off CUDA.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise SegpipeError(
            problem(
                "fp16 needs CUDA",
                where="precision; in params.yaml: train.precision, validate.precision",
                found=f"fp16 on {device}",
                expected="auto, bf16 or off",
                cure="set it to auto",
            )
        )
    fast = _computes_bf16(device) if wanted == "auto" else wanted == "bf16"
    return torch.float16 if wanted == "fp16" else torch.bfloat16 if fast else torch.float32


def _computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed and not only emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            return any("avx512_bf16" in line or "amx_bf16" in line for line in file)
    return False


def free_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device; what others hold is not free, nor what jobs that share it may still take."""
    free, left = torch.cuda.mem_get_info(device)[0], lease.left_bytes()
    return free if left is None else max(0, min(free, int(left) - torch.cuda.memory_reserved(device)))


def buffer_bytes(device: torch.device) -> int:
    """What the logits of a case may take while it is predicted, on the device that holds them.

    On the CPU a tenth of what is free: image, preparation and the networks' feature maps need several times as much.
    """
    return usable_bytes(device) // 2 if device.type == "cuda" else machine.available_bytes() // 10


def usable_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that is free, or kept by this process for its next tensors."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_bytes(device) + kept
