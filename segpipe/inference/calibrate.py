"""calibration.json: how far the saved softmax of the cross-validation may be taken at its word, and its temperature.

Of each configuration and each mean of several, over the validation cases of all folds. All are looked at on the same
voxels, which are drawn per case: their memory is that of `calibrate.voxels`, however many cases there are.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.evaluation import calibration, summary, voxel_sample
from segpipe.evaluation.voxel_sample import Rows, Sample
from segpipe.inference import mean_softmax, softmax_file
from segpipe.params import Calibrate, Ensemble, Params

log = getLogger(__name__)


@dataclass(frozen=True)
class _Fold:
    """The validation cases of one fold, and the folder in which each configuration has their softmax."""

    number: str
    cases: list[str]
    folders: dict[str, Path]


@dataclass(frozen=True)
class _Drawn:
    """The voxels of one case: what they are, with the first configuration's probabilities, and those of each."""

    sample: Sample
    probabilities: dict[str, Rows]


def calibrate(cases: Cases, folders: list[Path], out: Path, params: Params) -> None:
    """Write calibration.json from the validation folders of all configurations and folds.

    Raises SegpipeError where the folders do not belong together, or a softmax does not fit its case.
    """
    summaries = {folder: digest.read_json(folder / "summary.json") for folder in folders}
    folds = _folds(summaries, cases.label_ending)
    jobs = [(case, fold) for fold in folds for case in fold.cases]
    each = max(2, params.calibrate.voxels // len(jobs))
    with ThreadPoolExecutor(cases.at_once(params.runtime.threads)) as pool:
        drawn = list(pool.map(lambda job: _draw(cases, job[0], job[1], each, params.calibrate), jobs))
    rows = [len(one.sample.reference) for one in drawn]
    number = np.repeat([fold.number for _, fold in jobs], rows)
    calibrations = [
        _calibration(names, sample, number, cases, params.calibrate)
        for names, sample in _ensembles(drawn, list(folds[0].folders), params.ensemble)
    ]
    first = next(iter(summaries.values()))
    content = {
        "calibrations": calibrations,
        "cases": len(jobs),
        "settings": params.calibrate.model_dump(mode="json"),
        "weights": dict(zip(params.configurations, params.ensemble.of(params.configurations), strict=True)),
        "checkpoint": first["checkpoint"],
        "identity": {key: value for key, value in first["identity"].items() if key != "training"}
        | {"trainings": {one["configuration"]: one["identity"]["training"] for one in summaries.values()}},
        "labels": first["labels"],
        "versions": summary.versions(),
    }
    digest.write_json(out, content)


def temperature(content: dict[str, Any], configurations: Sequence[str]) -> float:
    """Of a calibration.json, the temperature of one configuration or of the mean of several, in any order.

    Raises SegpipeError where it was not fitted.
    """
    known = {frozenset(one["configurations"]): float(one["temperature"]) for one in content["calibrations"]}
    if frozenset(configurations) not in known:
        raise SegpipeError(
            problem(
                "no temperature of these configurations",
                where="results/crossval/calibration.json",
                found="; ".join(" + ".join(sorted(names)) for names in known),
                expected=" + ".join(configurations),
                cure="run the rule calibrate with these among `configurations`",
            )
        )
    return known[frozenset(configurations)]


def _folds(summaries: dict[Path, dict[str, Any]], ending: str) -> list[_Fold]:
    """The folders by fold. All are of the same data and settings, those of a configuration of the same training."""

    def identity(one: dict[str, Any], *without: str) -> dict[str, Any]:
        return {key: value for key, value in one["identity"].items() if key not in without}

    summary.require_same("validations", {str(path): identity(one, "training") for path, one in summaries.items()})
    for name in {one["configuration"] for one in summaries.values()}:
        of_name = {str(path): identity(one) for path, one in summaries.items() if one["configuration"] == name}
        summary.require_same(f"folds of {name}", of_name)
    folds = []
    for number in dict.fromkeys(one["fold"] for one in summaries.values()):
        members = {path: one for path, one in summaries.items() if one["fold"] == number}
        cases = {path: _case_ids(one, ending) for path, one in members.items()}
        summary.require_same(f"members of fold {number}", {str(path): of_path for path, of_path in cases.items()})
        of_fold = {one["configuration"]: path for path, one in members.items()}
        folds.append(_Fold(number, next(iter(cases.values())), of_fold))
    summary.require_same("folds", {fold.number: sorted(fold.folders) for fold in folds})
    return folds


def _case_ids(content: dict[str, Any], ending: str) -> list[str]:
    return [Path(row["prediction_file"]).name.removesuffix(ending) for row in content["metric_per_case"]]


def _draw(cases: Cases, case: str, fold: _Fold, n: int, settings: Calibrate) -> _Drawn:
    """Up to `n` voxels of a case. Which ones follows from the seed, its label and what all configurations segmented."""
    label = cases.read_label(case)
    inside = (label >= 0) & (label != cases.labels.ignore)
    foreground = inside & (label > 0)
    for folder in fold.folders.values():
        foreground |= cases.read_segmentation(folder / "segmentations" / f"{case}{cases.label_ending}") > 0
    close = voxel_sample.near(foreground, cases.entry(case)["spacing_mm"], settings.near_mm)
    rng = np.random.default_rng(int(digest.of([settings.seed, case]), 16))
    index, weight = voxel_sample.draw(inside, close, n, rng)
    about = label.reshape(-1)[index], weight, close.reshape(-1)[index], cases.labels, cases.annotated(case)
    samples = {
        name: voxel_sample.of_voxels(_at(folder / "softmax" / f"{case}.npz", index, label, cases), *about)
        for name, folder in fold.folders.items()
    }
    first = next(iter(samples.values()))
    return _Drawn(first, {name: one.probabilities for name, one in samples.items()})


def _at(path: Path, index: NDArray[np.int64], label: NDArray[np.int16], cases: Cases) -> Rows:
    """The probabilities of some voxels, (heads, n); one class of the file is in memory at a time."""
    expected = (len(cases.labels.heads), *label.shape)
    if softmax_file.shape(path) != expected:
        raise SegpipeError(
            problem(
                "softmax of another grid or other classes",
                where=path,
                found=softmax_file.shape(path),
                expected=f"{expected}, classes and shape of {os.fspath(path.stem)}",
                cure="validate again",
            )
        )
    return np.stack([one.reshape(-1)[index] for one in softmax_file.classes(path)])


def _ensembles(
    drawn: list[_Drawn], configurations: list[str], settings: Ensemble
) -> Iterator[tuple[tuple[str, ...], Sample]]:
    """Each configuration, and the mean of each set of them, on the same voxels."""
    all_voxels = voxel_sample.joined([one.sample for one in drawn])
    rows = {name: np.concatenate([one.probabilities[name] for one in drawn]) for name in configurations}
    for n_members in range(1, len(configurations) + 1):
        for names in combinations(configurations, n_members):
            mean = mean_softmax.mean([rows[name] for name in names], settings.of(names))
            yield names, replace(all_voxels, probabilities=mean)


def _calibration(
    names: tuple[str, ...], sample: Sample, fold: NDArray[np.str_], cases: Cases, settings: Calibrate
) -> dict[str, Any]:
    """One entry of calibration.json. fold : (n,) of each row"""
    fitted = calibration.fit_temperature(sample.where(sample.near))
    without = {str(k): calibration.fit_temperature(sample.where(sample.near & (fold != k))) for k in np.unique(fold)}
    held_out = None
    if len(without) > 1:
        held_out = voxel_sample.joined(
            [calibration.tempered(sample.where(fold == k), of_k) for k, of_k in without.items()]
        )
    scored = {"before": sample, "after": calibration.tempered(sample, fitted), "held_out": held_out}
    content: dict[str, Any] = {
        "configurations": list(names),
        "temperature": fitted,
        "temperature_without_fold": without if held_out is not None else None,
        **{when: one and _domains(one, cases, settings) for when, one in scored.items()},
    }
    ece = [content[when]["near"]["ece"] for when in ("before", "after")]
    log.info(
        "calibration of %s: temperature %.3f, expected calibration error near the foreground %s, then %s",
        " + ".join(names),
        fitted,
        *(summary.readable(value) for value in ece),
    )
    return content


def _domains(sample: Sample, cases: Cases, settings: Calibrate) -> dict[str, Any]:
    labels = cases.labels
    of = settings.bins, [labels.key(name) for name in labels.foreground], labels.has_regions
    return {
        "near": calibration.scores(sample.where(sample.near), *of),
        "all": calibration.scores(sample, *of),
    }
