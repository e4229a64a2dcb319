"""The CUDA devices of this machine, as NVIDIA's management library (NVML) names them. Nothing here starts CUDA.

CUDA reads CUDA_VISIBLE_DEVICES once, when it starts: whoever wants to choose a device must know them before.
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"  # comes with the driver, as libcuda does
TEXT_BYTES = 96  # of a name, UUID or version (nvml.h)
SHARED, EXCLUSIVE, PROHIBITED = 0, (1, 3), 2  # nvmlComputeMode_t


@dataclass(frozen=True)
class Gpu:
    """A device that CUDA can be restricted to: a GPU, or an instance of one that is divided (MIG).

    uuid : what CUDA_VISIBLE_DEVICES and NVML call it, wherever one looks from
    parent : uuid of the GPU that an instance is a part of; of a whole GPU its own
    index : of the GPU, as nvidia-smi counts
    used_bytes : by all processes, at the moment of asking
    mode : how many processes may compute on it, a compute mode
    """

    uuid: str
    parent: str
    index: int
    name: str
    total_bytes: int
    used_bytes: int
    mode: int = SHARED

    @property
    def is_exclusive(self) -> bool:
        """Whether only one process at a time may compute on it, which an administrator has set."""
        return self.mode in EXCLUSIVE

    @property
    def is_prohibited(self) -> bool:
        """Whether nobody may compute on it, which an administrator has set."""
        return self.mode == PROHIBITED

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, {self.total_bytes / 1e9:.3g} GB)"


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def jobs_at_a_time(device: str) -> int:
    """How many jobs may each have a GPU of this machine, by `runtime.device`. Off the GPU one, which has all cores."""
    return max(1, sum(not gpu.is_prohibited for gpu in visible())) if device in ("auto", "cuda") else 1


def visible() -> list[Gpu]:
    """The devices that this process may use: all, or those of CUDA_VISIBLE_DEVICES, in its order.

    There a number is nvidia-smi's; what names no device ends the list, as CUDA has it; a GPU that is divided stands for
    its instances.
    """
    found, chosen = installed(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    listed: list[Gpu] = []
    for word in chosen.split(","):
        named = _named(word.strip(), found)
        if not named:
            break
        listed += named
    return list(dict.fromkeys(listed))


def _named(word: str, found: list[Gpu]) -> list[Gpu]:
    """The devices that a word of CUDA_VISIBLE_DEVICES means: `1`, `GPU-8932f937` (a beginning is enough), `MIG-...`."""
    if number := re.match(r"\d+", word):
        return [gpu for gpu in found if gpu.index == int(number[0])]
    if not word.startswith(("GPU-", "MIG-")):
        return []
    return [gpu for gpu in found if gpu.uuid.startswith(word) or gpu.parent.startswith(word)]


def installed() -> list[Gpu]:
    """All devices of this machine, or of this job's part of it; none where there is no driver."""
    with _nvml() as nvml:
        return list(_listed(nvml)) if nvml else []


def driver() -> str | None:
    """The version of the driver."""
    text = ctypes.create_string_buffer(TEXT_BYTES)
    with _nvml() as nvml:
        return text.value.decode() if nvml and nvml.nvmlSystemGetDriverVersion(text, TEXT_BYTES) == 0 else None


@contextlib.contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    """The library; None where there is none, or no driver that runs."""
    try:
        nvml = ctypes.CDLL(LIBRARY)
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _listed(nvml: ctypes.CDLL) -> Iterator[Gpu]:
    """Of a GPU that is divided its instances, without it. What this job was not given is not counted."""
    n = ctypes.c_uint(0)
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(n))
    index = 0
    for number in range(n.value):
        gpu = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(gpu)) == 0:
            uuid = _text(nvml.nvmlDeviceGetUUID, gpu)
            for part in list(_instances(nvml, gpu)) if _is_divided(nvml, gpu) else [gpu]:
                yield _described(nvml, part, uuid, index)
            index += 1


def _is_divided(nvml: ctypes.CDLL, gpu: ctypes.c_void_p) -> bool:
    now, later = ctypes.c_uint(0), ctypes.c_uint(0)
    return nvml.nvmlDeviceGetMigMode(gpu, ctypes.byref(now), ctypes.byref(later)) == 0 and now.value == 1


def _instances(nvml: ctypes.CDLL, gpu: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    most = ctypes.c_uint(0)
    nvml.nvmlDeviceGetMaxMigDeviceCount(gpu, ctypes.byref(most))
    for number in range(most.value):
        instance = ctypes.c_void_p()
        if nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number, ctypes.byref(instance)) == 0:
            yield instance


def _described(nvml: ctypes.CDLL, gpu: ctypes.c_void_p, parent: str, index: int) -> Gpu:
    memory, mode = _Memory(), ctypes.c_int(SHARED)
    nvml.nvmlDeviceGetMemoryInfo(gpu, ctypes.byref(memory))
    nvml.nvmlDeviceGetComputeMode(gpu, ctypes.byref(mode))  # instances may have none
    uuid, name = _text(nvml.nvmlDeviceGetUUID, gpu), _text(nvml.nvmlDeviceGetName, gpu)
    return Gpu(uuid, parent, index, name, memory.total, memory.total - memory.free, mode.value)


def _text(ask: "ctypes._NamedFuncPointer", gpu: ctypes.c_void_p) -> str:
    text = ctypes.create_string_buffer(TEXT_BYTES)
    ask(gpu, text, TEXT_BYTES)
    return text.value.decode()
