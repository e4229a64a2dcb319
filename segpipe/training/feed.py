"""Batches, ahead of time: a batch is a pure function of its step, so any number of threads may prepare them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from segpipe.params import Train
from segpipe.prepare.preprocess import one_hot
from segpipe.prepare.store import Store, StoredCase
from segpipe.training import previous
from segpipe.training.augment import Geometry, augmented_patch, read_patch
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
    def opened(self) -> dict[str, StoredCase]:
        """All cases, memory-mapped: what is read stays in the page cache while memory allows."""
        return {case: self.store.open(case) for case in sorted({*self.train_cases, *self.val_cases})}

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
        """The samples `numbers` of the `n_in_step` that a step takes in all."""
        share = self.settings.oversample_foreground
        samples = [self._sample(stream, step, i, n_in_step, forced_foreground(i, n_in_step, share)) for i in numbers]
        image = torch.stack([image for image, _, _ in samples])
        label = torch.stack([label for _, label, _ in samples]).clamp_min(0).long()
        if len(self.store.planned.patch_size) == 2:
            image, label = image.squeeze(2), label.squeeze(1)
        sources = [source for _, _, source in samples]
        known = torch.stack([self._known(case) for case, _ in sources]) if self._partly_labelled else None
        batch = Batch(image, label, known, sources)
        return batch.pinned() if self.pin else batch

    def _sample(
        self, stream: int, step: int, sample: int, n_in_step: int, force: bool
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[str, Box]]:
        rng = generator(self.settings.seed, stream, step, sample)
        augment = self.settings.augment and stream == TRAINING
        name = self._case(rng, stream, step * n_in_step + sample)
        case = self.opened[name]
        patch, reach = self.geometry.patch_size, self.geometry.reach if augment else self.geometry.patch_size
        margin = [outer - inner for outer, inner in zip(reach, patch, strict=True)]
        box = draw_box(rng, case, reach, margin, force)
        if augment:
            image, maps = augmented_patch(rng, case, box, self.geometry)
            image = self._masked(image, maps[0])
        else:
            image, maps = read_patch(case, box, self.geometry, None)
        if case.previous is not None:
            image = torch.cat([image, self._previous(maps[1], rng if augment else None)])
        return image, maps[0], (name, box)

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

    def _masked(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Channels that were normalised inside the nonzero mask stay zero outside it, whatever was drawn."""
        use_mask = torch.tensor(self.store.planned.use_mask_for_norm).view(-1, 1, 1, 1)
        return image.masked_fill(use_mask & (label < 0), 0) if use_mask.any() else image


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
