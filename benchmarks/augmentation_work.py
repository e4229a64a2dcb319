"""What both sides of augmentation.py have in common: the volumes, what is noted of a result, the loop of questions.

Needs numpy, scipy and torch only, since it runs in the environments of both programs. A side reads one JSON object per
line from stdin, {"patch": [...], "labels": 3, "transform": "full", "first": 0, "n": 25}, and answers with one line: CPU
seconds and statistics of each sample.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

FULL, CROP, SPATIAL, MIRROR = "full", "crop", "rotate and scale", "mirror"
INTENSITY = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
TRANSFORMS = (FULL, CROP, SPATIAL, *INTENSITY, MIRROR)

Sample = tuple[torch.Tensor, torch.Tensor]  # image and label, (1, ...) each
Ready = Callable[[int], Callable[[], Sample]]


def volume(reach: Sequence[int], n_labels: int) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Image and label of a box: smooth structures of `n_labels` values and noise. reach : two or three edges"""
    rng = np.random.default_rng(0)
    width = max(reach) / 16
    fields = np.stack([gaussian_filter(rng.normal(size=reach), width) for _ in range(n_labels)])
    fields /= fields.std()
    fields[0] += 0.7  # background is the largest
    label = fields.argmax(0).astype(np.int16)
    image = label + 0.5 * gaussian_filter(rng.normal(size=reach), 1) + 0.1 * rng.normal(size=reach)
    return image.astype(np.float32), label


def statistics(before: torch.Tensor, image: torch.Tensor, label: torch.Tensor, n_labels: int) -> dict[str, float]:
    """What is compared of a sample's distribution. before : the middle of the box, as large as the image"""
    image, label = image.squeeze(), label.squeeze()
    steps = [float(image.diff(dim=axis).abs().mean()) for axis in range(image.ndim)]
    counts = torch.bincount(label.flatten().long() + 1, minlength=n_labels + 1)  # padding first
    low, high = image.flatten()[:: max(image.numel() // 100_000, 1)].quantile(torch.tensor([0.02, 0.98])).tolist()
    found = {
        "mean": float(image.mean()),
        "deviation": float(image.std()),
        "2 % quantile": low,
        "98 % quantile": high,
        "total variation": float(np.mean(steps)),
        "variation along the last axis": steps[-1],
        "changed voxels": float((image != before.squeeze()).float().mean()),
        **{f"share of label {value}": int(n) / label.numel() for value, n in enumerate(counts, -1)},
    }
    return {name: round(value, 4) for name, value in found.items()}  # or rounding alone would tell them apart


def middle(array: NDArray[Any], patch: Sequence[int]) -> torch.Tensor:
    """The patch that is cut out where nothing is rotated."""
    starts = [n // 2 - p // 2 for n, p in zip(array.shape, patch, strict=True)]
    return torch.from_numpy(array[tuple(slice(a, a + p) for a, p in zip(starts, patch, strict=True))].copy())


def serve(prepared: Callable[[list[int], int, str], tuple[tuple[int, ...], Ready]]) -> None:
    """Answer until stdin ends.

    prepared : of patch, number of labels and transform: the box that is read, and a function of a sample's number that
        makes ready what is not timed and returns what is
    """
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = json.dumps([asked["patch"], asked["labels"], asked["transform"]])
        if key not in known:
            reach, ready = prepared(asked["patch"], asked["labels"], asked["transform"])
            known[key] = ready, middle(volume(reach, asked["labels"])[0], asked["patch"])
            for number in range(3):
                ready(10**6 + number)()
        ready, before = known[key]
        found: dict[str, list[Any]] = {"seconds": [], "statistics": []}
        for number in range(asked["first"], asked["first"] + asked["n"]):
            run = ready(number)
            start = time.process_time()
            image, label = run()
            found["seconds"].append(time.process_time() - start)
            found["statistics"].append(statistics(before, image, label, asked["labels"]))
        print(json.dumps(found), file=answers, flush=True)
