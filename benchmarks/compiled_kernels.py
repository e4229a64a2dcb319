"""What torch.compile makes of a step for the pretended device: launches, bytes, machine code.

The code that Inductor generates is run on fake tensors, so that each launch is seen with what it is given. Bytes are
counted from it: of each kernel what it loads and stores, as often as its source says so; a convolution reads its
operands and writes its results once, back and forth. Caches, and what cuDNN does within a convolution, are not seen.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pretended_hopper  # noqa: F401  # before torch
import torch
import triton
from torch import Tensor
from torch._inductor import async_compile, codecache, compile_fx, output_code
from torch._inductor.select_algorithm import extern_kernels
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Not counted where a step runs as it is written: they start no kernel
FREE = ("prim::device", "aten::detach", "aten::_unsafe_view", "aten::_reshape_alias")


def n_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Seen:
    """What compiled code did.

    graphs : of each compiled graph forward, backward or inference; whether it is replayed as a CUDA graph and what it
        was refused for
    kernels : source of each Triton kernel, by a name of its own
    launches, bytes : of Triton kernels
    convolutions : bytes and floating point operations of each
    moved : convolutions with operands or results in different layouts
    wrong : tensors whose layout is not the one that the generated code expects
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget everything."""
        self.graphs: list[dict[str, Any]] = []
        self.kernels: dict[str, str] = {}
        self.count()

    def count(self) -> None:
        """Count anew; kernels and graphs stay."""
        self.launches, self.bytes, self.moved = 0, 0, 0
        self.convolutions: list[tuple[int, float]] = []
        self.wrong: list[str] = []

    def convolution(self, weight: Tensor, read: Sequence[Tensor], written: Sequence[Tensor], coarse: Tensor) -> None:
        """coarse : of input and output the one with fewer voxels, each of which meets the whole kernel"""
        passes = len(written)
        n = sum(map(n_bytes, read)) + (passes - 1) * n_bytes(read[0]) + sum(map(n_bytes, written))
        flops = 2 * passes * coarse.numel() / coarse.shape[1] * weight.numel()
        self.convolutions.append((n, flops))
        maps = [
            one for one in (*read, *written) if one.shape[2:].numel() > 1 and one.shape[1] > 1 and one is not weight
        ]
        maps = [one for one in maps if one.shape[2:] != weight.shape[2:]]
        self.moved += len({one.is_contiguous() for one in maps}) > 1


SEEN = Seen()


class _Kernel:
    def __init__(self, source: str) -> None:
        self.head = re.search(r"\ndef (\w+)\((.*?)\):\n", source)
        assert self.head is not None
        self.body = source[self.head.end() :]
        self.numel = math.prod(int(n) for n in re.findall(r"^    \w*numel = (\d+)$", self.body, re.M))

    def run(self, *args: Any, stream: int = 0) -> None:
        names = [name.split(":")[0].strip() for name in self.head.group(2).split(",")]  # type: ignore[union-attr]
        SEEN.launches += 1
        for name, tensor in zip(names, args, strict=False):
            if isinstance(tensor, Tensor):
                times = len(re.findall(rf"tl\.(?:load|store)\({name}[ ,)]", self.body))
                SEEN.bytes += times * min(tensor.numel(), self.numel) * tensor.element_size()


def _triton(self: Any, name: str, source: str, device_str: str = "cuda") -> _Kernel:
    SEEN.kernels[f"{name}_{abs(hash(source))}"] = source
    return _Kernel(source)


class _Operators:
    """torch.ops and extern_kernels of generated code, with convolutions noted."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        noted = {"convolution": _convolution, "convolution_backward": _convolution_backward}
        return noted.get(name) or getattr(self._of, name)


def _convolution(x: Tensor, weight: Tensor, **given: Any) -> Tensor:
    order = ("bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    result = torch.ops.aten.convolution(x, weight, *(given[name] for name in order))
    SEEN.convolution(weight, (x, weight), [result], x if given["transposed"] else result)
    return result


class _convolution_backward:
    @staticmethod
    def default(grad: Tensor, x: Tensor, weight: Tensor, *given: Any) -> Any:
        results = torch.ops.aten.convolution_backward.default(grad, x, weight, *given)
        written = [one for one in results if one is not None]
        SEEN.convolution(weight, (grad, x, weight), written, x if given[4] else grad)
        return results


class _Torch:
    """torch of generated code."""

    ops = type("Ops", (), {"aten": _Operators(torch.ops.aten)})()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _expect(tensor: Tensor, shape: Sequence[int], stride: Sequence[int], name: str = "") -> None:
    used = [(have, want) for have, want, n in zip(tensor.stride(), stride, shape, strict=True) if n > 1]
    if tuple(tensor.shape) != tuple(shape) or any(have != want for have, want in used):
        SEEN.wrong.append(f"{name} {tuple(tensor.shape)} {tensor.stride()}")


_IN_GENERATED_CODE = {
    "empty_strided_cuda": lambda shape, stride, dtype: torch.empty_strided(shape, stride, dtype=dtype, device="cuda:0"),
    "reinterpret_tensor": lambda tensor, shape, stride, offset=0: tensor.as_strided(
        shape, stride, tensor.storage_offset() + offset
    ),
    "copy_if_misaligned": lambda tensor: tensor,
    "assert_size_stride": _expect,
    "assert_alignment": lambda *args: None,
    "extern_kernels": _Operators(extern_kernels),
    "torch": _Torch(),
}


def watch() -> None:
    """From now on nothing that is compiled starts a kernel: it is noted in SEEN."""
    torch._inductor.config.force_disable_caches = True
    torch._inductor.config.use_static_triton_launcher = False
    load, inner, outer = codecache.PyCodeCache.load_by_key_path, compile_fx.compile_fx_inner, compile_fx.compile_fx

    def loaded(*args: Any, **named: Any) -> Any:
        module = load(*args, **named)
        if hasattr(module, "empty_strided_cuda"):
            vars(module).update(_IN_GENERATED_CODE)
        return module

    def noted(graph: Any, example: Any, **named: Any) -> Any:
        out = inner(graph, example, **named)
        if hasattr(out, "cudagraph_info"):  # not a graph without any operation
            kind = "backward" if named.get("is_backward") else "inference" if named.get("is_inference") else "forward"
            refused = out.disabled_cudagraphs_reason or (
                out.cudagraph_info and out.cudagraph_info.cudagraph_fail_reasons
            )
            SEEN.graphs.append({"graph": kind, "cuda_graph": bool(named.get("cudagraphs")), "refused": refused or None})
        return out

    def compiled(graph: Any, example: Any, **named: Any) -> Any:
        return outer(graph, example, **{**named, "inner_compile": noted})

    codecache.PyCodeCache.load_by_key_path = staticmethod(loaded)
    compile_fx.compile_fx = compiled
    compile_fx.cudagraphify = lambda model, *args, **named: model
    output_code.prepare_cudagraph_post_compile = lambda *args, **named: None
    output_code.maybe_handle_backward_generation = lambda *args, **named: None
    async_compile.AsyncCompile.triton = _triton
    async_compile.AsyncCompile.warm_pool = classmethod(lambda cls: None)


class Written(TorchDispatchMode):
    """Operators that start kernels, and their bytes, of a step as it is written. A bias is a pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.name()
        if func.is_view or name in FREE or "empty" in name:
            return result
        read, written = ([one for one in tree_leaves(some) if isinstance(one, Tensor)] for some in (args, result))
        n = sum(map(n_bytes, (*read, *written)))
        if name == "aten::native_batch_norm":
            n += n_bytes(read[0])
        elif name == "aten::native_batch_norm_backward":
            n += n_bytes(read[0]) + n_bytes(read[1])
        elif name == "aten::convolution":
            n += 2 * n_bytes(written[0]) * (args[2] is not None)
        elif name == "aten::convolution_backward":
            n += n_bytes(read[0]) * (1 + bool(args[3]))
        self.calls[name] += 1
        self.bytes[name] += n
        return result


def assembled(kernels: dict[str, str]) -> dict[str, Any]:
    """Compile each kernel to machine code for compute capability 9.0, for each size of blocks that would be tried."""
    used: list[dict[str, int]] = []
    failed: dict[str, str] = {}
    for name, source in kernels.items():
        for sizes, found in _machine_code(source).items():
            if isinstance(found, str):
                failed[f"{name} {sizes}"] = found
            else:
                used.append(found)
    return {
        "kernels": len(kernels),
        "machine_codes": len(used),
        "failed": failed,
        "most_registers": max(one["REG"] for one in used),
        "most_shared_bytes": max(one["SHARED"] for one in used),
        "spilling": sum(one["LOCAL"] > 0 for one in used),
    }


@cache
def _machine_code(source: str) -> dict[str, dict[str, int] | str]:
    """For each size of blocks what a thread uses, or why there is none."""
    name = re.search(r"\ndef (\w+)\(", source)
    assert name is not None
    kernel, found = getattr(codecache.PyCodeCache.load(source), name.group(1)), {}
    for sizes in kernel.configs:
        try:
            found[str(sizes)] = _resources(kernel._precompile_config(sizes).kernel)
        except Exception as error:  # whatever the compilers raise
            found[str(sizes)] = f"{type(error).__name__}: {error}"[:500]
    return found


def _resources(binary: Any) -> dict[str, int]:
    """Of each thread registers, and bytes of stack and local memory; bytes of shared memory of a block."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    return {**found, "SHARED": max(found["SHARED"], binary.metadata.shared)}
