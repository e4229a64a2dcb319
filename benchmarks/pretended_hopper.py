"""An H200 for torch.compile where there is none: what is asked of it is answered, nothing can be computed on it.

Import this before anything of torch, in a Python whose torch is built for CUDA 13. Tensors have to be fake ones
(FakeTensorMode).
"""

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def _load() -> None:
    """Compile the answers to libtorch_cuda's questions, and let them be found before its own."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        source = Path(__file__).with_suffix(".cpp")
        named = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
        subprocess.run(["c++", "-std=c++17", "-O1", *named, str(source), "-o", str(library)], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_load()

import torch  # noqa: E402
import triton  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

if torch.version.cuda is None or not torch.version.cuda.startswith("13"):
    raise SystemExit(f"needs a torch for CUDA 13, this one is {torch.__version__}")

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141_000_000_000,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=48 * 1024,
    shared_memory_per_block_optin=227 * 1024,
    shared_memory_per_multiprocessor=228 * 1024,
    L2_cache_size=50 * 2**20,
)


META = torch.library.Library("aten", "IMPL", "Meta")


class Driver:
    """Triton's, which it asks what to compile for."""

    utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 227 * 1024})

    def get_current_target(self) -> GPUTarget:
        """Hopper."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0


def install() -> None:
    """Let torch, Triton and then Inductor, which takes functions of torch as it finds them, speak of the device."""
    for name, value in _of_cuda().items():
        setattr(torch.cuda, name, value)
    for name in ("_cuda_getDevice", "_cuda_getCurrentRawStream"):
        setattr(torch._C, name, _given(0))
    from torch._inductor.fx_passes import fuse_attention, joint_graph, pad_mm  # noqa: PLC0415
    from torch._inductor.runtime import triton_helpers  # noqa: PLC0415

    triton.runtime.driver.set_active(Driver())
    triton_helpers.set_driver_to_gpu = _given(None)
    _foreach_utils._foreach_supported_types.append(FakeTensor)
    META.impl("_fused_sgd_", _given(None))
    # patterns that are made of real tensors of the device; none of them is in a network of convolutions
    fuse_attention._sfdp_init = pad_mm._pad_mm_init = _given(None)
    _fold_constants_on_host(joint_graph)


def _of_cuda() -> dict[str, Callable[..., Any]]:
    values = {
        **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "set_rng_state", "manual_seed", "manual_seed_all")),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
        **dict.fromkeys(("_is_in_bad_fork", "is_current_stream_capturing"), False),
        **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), 0),
        "device_count": 1,
        "get_device_properties": H200,
        "get_device_name": H200.name,
        "get_device_capability": (H200.major, H200.minor),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }
    return {name: _given(value) for name, value in values.items()}  # Dynamo wants a function of its own for each


def _given(value: Any) -> Callable[..., Any]:
    return lambda *args, **named: value


def _fold_constants_on_host(joint_graph: ModuleType) -> None:
    """Inductor works out what is the same everywhere from tensors of one number, on the device."""

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def full(self, *args: Any, **named: Any) -> torch.Tensor:
            return torch.full(*args, **{**named, "device": "cpu"})

    folder, full = joint_graph.UniformValueConstantFolder, torch.ops.aten.full.default
    deduced = folder._deduce_value

    def deduce(self: Any, node: torch.fx.Node) -> Any:
        if node.op == "call_function" and node.target is full and len(node.args) == 2:
            (_, value), _ = self.fetch_args_kwargs_from_env(node)
            return full([1], value, **{**node.kwargs, "device": "cpu"})
        return deduced(self, node)

    folder._deduce_value = deduce
    joint_graph.torch = Torch()  # type: ignore[attr-defined]


install()
