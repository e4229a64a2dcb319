"""What `torch.cuda` says where the device is pretended, and where the library is compiled."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).parent
SYNC_MODES = {"default": 0, "warn": 1, "error": 2}


def environment(n_bytes: int = 8 * 2**30) -> dict[str, str]:
    """Variables with which a Python finds the device, of that much memory."""
    python_path = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        "PRETENDED_CUDA": str(library()),
        "PRETENDED_CUDA_BYTES": str(n_bytes),
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
    }


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which("c++") or shutil.which("g++")


def library() -> Path:
    """The compiled device; half a minute of compiling the first time for a version of it and of torch."""
    source, here = HERE / "device.cpp", Path(torch.__file__).parent
    digest = sha256(source.read_bytes() + torch.__version__.encode() + str(here).encode()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"pretended_cuda_{os.getuid()}_{digest}.so"
    if not made.exists():
        new = made.with_suffix(f".{os.getpid()}")
        include = [f"-I{here / 'include'}", f"-I{here / 'include/torch/csrc/api/include'}"]
        link = [f"-L{here / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{here / 'lib'}"]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", abi]
        subprocess.run([str(compiler()), *options, *include, str(source), *link, "-o", str(new)], check=True)
        new.replace(made)
    return made


def waits() -> int:
    """How often a real device would have made the host wait."""
    return int(torch.ops.pretended.waits())


def install() -> None:
    """Let `torch.cuda` speak of the device."""
    torch.ops.pretended.set_memory(int(os.environ["PRETENDED_CUDA_BYTES"]))
    for name, value in _of_cuda().items():
        setattr(torch.cuda, name, value)
    torch._C._cuda_getDeviceCount = lambda: 1  # type: ignore[attr-defined]
    torch._C._cuda_getDevice = lambda: 0  # type: ignore[attr-defined]
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]
    torch.backends.cuda.is_built = lambda: True  # type: ignore[assignment]
    torch.batch_norm = _norm(torch.batch_norm)  # type: ignore[assignment]
    torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[assignment,method-assign]
    torch.serialization.register_package(5, lambda storage: None, _restored)


def _norm(batch_norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As the CPU computes the norm of single channels without gradients, so that both come to the same bits."""

    def norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.is_cuda and x.dtype == torch.float32 and len(x) == 1 and not torch.is_grad_enabled():
            *_, eps, _ = rest
            return torch.group_norm(x, x.shape[1], scale, shift, eps)
        return batch_norm(x, scale, shift, *rest)

    return norm


def _of_cuda() -> dict[str, Any]:
    properties = SimpleNamespace(
        name="pretended", major=9, minor=0, multi_processor_count=2, total_memory=_memory()[2], uuid="pretended"
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_properties": _given(properties),
        "get_device_name": _given(properties.name),
        "get_device_capability": _given((properties.major, properties.minor)),
        "Stream": Stream,
        "Event": Event,
        "stream": _stream,
        "current_stream": _given(Stream()),
        "synchronize": _given(None),
        "_sleep": lambda cycles: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "set_sync_debug_mode": lambda mode: torch.ops.pretended.set_mode(SYNC_MODES[mode]),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (_memory()[2] - _memory()[0], _memory()[2]),
        "memory_allocated": lambda device=None: _memory()[0],
        "memory_reserved": lambda device=None: _memory()[0],
        "max_memory_allocated": lambda device=None: _memory()[1],
        "max_memory_reserved": lambda device=None: _memory()[1],
        "reset_peak_memory_stats": lambda device=None: torch.ops.pretended.reset_peak(),
    }


def _given(value: Any) -> Callable[..., Any]:
    """What is the same for each device, named or not."""
    return lambda device=None: value


def _memory() -> list[int]:
    """Bytes in use, the most that were, all there are."""
    return list(torch.ops.pretended.memory())


def _restored(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """A storage that torch.load wants on the device."""
    if not location.startswith("cuda"):
        return None
    host = torch.empty(0, dtype=torch.uint8).set_(storage)
    return host.to("cuda").untyped_storage()


class Event:
    """Everything given to the device is done at once, so an event has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: "Stream | None" = None) -> None:
        """Nothing to do."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It has happened."""
        return True

    def elapsed_time(self, other: "Event") -> float:
        """Of two events, in ms."""
        return 1.0


class Stream:
    """The one order there is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        """Nothing to wait for."""

    def wait_stream(self, stream: "Stream") -> None:
        """Nothing to wait for."""

    def record_event(self, event: Event | None = None) -> Event:
        """An event that has happened."""
        return event or Event()

    def synchronize(self) -> None:
        """Nothing to wait for."""


@contextlib.contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    yield
