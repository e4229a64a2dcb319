"""One network in several ranks: gradients are averaged while they come into being (DistributedDataParallel)."""

import contextlib
from collections.abc import Iterator, Sequence
from logging import getLogger

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from segpipe.errors import SegpipeError, problem
from segpipe.prepare.plan import Configuration
from segpipe.ranks import Ranks, watched
from segpipe.training.execution import Forward
from segpipe.training.network import unsupervised

log = getLogger(__name__)


def require_samples(n_ranks: int, planned: Configuration) -> None:
    """Raise SegpipeError where a rank would get no sample of a batch."""
    if planned.batch_size < n_ranks:
        raise SegpipeError(
            problem(
                "more GPUs than a batch has samples",
                where="params.yaml: runtime.num_gpus",
                found=f"{n_ranks}, for batches of {planned.batch_size}",
                expected=f"at most {planned.batch_size}",
                cure="lower it, or raise plan.overrides.batch_size while lowering train.accumulate",
            )
        )


def with_common_statistics(network: nn.Module, ranks: Ranks, on: torch.device) -> nn.Module:
    """A network whose batch norms, if it has any, can see the whole batch: nnU-Net's networks have none."""
    if ranks.n == 1 or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    if on.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    log.warning("batch norm sees only its rank's share of a batch: torch joins them on CUDA alone")
    return network


class _Outputs(nn.Module):
    """A network as DistributedDataParallel can call it: how many outputs are wanted is an argument.

    weights : of the outputs in the loss; what counts for nothing has no gradient that could be waited for
    """

    def __init__(self, network: nn.Module, forward: Forward, weights: Sequence[float]) -> None:
        super().__init__()
        self.network, self.outputs, self.weights = network, forward, weights

    def forward(self, x: Tensor, n_outputs: int) -> list[Tensor]:
        """The `n_outputs` finest outputs."""
        found = self.outputs(self.network, x, n_outputs)
        return [one if weight > 0 else one.detach() for one, weight in zip(found, self.weights, strict=True)]


class Parallel(DistributedDataParallel):
    """A network whose gradients are the mean over all ranks.

    forward : how the network is executed
    weights : of its outputs in the loss, the finest first
    looks : look up in every step which parameters get a gradient. A network that is not the plan's may use others each
        time. Without it torch orders the gradients anew after the first step, and the sum over three ranks or more
        depends on the order: a resumed training would differ in the last bits.
    """

    def __init__(
        self, network: nn.Module, forward: Forward, weights: Sequence[float], ranks: Ranks, looks: bool
    ) -> None:
        self.ranks = ranks
        for module in network.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.process_group = ranks.group
        with _left_out(unsupervised(network, weights)):
            outputs = _Outputs(network, forward, weights)
            super().__init__(outputs, process_group=ranks.group, find_unused_parameters=looks)

    @contextlib.contextmanager
    def exchanging(self, now: bool) -> Iterator[None]:
        """Add up the gradients of the block, and exchange them `now`: once per step, with its last part."""
        with contextlib.nullcontext() if now else self.no_sync(), watched(self.ranks):
            yield


@contextlib.contextmanager
def _left_out(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Keep parameters out of what DistributedDataParallel looks after: it waits for the gradient of each it knows."""
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learnt:
        parameter.requires_grad_(False)
    yield
    for parameter in learnt:
        parameter.requires_grad_(True)
