"""One network in several ranks: gradients are averaged while they come into being (DistributedDataParallel)."""

import contextlib
from collections.abc import Iterator
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
from segpipe.training.unet import UNet

log = getLogger(__name__)


def require_samples(ranks: Ranks, planned: Configuration) -> None:
    """Raise SegpipeError where a rank would get no sample of a batch."""
    if planned.batch_size < ranks.n:
        raise SegpipeError(
            problem(
                "more GPUs than a batch has samples",
                where="params.yaml: runtime.num_gpus",
                found=f"{ranks.n}, for batches of {planned.batch_size}",
                expected=f"at most {planned.batch_size}",
                cure="lower it, or raise plan.overrides.batch_size while lowering train.accumulate",
            )
        )


def with_common_statistics(network: nn.Module, ranks: Ranks, on: torch.device) -> nn.Module:
    """A network whose batch norms, if it has any, see the whole batch: nnU-Net's networks have none."""
    if ranks.n == 1 or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return network
    if on.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    log.warning("batch norm sees only its rank's share of a batch: torch joins them on CUDA alone")
    return network


class _Outputs(nn.Module):
    """A network as DistributedDataParallel can call it: how many outputs are wanted is an argument."""

    def __init__(self, network: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.network, self.outputs = network, forward

    def forward(self, x: Tensor, n_outputs: int) -> list[Tensor]:
        """The `n_outputs` finest outputs."""
        return self.outputs(self.network, x, n_outputs)


class Parallel(DistributedDataParallel):
    """A network whose gradients are the mean over all ranks.

    forward : how the network is executed
    n_outputs : that enter the loss; heads that make others get no gradient
    """

    def __init__(self, network: nn.Module, forward: Forward, n_outputs: int, ranks: Ranks) -> None:
        self.ranks = ranks
        unknown = not isinstance(network, UNet)  # which parameters get a gradient: then looked up in every step
        with _left_out(unsupervised(network, n_outputs)):
            outputs = _Outputs(network, forward)
            super().__init__(outputs, process_group=ranks.group, find_unused_parameters=unknown)

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
