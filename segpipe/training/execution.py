"""How a network runs on a device: in which memory layout, and compiled or as it is written.

On the CPU neither pays (docs/benchmarks.md): five sixths of a step are oneDNN's convolutions, which are as fast in both
layouts, and compiling takes half a minute. On CUDA norm and activation are passes over memory that compiling fuses.
"""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from segpipe.params import Runtime
from segpipe.params.train import Train
from segpipe.training.loss import SegmentationLoss
from segpipe.training.network import outputs

log = getLogger(__name__)

# Steps. Compiling is expected to take one to three minutes and to save some 10 ms per step: not measured yet, but
# nnU-Net, whose networks these are, compiles on CUDA by default.
PAYS_AFTER = 5000
MOST_COMPILERS = 8  # processes
MOST_READS = 8  # that are done again and not kept; norm_and_activation has six
C_COMPILERS = ("cc", "gcc", "clang")  # Triton builds its launchers with one

Forward = Callable[[nn.Module, Tensor, int], list[Tensor]]


@dataclass(frozen=True)
class Execution:
    """What was chosen for a training.

    compiled : never; fused, which fuses what lies between convolutions; graphs, which also replays a step's kernels as
        one CUDA graph
    falls_back : whether a network that cannot be compiled runs as it is written
    """

    channels_last: bool
    compiled: str
    falls_back: bool

    @classmethod
    def of(cls, runtime: Runtime, settings: Train, device: torch.device, n_steps: int, n_ranks: int = 1) -> "Execution":
        """What `runtime.compile` and `runtime.channels_last` mean on a device, for a training of `n_steps` steps.

        With `train.deterministic` nothing is compiled. Graphs hold the memory of one forward and one backward pass, so
        accumulated gradients are only fused; so are those that several ranks exchange, which no graph has recorded.
        """
        chosen = runtime.compile
        if chosen == "auto":
            pays = device.type == "cuda" and n_steps >= PAYS_AFTER and not settings.deterministic
            chosen = "fused" if pays and can_compile() else "never"
        if chosen != "never" and settings.deterministic:
            log.warning("runtime.compile: never instead of %s, which chooses kernels by their speed", chosen)
            chosen = "never"
        if chosen == "graphs" and (settings.accumulate > 1 or n_ranks > 1 or device.type != "cuda"):
            log.warning("runtime.compile: fused instead of graphs, which are for CUDA, train.accumulate: 1 and one GPU")
            chosen = "fused"
        return cls(runtime.channels_last, chosen, runtime.compile == "auto")

    def lay_out(self, network: nn.Module) -> None:
        """Put the kernels of a network into the layout."""
        for parameter in network.parameters():
            parameter.data = self.laid_out(parameter.data)

    def laid_out(self, array: Tensor) -> Tensor:
        """An image, feature map or kernel in the layout; what has fewer axes stays as it is."""
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if not self.channels_last or array.ndim not in formats:
            return array
        return array.to(memory_format=formats[array.ndim])

    @property
    def forward(self) -> Forward:
        """`network.outputs` as it is executed."""
        return self._as_chosen(outputs, "reduce-overhead" if self.compiled == "graphs" else None)

    def objective(self, loss: SegmentationLoss) -> Callable[..., Tensor]:
        """The loss as it is executed: compiled, its terms at all resolutions become a few kernels."""
        return self._as_chosen(loss, None)

    def _as_chosen(self, function: Callable[..., Any], mode: str | None) -> Callable[..., Any]:
        if self.compiled == "never":
            return function
        _set_compiler()
        # shapes as they are: a rank's share of a training batch and the whole validation batch are two graphs
        compiled = torch.compile(function, mode=mode, dynamic=False)
        return _FallingBack(compiled, function) if self.falls_back else compiled

    def begin_step(self) -> None:
        """Tell CUDA graphs that what the last step put out is no longer needed."""
        if self.compiled == "graphs":
            torch.compiler.cudagraph_mark_step_begin()


def _set_compiler() -> None:
    """Compile the backward pass with the forward pass, where its failure is met, and by few processes.

    Inductor starts as many as there are cores, up to 32, in each job of a machine. It writes to memory what is computed
    from more than four others and used twice, as the gradient of an activation is: a pass of float32 numbers.
    """
    import torch._functorch.config  # noqa: PLC0415  # half a second that only compiling needs
    import torch._inductor.config  # noqa: PLC0415

    torch._functorch.config.force_non_lazy_backward_lowering = True
    torch._inductor.config.realize_reads_threshold = MOST_READS
    torch._inductor.config.compile_threads = min(MOST_COMPILERS, torch.get_num_threads())


class _FallingBack:
    """A compiled function, until compiling fails: from then on the function as it is written."""

    def __init__(self, compiled: Callable[..., Any], written: Callable[..., Any]) -> None:
        self.function, self.written = compiled, written

    def __call__(self, *args: Any) -> Any:
        try:
            return self.function(*args)
        except RuntimeError as error:
            if self.function is self.written or not _failed_to_compile(error):
                raise
            log.warning("not compiled, which only costs time: %s", " ".join(str(error).split("\n")[:2]))
            self.function = self.written
            return self.written(*args)


def _failed_to_compile(error: RuntimeError) -> bool:
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415  # half a second that only compiling needs

    return isinstance(error, TorchDynamoException)


def can_compile() -> bool:
    """Whether what torch.compile needs on CUDA is installed."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, C_COMPILERS))
