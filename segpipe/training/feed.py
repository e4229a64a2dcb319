"""Batches, ahead of time: a batch is a pure function of its step, so any number of threads may prepare them.

On CUDA they are made on the device, on a stream beside that of the training. Nothing there waits for the device: the
training's stream waits for the event that ends a batch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from segpipe.params import Train
from segpipe.prepare.store import Store
from segpipe.ranks import ALONE, Ranks
from segpipe.training import augment, previous
from segpipe.training.augment import Drawn, Geometry
from segpipe.training.sampling import TRAINING, VALIDATION, Box, case_in_pass, draw_box, forced_foreground, generator
from segpipe.training.tiers import Held
from segpipe.training.warp import at_once


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    image : (B, C, Z, Y, X) or (B, C, Y, X) float32, with the masks of a cascade's stage before
    label : (B, Z, Y, X) or (B, Y, X) int64, the ignore label included
    known : (B, heads) bool, the classes that each sample's case has annotations of; None where all have of all
    sources : case and box of each sample
    made : on CUDA, when it is complete; what uses it before must wait
    """

    image: torch.Tensor
    label: torch.Tensor
    known: torch.Tensor | None
    sources: list[tuple[str, Box]]
    made: torch.cuda.Event | None = None

    def on(self, device: torch.device) -> "Batch":
        """The batch on a device, for what its present stream is given to do from now on."""
        if self.made is None:
            known = None if self.known is None else self.known.to(device)
            return replace(self, image=self.image.to(device), label=self.label.to(device), known=known)
        stream = torch.cuda.current_stream(device)
        stream.wait_event(self.made)
        for one in (self.image, self.label, self.known):
            if one is not None:
                one.record_stream(stream)  # or the next batch would be made in this memory while it is read
        return self


@dataclass(frozen=True)
class Feed:
    """The batches of one training: from which cases, in which geometry.

    stream : of a CUDA device, on which batches are made; None elsewhere
    ranks : who share each training batch
    """

    store: Store
    train_cases: list[str]
    val_cases: list[str]
    settings: Train
    held: Held
    stream: torch.cuda.Stream | None = None
    ranks: Ranks = ALONE

    @cached_property
    def geometry(self) -> Geometry:
        """How this configuration's patches are drawn."""
        return Geometry.of(self.store.planned.patch_size, self.settings.mirror_axes)

    def training(self, number: int) -> Batch:
        """This rank's share of a training batch, counted from the start of the training; a step has `accumulate`.

        The samples are numbered over the whole step, so they are the same for any number of ranks.
        """
        step, part = divmod(number, self.settings.accumulate)
        n = self.store.planned.batch_size
        numbers = range(part * n, (part + 1) * n)
        own = self.ranks.share(n)
        return self._batch(TRAINING, step, numbers[own.start : own.stop], n * self.settings.accumulate)

    def validation(self, number: int) -> Batch:
        """A validation batch; the same in every epoch, so that epochs compare."""
        n = self.store.planned.batch_size
        return self._batch(VALIDATION, number, range(n), n)

    def _batch(self, stream: int, step: int, numbers: range, n_in_step: int) -> Batch:
        """The samples `numbers` of the `n_in_step` that a step takes in all."""
        if self.stream is None:
            return self._made(stream, step, numbers, n_in_step)
        with torch.cuda.stream(self.stream):
            batch = self._made(stream, step, numbers, n_in_step)
            return replace(batch, made=self.stream.record_event())

    def _made(self, stream: int, step: int, numbers: range, n_in_step: int) -> Batch:
        """Samples drawn and read, some at a time, then changed all at once."""
        samples = [self._sample(stream, step, number, n_in_step) for number in numbers]
        n = at_once(self.geometry.patch_size, self.held.place.patches)
        patches = [patch for i in range(0, len(samples), n) for patch in self._read(samples[i : i + n])]
        images, maps = (torch.stack(parts) for parts in zip(*patches, strict=True))
        with _noted(*samples):
            images, maps = self._changed(images, maps, samples)
        label = maps[:, 0].clamp_min(0).long()
        if len(self.store.planned.patch_size) == 2:
            images, label = images.squeeze(2), label.squeeze(1)
        return Batch(images, label, self._known(samples), [(sample.case, sample.reach) for sample in samples])

    def _read(self, samples: list["_Sample"]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Image and maps of each."""
        with _noted(*samples):
            boxes = [
                augment.read_box(self.held.cases[one.case], one.reach, self.geometry, one.matrix) for one in samples
            ]
            return augment.patches(boxes, self.geometry)

    def _changed(
        self, images: torch.Tensor, maps: torch.Tensor, samples: list["_Sample"]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented, and in a cascade with the masks of the stage before."""
        drawn = [sample.drawn for sample in samples if sample.drawn is not None]
        if drawn:
            images, maps = augment.apply(images, maps, drawn, self.geometry, self.store.planned.use_mask_for_norm)
        if maps.shape[1] > 1:
            images = torch.cat([images, self._previous(maps[:, 1], samples)], 1)
        return images, maps

    def _sample(self, stream: int, step: int, number: int, n_in_step: int) -> "_Sample":
        """Draw a sample: its case, its place, what is done to it."""
        rng = generator(self.settings.seed, stream, step, number)
        is_augmented = self.settings.augment and stream == TRAINING
        name = self._case(rng, stream, step * n_in_step + number)
        case = self.held.cases[name]
        patch = self.geometry.patch_size
        reach = self.geometry.reach if is_augmented else patch
        margin = [outer - inner for outer, inner in zip(reach, patch, strict=True)]
        force = forced_foreground(number, n_in_step, self.settings.oversample_foreground)
        box = draw_box(rng, case, reach, margin, force)
        return _Sample(name, box, augment.draw(rng, len(case.image), self.geometry) if is_augmented else None, rng)

    def _previous(self, segmented: torch.Tensor, samples: list["_Sample"]) -> torch.Tensor:
        """A mask per class of what the stage before segmented in each patch; made worse where that is augmented."""
        values = torch.arange(1, self.store.cases.labels.n_values, dtype=torch.int16, device=segmented.device)
        masks = (segmented[:, None] == values.view(-1, 1, 1, 1)).float()
        for own, sample in zip(masks, samples, strict=True):
            if sample.drawn is not None:
                own.copy_(previous.apply(own, previous.draw(sample.rng, len(own))))
        return masks

    @cached_property
    def _known_of(self) -> dict[str, torch.Tensor] | None:
        """(heads,) bool of each case: which classes it has annotations of. None where all have of all."""
        heads = self.store.cases.labels.heads
        annotated = {case: self.store.cases.annotated(case) for case in self.held.cases}
        if all(names is None for names in annotated.values()):
            return None
        return {
            case: torch.tensor([names is None or name in names or values == (0,) for name, values in heads.items()])
            for case, names in annotated.items()
        }

    def _known(self, samples: list["_Sample"]) -> torch.Tensor | None:
        """(B, heads) bool, where batches are made."""
        if self._known_of is None:
            return None
        known, place = torch.stack([self._known_of[sample.case] for sample in samples]), self.held.place
        return (known.pin_memory() if place.pin else known).to(place.patches, non_blocking=place.pin)

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

    def __str__(self) -> str:
        end = [start + size for start, size in zip(self.reach.start, self.reach.size, strict=True)]
        return f"case {self.case}, voxels {list(self.reach.start)} to {end}"

    @property
    def matrix(self) -> NDArray[np.float64] | None:
        """Of rotation and scale, if it is rotated or scaled."""
        return None if self.drawn is None else self.drawn.matrix


@contextmanager
def _noted(*samples: _Sample) -> Iterator[None]:
    """Say with an error, which another thread will report, at which samples it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in a batch of {'; '.join(map(str, samples))}")
        raise


def arriving(batches: Iterator[Batch], device: torch.device, depth: int) -> Iterator[Batch]:
    """Yield batches on a device, for the stream that is current there.

    On CUDA the host comes at most `depth` batches ahead of the device. A host that has little to do for a step (one
    graph) would come hundreds ahead, and each batch is in memory of its own until it is used.
    """
    begun: deque[torch.cuda.Event] = deque()
    for batch in batches:
        yield batch.on(device)
        if batch.made is not None:
            begun.append(torch.cuda.current_stream(device).record_event())
            if len(begun) > depth:
                begun.popleft().synchronize()


def ahead(batch_of: Callable[[int], Batch], numbers: Iterable[int], depth: int, threads: int) -> Iterator[Batch]:
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
