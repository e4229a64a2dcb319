"""Batches, ahead of time: a batch is a pure function of its step, so any number of threads may prepare them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch

from segpipe.params import Train
from segpipe.prepare.store import Store, StoredCase
from segpipe.training.augment import Geometry, augmented_patch, read_patch
from segpipe.training.sampling import TRAINING, VALIDATION, Box, draw_box, forced_foreground, generator


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    image : (B, C, Z, Y, X) or (B, C, Y, X) float32; label : (B, Z, Y, X) or (B, Y, X) int64
    sources : case and box of each sample
    """

    image: torch.Tensor
    label: torch.Tensor
    sources: list[tuple[str, Box]]


@dataclass(frozen=True)
class Feed:
    """The batches of one training: from which cases, in which geometry."""

    store: Store
    train_cases: list[str]
    val_cases: list[str]
    settings: Train

    @cached_property
    def geometry(self) -> Geometry:
        """How this configuration's patches are drawn."""
        return Geometry.of(self.store.planned.patch_size, self.settings.mirror_axes)

    @cached_property
    def opened(self) -> dict[str, StoredCase]:
        """All cases, memory-mapped: what is read stays in the page cache while memory allows."""
        return {case: self.store.open(case) for case in sorted({*self.train_cases, *self.val_cases})}

    def training(self, step: int) -> Batch:
        """The batch of a training step, counted from the start of the training."""
        return self._batch(TRAINING, step, self.train_cases, self.settings.augment)

    def validation(self, step: int) -> Batch:
        """A validation batch; the same in every epoch, so that epochs compare."""
        return self._batch(VALIDATION, step, self.val_cases, False)

    def _batch(self, stream: int, step: int, cases: list[str], augment: bool) -> Batch:
        samples = [
            self._sample(stream, step, sample, cases, augment) for sample in range(self.store.planned.batch_size)
        ]
        image = torch.stack([image for image, _, _ in samples])
        label = torch.stack([label for _, label, _ in samples]).clamp_min(0).long()
        if len(self.store.planned.patch_size) == 2:
            image, label = image.squeeze(2), label.squeeze(1)
        return Batch(image, label, [source for _, _, source in samples])

    def _sample(
        self, stream: int, step: int, sample: int, cases: list[str], augment: bool
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[str, Box]]:
        rng = generator(self.settings.seed, stream, step, sample)
        name = cases[int(rng.integers(len(cases)))]
        case = self.opened[name]
        force = forced_foreground(sample, self.store.planned.batch_size, self.settings.oversample_foreground)
        patch, reach = self.geometry.patch_size, self.geometry.reach if augment else self.geometry.patch_size
        margin = [outer - inner for outer, inner in zip(reach, patch, strict=True)]
        box = draw_box(rng, case, reach, margin, force)
        if augment:
            image, label = augmented_patch(rng, case, box, self.geometry)
            image = self._masked(image, label)
        else:
            image, label = read_patch(case, box, self.geometry, None)
        return image, label, (name, box)

    def _masked(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Channels that were normalised inside the nonzero mask stay zero outside it, whatever was drawn."""
        use_mask = torch.tensor(self.store.planned.use_mask_for_norm).view(-1, 1, 1, 1)
        return image.masked_fill(use_mask & (label < 0), 0) if use_mask.any() else image


def ahead(batch_of: Callable[[int], Batch], steps: range, depth: int) -> Iterator[Batch]:
    """Yield the batches of `steps` in order while `depth` threads prepare the next ones; 0 prepares each when due.

    0 is right on the CPU: there two thread teams on the same cores made a step five times slower.
    """
    if depth == 0:
        yield from map(batch_of, steps)
        return
    with ThreadPoolExecutor(depth) as pool:
        queue: deque[Future[Batch]] = deque()
        for step in steps:
            queue.append(pool.submit(batch_of, step))
            if len(queue) > depth:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
