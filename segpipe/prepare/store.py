"""The preprocessed cases on disk: uncompressed arrays that patches are read from without reading the whole.

The manifest is the artifact that rules declare; the case files beside it are not, so that neither Snakemake nor DVC
deletes them. Each case carries the digest of what determines it: a case that is there already is not made again, and
`ensure` makes the ones that are missing (a fresh clone, a temporary DVC experiment).
"""

import itertools
import os
from collections.abc import Mapping, Sequence
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
from segpipe.data.labels import Labels, belongs
from segpipe.errors import SegpipeError, problem
from segpipe.params import Runtime
from segpipe.prepare import plan as plan_module
from segpipe.prepare import twins
from segpipe.prepare.plan import Configuration
from segpipe.prepare.preprocess import Grid, Prepared, case_target_mm, on_grid, preprocess

log = getLogger(__name__)

PARTS = (*twins.ARRAYS, "json")  # the files of a case

# Voxels kept per class for foreground sampling: at least this many, and 1 % of large classes
# (nnunetv2/preprocessing/preprocessors/default_preprocessor.py).
MIN_LOCATIONS = 10_000
MIN_COVERAGE = 0.01
ANNOTATED = 0  # stands for all annotated voxels where classes count from 1


Previous = dict[str, dict[str, str]]  # of each case: the file that the stage before segmented, and its digest


def build(
    cases: Cases,
    plan_path: Path,
    configuration: str,
    manifest: Path,
    runtime: Runtime,
    previous: Mapping[str, Path] | None = None,
) -> None:
    """Preprocess the training cases that are not stored yet and write the manifest.

    previous : for a cascade, each case's segmentation by the stage before
    """
    plan = plan_module.read(plan_path)
    found = {case: {"file": os.fspath(path), "digest": digest.of_file(path)} for case, path in (previous or {}).items()}
    store = _store(cases, plan, configuration, manifest.parent / "cases", found)
    _make(store, runtime)
    digest.write_json(manifest, _manifest(store))


def ensure(cases: Cases, plan_path: Path, manifest: Path, runtime: Runtime) -> "Store":
    """Open the store of a manifest, making the case files that are missing.

    Raises SegpipeError where the manifest was written for other inputs or settings.
    """
    content = digest.read_json(manifest)
    plan, previous = plan_module.read(plan_path), content.get("previous", {})
    store = _store(cases, plan, content["configuration"], manifest.parent / "cases", previous)
    if content != _manifest(store):
        raise SegpipeError(
            problem(
                "the preprocessed cases belong to other inputs or settings",
                where=manifest,
                found=f"digest {content.get('digest')}",
                expected=f"digest {store.digest}",
                cure="run the rule preprocess again (snakemake or dvc repro does)",
            )
        )
    _make(store, runtime)
    return store


def _store(cases: Cases, plan: dict[str, Any], configuration: str, folder: Path, previous: Previous) -> "Store":
    wanted = {case: _case_digest(cases, case, plan, configuration) for case in cases.training}
    segmented = {case: entry["digest"] for case, entry in previous.items()}
    identity = digest.of([wanted, cases.labels.to_json(), segmented])
    return Store(folder, cases, plan, configuration, identity, wanted, previous)


def _case_digest(cases: Cases, case: str, plan: dict[str, Any], configuration: str) -> str:
    planned: Configuration = plan["configurations"][configuration]
    settings = [
        plan["transpose_forward"],
        plan["intensities"] if "ct" in planned.normalisation else None,
        case_target_mm(cases.entry(case)["spacing_mm"], plan["transpose_forward"], planned),
        planned.normalisation,
        planned.use_mask_for_norm,
        cases.labels.to_json(),
    ]
    return digest.of([cases.identity(case), settings, digest.of_code("preprocess")])


def _manifest(store: "Store") -> dict[str, Any]:
    content = {"configuration": store.configuration, "digest": store.digest, "cases": store.wanted}
    return {**content, "previous": store.previous} if store.previous else content


def _make(store: "Store", runtime: Runtime) -> None:
    """Make the cases whose stored digest is not the wanted one. A lock keeps a second process from the same work."""
    if not any(_missing(store)):  # the jobs of all folds come at once, and are not to find the lock taken
        return
    folder, wanted = store.folder, store.wanted
    with digest.exclusive(folder.parent / ".lock", f"preprocessing {store.configuration}"):
        missing, segmented = _missing(store)
        others = twins.folders(folder, runtime.share_cases_with)
        with ThreadPoolExecutor(store.cases.at_once(runtime.threads)) as pool:
            linked = sum([job.result() for job in [pool.submit(_make_case, store, case, others) for case in missing]])
            for job in [pool.submit(_make_previous, store, case) for case in segmented]:
                job.result()
    if missing:
        made = len(missing) - linked
        log.info("%s: %d cases preprocessed, %d were there", store.configuration, made, len(wanted) - made)


def _missing(store: "Store") -> tuple[list[str], list[str]]:
    """The cases that are not stored as wanted; those without what the stage before segmented of them."""
    cases = [case for case in store.wanted if twins.record_of(store.folder, case, store.wanted[case]) is None]
    return cases, [case for case in store.previous if not _has_previous(store, case)]


def _make_case(store: "Store", case: str, others: Sequence[Path]) -> bool:
    """Make the files of a case; True where another folder has the same."""
    folder = store.folder
    # the record goes first and comes last: without it the arrays count as missing
    (folder / f"{case}.json").unlink(missing_ok=True)
    if twins.link(folder, case, store.wanted[case], others):
        return True
    volume, label = store.cases.read_image(case), store.cases.read_label(case)
    image = volume.array.astype(np.float32, copy=False)
    prepared = preprocess(image, label, volume.spacing_mm, store.plan, store.planned)
    assert prepared.label is not None
    _save(folder / f"{case}.image.npy", prepared.image)
    _save(folder / f"{case}.label.npy", prepared.label)
    foreground = foreground_locations(prepared.label, store.cases.labels)
    small = np.int32 if prepared.label.size <= np.iinfo(np.int32).max else np.int64
    _save(folder / f"{case}.foreground.npy", np.concatenate([np.empty(0, small), *foreground.values()], dtype=small))
    record = {
        "digest": store.wanted[case],
        "grid": asdict(prepared.grid),
        "foreground": [[index, len(voxels)] for index, voxels in foreground.items()],
    }
    digest.write_json(folder / f"{case}.json", record)
    return False


def _previous_files(store: "Store", case: str) -> tuple[Path, Path, str]:
    """Array and record of what the stage before segmented of a case, and what the record has to say."""
    target, record = (store.folder / f"{case}.previous.{ending}" for ending in ("npy", "json"))
    return target, record, digest.of([store.wanted[case], store.previous[case]["digest"]])


def _has_previous(store: "Store", case: str) -> bool:
    target, record, wanted = _previous_files(store, case)
    return target.exists() and record.exists() and digest.read_json(record) == wanted


def _make_previous(store: "Store", case: str) -> None:
    """Put what the stage before segmented onto the grid of a stored case."""
    target, record, wanted = _previous_files(store, case)
    file = Path(store.previous[case]["file"])
    if not file.exists() or digest.of_file(file) != store.previous[case]["digest"]:
        raise SegpipeError(
            problem(
                "the segmentation by the stage before is not the one that was prepared",
                where=file,
                found="another file" if file.exists() else "no file",
                expected=f"digest {store.previous[case]['digest']}",
                cure="run the rule preprocess again (snakemake or dvc repro does)",
            )
        )
    record.unlink(missing_ok=True)
    _save(target, on_grid(store.cases.read_segmentation(file), store.grid(case)))
    digest.write_json(record, wanted)


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with digest.new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def foreground_locations(label: NDArray[np.int16], labels: Labels, seed: int = 1234) -> dict[int, NDArray[np.int64]]:
    """Class to sorted flat indices of its voxels; a random part of large classes. No class is empty.

    Classes or regions are counted from 1 in the order of `labels.foreground`. With an ignore label 0 stands for all
    voxels that are annotated, background as well (data_loader.py of nnU-Net centres patches on them).
    """
    rng = np.random.default_rng(seed)
    found: dict[int, NDArray[np.int64]] = {}
    if labels.ignore is not None:
        found[ANNOTATED] = _some(np.flatnonzero(label != labels.ignore), rng)
    voxels = np.flatnonzero(label > 0)  # a small part of most volumes, so looking at it for each class is cheap
    values = label[np.unravel_index(voxels, label.shape)]
    for index, of_class in enumerate(labels.foreground.values(), 1):
        found[index] = _some(voxels[belongs(values, of_class)], rng)
    return {index: chosen for index, chosen in found.items() if len(chosen)}


def _some(voxels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    count = max(min(MIN_LOCATIONS, len(voxels)), int(np.ceil(len(voxels) * MIN_COVERAGE)))
    return voxels if count == len(voxels) else np.sort(rng.choice(voxels, count, replace=False))


@dataclass(frozen=True)
class StoredCase:
    """One preprocessed case, memory-mapped.

    image : (C, Z, Y, X) float32; label : (Z, Y, X) int16
    foreground : class or region, counted from 1, to flat voxel indices, int32 or int64; none is empty
    annotated : such indices of voxels that are annotated, or None where all are
    previous : (Z, Y, X) int16, the segmentation of a cascade's stage before, or None
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16]
    foreground: dict[int, NDArray[np.integer]]
    annotated: NDArray[np.integer] | None = None
    previous: NDArray[np.int16] | None = None


@dataclass(frozen=True)
class Store:
    """The preprocessed cases of one configuration.

    wanted : digest of each case; previous : the files that a cascade's stage before segmented
    """

    folder: Path
    cases: Cases
    plan: dict[str, Any]
    configuration: str
    digest: str
    wanted: dict[str, str]
    previous: Previous

    @cached_property
    def planned(self) -> Configuration:
        """The configuration's part of the plan."""
        planned: Configuration = self.plan["configurations"][self.configuration]
        return planned

    def open(self, case: str) -> StoredCase:
        """Map a case for reading patches."""
        voxels = np.load(self.folder / f"{case}.foreground.npy", mmap_mode="r")
        counts = self._record(case)["foreground"]
        ends = itertools.accumulate(count for _, count in counts)
        foreground = {index: voxels[end - count : end] for (index, count), end in zip(counts, ends, strict=True)}
        ignoring = self.cases.labels.ignore is not None
        # mode "c": nothing writes to them, but torch.from_numpy warns of memory that cannot be written to
        return StoredCase(
            np.load(self.folder / f"{case}.image.npy", mmap_mode="c"),
            np.load(self.folder / f"{case}.label.npy", mmap_mode="c"),
            {index: voxels for index, voxels in foreground.items() if index != ANNOTATED},
            foreground.get(ANNOTATED, voxels[:0]) if ignoring else None,
            np.load(self.folder / f"{case}.previous.npy", mmap_mode="c") if self.previous else None,
        )

    def grid(self, case: str) -> Grid:
        """The way back of a stored case."""
        return Grid.from_json(self._record(case)["grid"])

    def _record(self, case: str) -> dict[str, Any]:
        record: dict[str, Any] = digest.read_json(self.folder / f"{case}.json")
        return record

    def read(self, case: str) -> Prepared:
        """A whole case with its way back."""
        image, label = (np.load(self.folder / f"{case}.{part}.npy") for part in ("image", "label"))
        previous = np.load(self.folder / f"{case}.previous.npy") if self.previous else None
        return Prepared(image, label, self.grid(case), previous)
