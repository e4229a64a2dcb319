"""A training as the settings describe it, before its first step."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from segpipe import device, plugins
from segpipe.data.splits import Fold
from segpipe.params import Params
from segpipe.params.train import FullValidation
from segpipe.prepare.plan import Configuration
from segpipe.prepare.store import Store
from segpipe.ranks import ALONE, Ranks
from segpipe.training import optimiser, parallel, pretrained, schedule, selection, tiers
from segpipe.training.execution import Execution
from segpipe.training.feed import Feed
from segpipe.training.loop import Training
from segpipe.training.loss import SegmentationLoss
from segpipe.training.network import build, n_available_outputs, n_inputs
from segpipe.training.parallel import Parallel
from segpipe.training.selection import Row

log = getLogger(__name__)

FEED_THREADS = {"device": 1, "host": 4, "file": 4}  # off the CPU; there the training thread prepares the batches itself


class Scorer(Protocol):
    """Makes the function that predicts and scores whole cases; inference, which has it, comes after training."""

    def __call__(
        self,
        store: Store,
        cases: list[str],
        settings: FullValidation,
        mirror_axes: list[int] | None,
        dtype: torch.dtype,
        on_case: Callable[[], None],
        ranks: Ranks,
    ) -> Callable[[nn.Module], Row]:
        """Cases, how they are predicted, what is called between them, and who takes turns at them."""


@dataclass(frozen=True)
class Setup:
    """What a training is made of.

    facts : of the network, for the summary; computes_on : device and GPUs of all ranks, for run.json
    """

    store: Store
    fold: Fold
    params: Params
    device: torch.device
    dtype: torch.dtype
    network: nn.Module
    facts: dict[str, Any]
    computes_on: dict[str, Any]
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, store: Store, fold: Fold, params: Params, ranks: Ranks = ALONE) -> "Setup":
        """Start the device and build the network, with pretrained weights and frozen parameters where wanted.

        Raises SegpipeError for a device, column, class, module, file or parameter that does not exist, and for more
        ranks than a batch has samples.
        """
        parallel.require_samples(ranks.n, store.planned)
        settings, cases = params.train, store.cases
        on = device.start(params.runtime, tiers.planned_bytes(params))
        device.set_deterministic(settings.deterministic)
        dtype = _precision(settings.precision, on, store.planned)
        network = build(
            n_inputs(len(cases.channel_names), cases.labels, store.planned),
            len(cases.labels.heads),
            store.planned,
            settings,
        )
        taken = _pretrained(network, settings.pretrained_weights)
        frozen = pretrained.freeze(network, settings.freeze)
        facts = {"parameters": _count(network), "frozen_parameters": _count(network, set(frozen)), **taken}
        network = parallel.with_common_statistics(network.to(on), ranks, on)
        return cls(store, fold, params, on, dtype, network, facts, device.facts(on, ranks), ranks.on(on))

    def training(self, whole_cases: Scorer | None, between: Callable[[], None]) -> Training:
        """The training, at its first step."""
        settings, runtime, planned = self.params.train, self.params.runtime, self.store.planned
        length = schedule.length(settings, len(self.fold["train"]), planned.batch_size)
        selection.check_full_validation(settings, length)
        rate = schedule.Rate(settings, length)
        rate.check()
        loss = SegmentationLoss(settings.loss, self.store.cases.labels, planned.batch_dice, self.device)
        execution = Execution.of(runtime, settings, self.device, length.total_steps, self.ranks.n)
        execution.lay_out(self.network)
        scaled = self.dtype == torch.float16
        feed = self._feed()
        scorer = None
        if settings.full_validation.every is not None:
            assert whole_cases is not None, "train.full_validation needs a function that scores whole cases"
            axes, cases = settings.mirror_axes, self.fold["val"]
            scorer = whole_cases(self.store, cases, settings.full_validation, axes, self.dtype, between, self.ranks)
        n_outputs = loss.n_outputs(n_available_outputs(self.network, planned) + 1)
        return Training(
            network=self.network,
            averaged=copy.deepcopy(self.network) if settings.ema.decay is not None else None,
            execution=execution,
            forward=execution.forward,
            parallel=self._parallel(execution, loss.weights(n_outputs)),
            objective=execution.objective(loss),
            optimiser=optimiser.build(self.network, settings.optimiser, scaled),
            scaler=torch.amp.GradScaler(self.device.type, enabled=scaled),
            feed=feed,
            loss=loss,
            n_outputs=n_outputs,
            length=length,
            rate=rate,
            whole_cases=scorer,
            settings=settings,
            device=self.device,
            dtype=self.dtype,
            prefetch=runtime.prefetch,
            feed_threads=self._feed_threads(feed),
            ranks=self.ranks,
            rows=[],
            losses=[],
        )

    def _parallel(self, execution: Execution, weights: list[float]) -> Parallel | None:
        """The network in all ranks; None in one that is alone."""
        if self.ranks.n == 1:
            return None
        self.ranks.meet()  # one may have read more cases than another, for longer than NCCL waits
        looks = self.params.train.network is not None or self.params.train.deterministic
        return Parallel(self.network, execution.forward, weights, self.ranks, looks)

    def _feed(self) -> Feed:
        """The batches, with the cases where they are fed from."""
        train, val = self.fold["train"], self.fold["val"]
        held = tiers.hold(self.store, [*train, *val], self.params, self.device)
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        return Feed(self.store, train, val, self.params.train, held, stream, self.ranks)

    def _feed_threads(self, feed: Feed) -> int:
        """As many as wanted; on a device whose memory holds the cases a thread has little more to do than to draw."""
        wanted = self.params.runtime.feed_threads
        if wanted is not None:
            return wanted
        return 0 if self.device.type == "cpu" else FEED_THREADS[feed.held.choice.tier]

    def callbacks(self) -> list[Callable[[Training, Row], None]]:
        """What the settings want called at the end of each epoch."""
        paths = self.params.train.callbacks
        return [plugins.load(path, f"train.callbacks[{i}]") for i, path in enumerate(paths)]


def _precision(wanted: str, on: torch.device, planned: Configuration) -> torch.dtype:
    """What `train.precision` means on a device; float32 where bf16 would compute with whatever lies in the memory.

    oneDNN's gradient of a 3x3x3 kernel over a feature map of two slices reads beyond it on CPUs with bf16 (torch 2.13):
    now and then NaN, never twice the same.
    """
    dtype = device.precision(wanted, on)
    edges = list(
        itertools.accumulate(
            (stride[0] for stride in planned.strides), lambda n, step: n // step, initial=planned.patch_size[0]
        )
    )
    if dtype != torch.bfloat16 or on.type != "cpu" or len(planned.patch_size) == 2 or 2 not in edges:
        return dtype
    log.warning("float32 instead of bf16: a feature map of two slices, whose gradient in bf16 is wrong on CPUs")
    return torch.float32


def classes(store: Store) -> list[str]:
    """The names of the foreground classes."""
    return list(store.cases.labels.foreground)


def _pretrained(network: nn.Module, path: str | None) -> dict[str, Any]:
    """Take pretrained weights; how many parameters had which fate."""
    if path is None:
        return {"pretrained": None}
    fates = Counter(fate.split(" (")[0] for _, fate in pretrained.load_into(network, path))
    return {"pretrained": {"file": Path(path).name, **fates}}


def _count(network: nn.Module, only: set[str] | None = None) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if only is None or name in only)
