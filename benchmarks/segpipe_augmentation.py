"""segpipe's side of augmentation.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from augmentation_work import CROP, FULL, INTENSITY, MIRROR, SPATIAL, Ready, Sample, serve, volume

from segpipe import device
from segpipe.prepare.store import StoredCase
from segpipe.training import augment, intensity
from segpipe.training.augment import Drawn, Geometry
from segpipe.training.held import HeldCase, Place
from segpipe.training.sampling import Box, generator
from segpipe.training.warp import at_once

SEED = 1
WARM, BATCHES = 10, 100  # on a device


class Certain:
    """Numbers of a generator, but whatever may happen does."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.uniform = rng.uniform

    def random(self) -> float:
        """Below every probability."""
        return 0.0


def case_of(geometry: Geometry, n_labels: int) -> HeldCase:
    """A case as large as the box that a patch may be read from."""
    edges = geometry.reach if geometry.patch_size[0] > 1 else geometry.reach[1:]
    image, label = (array.reshape(geometry.reach) for array in volume(edges, n_labels))
    return HeldCase.of(StoredCase(image[None], label, {}))


def drawn_for(transform: str, number: int, geometry: Geometry) -> Drawn:
    """Everything at its own probability, or one transform for certain and nothing else."""
    rng = generator(SEED, 0, number, 0)
    if transform == FULL:
        return augment.draw(rng, 1, geometry)
    nothing = Drawn(None, dict.fromkeys(INTENSITY), ())
    if transform == SPATIAL:
        return replace(nothing, matrix=augment.draw_spatial(Certain(rng), geometry))
    if transform == MIRROR:
        return replace(nothing, mirror=augment.draw_mirror(rng, geometry.mirror_axes))
    if transform in INTENSITY:
        return replace(nothing, intensity={**nothing.intensity, transform: value_of(transform, rng, geometry)})
    return nothing


def value_of(transform: str, rng: np.random.Generator, geometry: Geometry) -> object:
    """Draw until the transform happens to the one channel."""
    while True:
        value = intensity.draw(rng, 1, 2 if geometry.patch_size[0] == 1 else 3)[transform]
        if value is not None and (transform == "noise" or value[0] is not None):
            return value


def read(case: HeldCase, geometry: Geometry, drawn: Sequence[Drawn]) -> list[Sample]:
    """A patch for each, as a batch has them."""
    box, n = Box((0, 0, 0), geometry.reach), at_once(geometry.patch_size, case.place.patches)
    found = []
    for i in range(0, len(drawn), n):
        boxes = [augment.read_box(case, box, geometry, one.matrix) for one in drawn[i : i + n]]
        found += augment.patches(boxes, geometry)
    return found


def prepared(patch: list[int], n_labels: int, transform: str) -> tuple[tuple[int, ...], Ready]:
    """The box of a patch, and what makes its samples."""
    geometry = Geometry.of(patch, None)
    case = case_of(geometry, n_labels)

    def sample(drawn: Drawn) -> Sample:
        ((image, maps),) = read(case, geometry, [drawn])
        images, maps = augment.apply(image[None], maps[None], [drawn], geometry, [False])
        return images[0], maps[0].clamp_min(0)

    def ready(number: int) -> Callable[[], Sample]:
        if transform == FULL:
            return lambda: sample(drawn_for(transform, number, geometry))
        drawn = drawn_for(transform, number, geometry)
        if transform in (CROP, SPATIAL):
            return lambda: read(case, geometry, [drawn])[0]
        ((image, maps),) = read(case, geometry, [replace(drawn, matrix=None)])
        return lambda: tuple(one[0] for one in augment.apply(image[None], maps[None], [drawn], geometry, [False]))

    return geometry.reach[-len(patch) :], ready


def batches_on_device() -> list[dict[str, Any]]:
    """Milliseconds per batch on CUDA, from cases on the device, between events around all batches."""
    cuda, rows = torch.device("cuda"), []
    for patch, size in (([128, 128, 128], 2), ([40, 56, 40], 9), ([512, 512], 12)):
        geometry = Geometry.of(patch, None)
        held = case_of(geometry, 3)
        place = Place(cuda, torch.int16, cuda, pin=False)
        case = replace(held, image=held.image.to(cuda), maps=(held.maps[0].to(cuda),), place=place)
        numbers = range(WARM + BATCHES)
        drawn = [[drawn_for(FULL, number * size + i, geometry) for i in range(size)] for number in numbers]
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for number, of_batch in enumerate(drawn):
            if number == WARM:
                started.record()
            images, maps = (torch.stack(parts) for parts in zip(*read(case, geometry, of_batch), strict=True))
            augment.apply(images, maps, of_batch, geometry, [False])
        ended.record()
        torch.cuda.synchronize()
        rows.append({"patch": patch, "batch": size, "ms per batch": started.elapsed_time(ended) / BATCHES})
    return rows


if __name__ == "__main__":
    device.use("cpu")
    serve(prepared)
