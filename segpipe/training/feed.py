"""Batches, ahead of time: a batch is a pure function of its step, so any number of threads may prepare them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.params import Train
from segpipe.prepare.preprocess import one_hot
from segpipe.prepare.store import Store
from segpipe.training import augment, previous
from segpipe.training.augment import Drawn, Geometry
from segpipe.training.held import HeldCase
from segpipe.training.sampling import TRAINING, VALIDATION, Box, case_in_pass, draw_box, forced_foreground, generator


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    image : (B, C, Z, Y, X) or (B, C, Y, X) float32, with the masks of a cascade's stage before
    label : (B, Z, Y, X) or (B, Y, X) int64, the ignore label included
    known : (B, heads) bool, the classes that each sample's case has annotations of; None where all have of all
    sources : case and box of each sample
    """

    image: torch.Tensor
    label: torch.Tensor
    known: torch.Tensor | None
    sources: list[tuple[str, Box]]

    def pinned(self) -> "Batch":
        """The same in page-locked memory."""
        known = None if self.known is None else self.known.pin_memory()
        return Batch(self.image.pin_memory(), self.label.pin_memory(), known, self.sources)


@dataclass(frozen=True)
class Feed:
    """The batches of one training: from which cases, in which geometry. pin : into page-locked memory."""

    store: Store
    train_cases: list[str]
    val_cases: list[str]
    settings: Train
    pin: bool

    @cached_property
    def geometry(self) -> Geometry:
        """How this configuration's patches are drawn."""
        return Geometry.of(self.store.planned.patch_size, self.settings.mirror_axes)

    @cached_property
    def opened(self) -> dict[str, HeldCase]:
        """All cases, memory-mapped: what is read stays in the page cache while memory allows."""
        return {case: HeldCase.of(self.store.open(case)) for case in sorted({*self.train_cases, *self.val_cases})}

    def training(self, number: int) -> Batch:
        """A training batch, counted from the start of the training; a step takes `accumulate` of them."""
        step, part = divmod(number, self.settings.accumulate)
        n = self.store.planned.batch_size
        return self._batch(TRAINING, step, range(part * n, (part + 1) * n), n * self.settings.accumulate)

    def validation(self, number: int) -> Batch:
        """A validation batch; the same in every epoch, so that epochs compare."""
        n = self.store.planned.batch_size
        return self._batch(VALIDATION, number, range(n), n)

    def _batch(self, stream: int, step: int, numbers: range, n_in_step: int) -> Batch:
        """The samples `numbers` of the `n_in_step` that a step takes in all: each drawn and read, then all at once."""
        samples = [self._sample(stream, step, number, n_in_step) for number in numbers]
        read = [augment.read_patch(self.opened[s.case], s.reach, self.geometry, s.matrix) for s in samples]
        images, maps = (torch.stack(parts) for parts in zip(*read, strict=True))
        drawn = [sample.drawn for sample in samples if sample.drawn is not None]
        if drawn:
            images, maps = augment.apply(images, maps, drawn, self.geometry, self.store.planned.use_mask_for_norm)
        if maps.shape[1] > 1:
            masks = [self._previous(one[1], s.rng if s.drawn else None) for one, s in zip(maps, samples, strict=True)]
            images = torch.cat([images, torch.stack(masks)], 1)
        label = maps[:, 0].clamp_min(0).long()
        if len(self.store.planned.patch_size) == 2:
            images, label = images.squeeze(2), label.squeeze(1)
        known = torch.stack([self._known(sample.case) for sample in samples]) if self._partly_labelled else None
        batch = Batch(images, label, known, [(sample.case, sample.reach) for sample in samples])
        return batch.pinned() if self.pin else batch

    def _sample(self, stream: int, step: int, number: int, n_in_step: int) -> "_Sample":
        """Draw a sample: its case, its place, what is done to it."""
        rng = generator(self.settings.seed, stream, step, number)
        is_augmented = self.settings.augment and stream == TRAINING
        name = self._case(rng, stream, step * n_in_step + number)
        case = self.opened[name]
        patch = self.geometry.patch_size
        reach = self.geometry.reach if is_augmented else patch
        margin = [outer - inner for outer, inner in zip(reach, patch, strict=True)]
        force = forced_foreground(number, n_in_step, self.settings.oversample_foreground)
        box = draw_box(rng, case, reach, margin, force)
        return _Sample(name, box, augment.draw(rng, len(case.image), self.geometry) if is_augmented else None, rng)

    def _previous(self, segmented: torch.Tensor, rng: np.random.Generator | None) -> torch.Tensor:
        """A mask per class of what the stage before segmented in a patch; made worse where there is a generator."""
        masks = torch.from_numpy(one_hot(segmented.numpy(), self.store.cases.labels))
        return masks if rng is None else previous.apply(masks, previous.draw(rng, len(masks)))

    @cached_property
    def _partly_labelled(self) -> bool:
        """Whether any case lacks annotations of a class."""
        return any(self.store.cases.annotated(case) is not None for case in self.opened)

    def _known(self, case: str) -> torch.Tensor:
        """(heads,) bool: which classes a case has annotations of."""
        heads, annotated = self.store.cases.labels.heads, self.store.cases.annotated(case)
        return torch.tensor(
            [annotated is None or name in annotated or values == (0,) for name, values in heads.items()]
        )

    def _case(self, rng: np.random.Generator, stream: int, number: int) -> str:
        """The case of a sample, counted from the start of its stream."""
        cases = self.train_cases if stream == TRAINING else self.val_cases
        if stream == TRAINING and not self.settings.replacement:
            return cases[case_in_pass(self.settings.seed, number, len(cases))]
        return cases[int(rng.integers(len(cases)))]


@dataclass(frozen=True)
class _Sample:
    """What was drawn for a sample. reach : the box that it may be read from; drawn : None without augmentation"""

    case: str
    reach: Box
    drawn: Drawn | None
    rng: np.random.Generator

    @property
    def matrix(self) -> NDArray[np.float64] | None:
        """Of rotation and scale, if it is rotated or scaled."""
        return None if self.drawn is None else self.drawn.matrix


def ahead(batch_of: Callable[[int], Batch], numbers: range, depth: int, threads: int) -> Iterator[Batch]:
    """Yield the batches of `numbers` in order while `threads` threads prepare the next `depth`; 0 threads: when due.

    0 is right on the CPU: there two thread teams on the same cores made a step five times slower.
    """
    if threads == 0:
        yield from map(batch_of, numbers)
        return
    with ThreadPoolExecutor(threads) as pool:
        queue: deque[Future[Batch]] = deque()
        try:
            for number in numbers:
                queue.append(pool.submit(batch_of, number))
                if len(queue) > depth:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        finally:
            for future in queue:  # nobody waits for them any more
                future.cancel()
