"""The preprocessed cases on disk: uncompressed arrays that patches are read from without reading the whole.

The manifest is the artifact that rules declare; the case files beside it are not, so that neither Snakemake nor DVC
deletes them. Each case carries the digest of what determines it: a case that is there already is not made again, and
`ensure` makes the ones that are missing (a fresh clone, a temporary DVC experiment).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import Runtime
from segpipe.prepare import plan as plan_module
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Grid, Prepared, preprocess

log = getLogger(__name__)

PARTS = ("image.npy", "label.npy", "foreground.npy", "json")  # the files of a case

# Voxels kept per class for foreground sampling: at least this many, and 1 % of large classes
# (nnunetv2/preprocessing/preprocessors/default_preprocessor.py).
MIN_LOCATIONS = 10_000
MIN_COVERAGE = 0.01


def build(cases: Cases, plan_path: Path, configuration: str, manifest: Path, runtime: Runtime) -> None:
    """Preprocess the training cases that are not stored yet and write the manifest."""
    plan = plan_module.read(plan_path)
    wanted = {case: _case_digest(cases, case, plan, configuration) for case in cases.training}
    _make(cases, plan, configuration, manifest.parent / "cases", wanted, runtime)
    digest.write_json(manifest, _manifest(cases, plan, configuration, wanted))


def ensure(cases: Cases, plan_path: Path, manifest: Path, runtime: Runtime) -> "Store":
    """Open the store of a manifest, making the case files that are missing.

    Raises SegpipeError where the manifest was written for other inputs or settings.
    """
    plan = plan_module.read(plan_path)
    content = digest.read_json(manifest)
    configuration = content["configuration"]
    wanted = {case: _case_digest(cases, case, plan, configuration) for case in cases.training}
    if content != _manifest(cases, plan, configuration, wanted):
        raise SegpipeError(
            problem(
                "the preprocessed cases belong to other inputs or settings",
                where=manifest,
                found=f"digest {content.get('digest')}",
                expected=f"digest {_manifest(cases, plan, configuration, wanted)['digest']}",
                cure="run the rule preprocess again (snakemake or dvc repro does)",
            )
        )
    _make(cases, plan, configuration, manifest.parent / "cases", wanted, runtime)
    return Store(manifest.parent / "cases", cases, plan, configuration, content["digest"])


def _case_digest(cases: Cases, case: str, plan: dict[str, Any], configuration: str) -> str:
    planned: Configuration = plan["configurations"][configuration]
    settings = [
        plan["transpose_forward"],
        plan["intensities"] if "ct" in planned.normalisation else None,
        planned.spacing_mm,
        planned.normalisation,
        planned.use_mask_for_norm,
    ]
    return digest.of([cases.identity(case), settings, digest.of_code("preprocess")])


def _manifest(cases: Cases, plan: dict[str, Any], configuration: str, wanted: dict[str, str]) -> dict[str, Any]:
    return {"configuration": configuration, "digest": digest.of([wanted, cases.labels.to_json()]), "cases": wanted}


def _make(
    cases: Cases, plan: dict[str, Any], configuration: str, folder: Path, wanted: dict[str, str], runtime: Runtime
) -> None:
    """Make the cases whose stored digest is not the wanted one. A lock keeps a second process from the same work."""
    with digest.exclusive(folder.parent / ".lock", f"preprocessing {configuration}"):
        missing = [case for case in wanted if _stored_digest(folder, case) != wanted[case]]
        with ThreadPoolExecutor(runtime.threads or os.cpu_count()) as pool:
            jobs = [pool.submit(_make_case, cases, case, plan, configuration, folder, wanted[case]) for case in missing]
            for job in jobs:
                job.result()
    if missing:
        log.info("%s: %d cases preprocessed, %d were there", configuration, len(missing), len(wanted) - len(missing))


def _stored_digest(folder: Path, case: str) -> str | None:
    """What the stored case was made of; None where a file of it is missing."""
    whole = all((folder / f"{case}.{part}").exists() for part in PARTS)
    return digest.read_json(folder / f"{case}.json")["digest"] if whole else None


def _make_case(cases: Cases, case: str, plan: dict[str, Any], configuration: str, folder: Path, wanted: str) -> None:
    volume = cases.read_image(case)
    label = cases.read_label(case)
    image = volume.array.astype(np.float32, copy=False)
    prepared = preprocess(image, label, volume.spacing_mm, plan, plan["configurations"][configuration])
    assert prepared.label is not None
    # the record goes first and comes last: without it the arrays count as missing
    (folder / f"{case}.json").unlink(missing_ok=True)
    _save(folder / f"{case}.image.npy", prepared.image)
    _save(folder / f"{case}.label.npy", prepared.label)
    _save(folder / f"{case}.foreground.npy", foreground_locations(prepared.label))
    digest.write_json(folder / f"{case}.json", {"digest": wanted, "grid": asdict(prepared.grid)})


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def foreground_locations(label: NDArray[np.int16], seed: int = 1234) -> NDArray[np.int64]:
    """(N, 2): class and flat voxel index, sorted by class; a random part of large classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for value in np.unique(label[label > 0]):
        voxels = np.flatnonzero(label == value)
        count = max(min(MIN_LOCATIONS, len(voxels)), int(np.ceil(len(voxels) * MIN_COVERAGE)))
        chosen = voxels if count == len(voxels) else np.sort(rng.choice(voxels, count, replace=False))
        rows.append(np.stack([np.full(count, value, np.int64), chosen], axis=1))
    return np.concatenate(rows) if rows else np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case, memory-mapped.

    image : (C, Z, Y, X) float32; label : (Z, Y, X) int16
    foreground : class to flat voxel indices
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16]
    foreground: dict[int, NDArray[np.int64]]


@dataclass(frozen=True)
class Store:
    """The preprocessed cases of one configuration."""

    folder: Path
    cases: Cases
    plan: dict[str, Any]
    configuration: str
    digest: str

    @cached_property
    def planned(self) -> Configuration:
        """The configuration's part of the plan."""
        planned: Configuration = self.plan["configurations"][self.configuration]
        return planned

    def open(self, case: str) -> StoredCase:
        """Map a case for reading patches."""
        locations = np.load(self.folder / f"{case}.foreground.npy")
        values, starts = np.unique(locations[:, 0], return_index=True)
        groups = np.split(locations[:, 1], starts[1:]) if len(values) else []
        return StoredCase(
            np.load(self.folder / f"{case}.image.npy", mmap_mode="r"),
            np.load(self.folder / f"{case}.label.npy", mmap_mode="r"),
            {int(value): group for value, group in zip(values, groups, strict=True)},
        )

    def read(self, case: str) -> Prepared:
        """A whole case with its way back."""
        grid = Grid.from_json(digest.read_json(self.folder / f"{case}.json")["grid"])
        return Prepared(np.load(self.folder / f"{case}.image.npy"), np.load(self.folder / f"{case}.label.npy"), grid)
