"""What the tests of training, inference and evaluation share: settings, a case in memory, five prepared phantoms."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from segpipe.data import check, phantoms, splits
from segpipe.data import labels as labels_module
from segpipe.data.cases import Cases
from segpipe.data.labels import Labels
from segpipe.params import Params
from segpipe.prepare import fingerprint, planning, store
from segpipe.prepare.plan import Configuration
from segpipe.prepare.store import ANNOTATED, Store, StoredCase, foreground_locations
from segpipe.training import augment
from segpipe.training.held import HeldCase

TESTS = Path(__file__).parent
DATA = TESTS / "data"

SMALL = {
    "dataset": "raw/Dataset000_Phantoms",
    "folds": [0, 1],
    "phantoms.n_train": 5,
    "phantoms.n_test": 2,
    "splits.n_folds": 2,
    "plan.overrides": {"spacing_mm": [3.0] * 3, "patch_size": [16] * 3, "batch_size": 2, "features_base": 4},
    "train.epochs": 3,
    "train.iterations_per_epoch": 3,
    "train.val_iterations_per_epoch": 2,
    "train.precision": "off",
    "validate.step_size": 1.0,
    "validate.mirroring": False,
    "runtime.device": "cpu",
    "runtime.threads": 1,
}


@cache
def _raw() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((TESTS.parent / "params.yaml").read_text())
    return content


def params(**changes: Any) -> Params:
    """params.yaml of the project with small numbers; `changes` name settings as `train__epochs`."""
    raw = deepcopy(_raw())
    for key, value in {**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}.items():
        *sections, name = key.split(".")
        block = raw
        for section in sections:
            block = block[section]
        block[name] = value
    return Params.model_validate(raw)


def planned(patch_size: Sequence[int] = (8, 8, 8), **changes: Any) -> Configuration:
    """A configuration of three stages and a few channels."""
    n = len(patch_size)
    defaults: dict[str, Any] = {
        "architecture": "plain",
        "spacing_mm": [1.0] * n,
        "patch_size": list(patch_size),
        "batch_size": 2,
        "median_shape": [20.0] * n,
        "features_per_stage": [4, 8, 16],
        "kernel_sizes": [[3] * n] * 3,
        "strides": [[1] * n, [2] * n, [2] * n],
        "n_conv_per_stage": [2] * 3,
        "n_conv_per_stage_decoder": [2] * 2,
        "normalisation": ["zscore"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "previous_stage": None,
        "reasons": [],
    }
    return Configuration(**{**defaults, **changes})


def labels_of(labels: Mapping[str, Any], order: Sequence[int] | None = None) -> Labels:
    """What a dataset.json says."""
    return labels_module.parse(labels, order, "test")


FOUR = labels_of({"background": 0, "one": 1, "two": 2, "three": 3})


def stored_case(
    image: NDArray[np.floating],
    label: NDArray[np.integer],
    labels: Labels = FOUR,
    previous: NDArray[np.integer] | None = None,
) -> StoredCase:
    """A case in memory, with the index of voxels that preprocessing would store."""
    label = label.astype(np.int16)
    classes = foreground_locations(label, labels)
    annotated = classes.pop(ANNOTATED, np.empty(0, np.int64)) if labels.ignore is not None else None
    segmented = None if previous is None else previous.astype(np.int16)
    return StoredCase(image.astype(np.float32), label, classes, annotated, segmented)


def held_case(*args: Any, **named: Any) -> HeldCase:
    """A `stored_case` as a training holds it."""
    return HeldCase.of(stored_case(*args, **named))


def held_random_case(*args: Any, **named: Any) -> HeldCase:
    """A `random_case` as a training holds it."""
    return HeldCase.of(random_case(*args, **named))


def random_case(shape: Sequence[int], n_channels: int = 1, seed: int = 0, labels: Labels = FOUR) -> StoredCase:
    """Noise with blocks of the labels -1 to 3."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(-1, 4, [-(-n // 4) for n in shape]), np.ones((4, 4, 4), int))
    return stored_case(rng.normal(size=(n_channels, *shape)), label[tuple(slice(n) for n in shape)], labels)


def read_patch(case: HeldCase, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and maps of one patch. given : what `augment.read_box` takes besides: box, geometry, matrix or None"""
    ((image, maps),) = augment.patches([augment.read_box(case, *given)], given[1])
    return image, maps


def wave(*shape: int, seed: float = 1.0) -> torch.Tensor:
    """Numbers between -1 and 1 that every machine and version computes alike (also in data/make_*_oracle.py)."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.sin(np.arange(n, dtype=np.float64) * 1.7 * seed + seed)).float().view(shape)


@dataclass(frozen=True)
class Prepared:
    """Preprocessed phantoms and what else a training takes."""

    root: Path
    store: Store
    splits: Path

    @property
    def cases(self) -> Cases:
        return self.store.cases


def prepare(folder: Path, settings: Params, configuration: str = "3d_fullres") -> Prepared:
    """All rules up to preprocessing, in a folder."""
    root, prepared = folder / settings.dataset, folder / "prepared"
    if not root.exists():
        phantoms.generate(root, settings.phantoms)
    check.check(root, prepared / "cases.json", settings.check, settings.splits.n_folds)
    cases = Cases.read(prepared / "cases.json", root)
    fingerprint.extract(cases, prepared / "fingerprint.json", settings.runtime)
    planning.write(cases, prepared / "fingerprint.json", settings, prepared / "plan.json")
    splits.write(cases, settings.splits, prepared / "splits.json")
    manifest = prepared / configuration / "manifest.json"
    store.build(cases, prepared / "plan.json", configuration, manifest, settings.runtime)
    opened = store.ensure(cases, prepared / "plan.json", manifest, settings.runtime)
    return Prepared(folder, opened, prepared / "splits.json")
