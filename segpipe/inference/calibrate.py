"""calibration.json: how far the saved softmax of the cross-validation may be taken at its word, and its temperature.

Of each configuration and each mean of several, over the validation cases of all folds. All are looked at on the same
voxels, which are drawn per case: their memory is that of `calibrate.voxels`, however many cases there are.
"""

import os
from collections.abc import Iterator, Sequence
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
from segpipe.inference.ensemble import Member, by_fold, how, identity_of_all, made_of
from segpipe.inference.kept import Kept
from segpipe.params import Calibrate, Ensemble, Params

log = getLogger(__name__)

PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class _Drawn:
    """The voxels of one case: what they are, with the first configuration's probabilities, and those of each."""

    sample: Sample
    probabilities: dict[str, Rows]

    def save(self, path: Path) -> None:
        """Write all arrays, as they are."""
        arrays = {key: value for key, value in vars(self.sample).items() if key != PROBABILITIES}
        arrays |= {f"{PROBABILITIES} {name}": rows for name, rows in self.probabilities.items()}
        with digest.new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path, configurations: Sequence[str]) -> "_Drawn":
        """What `save` wrote."""
        with np.load(path) as arrays:
            probabilities = {name: arrays[f"{PROBABILITIES} {name}"] for name in configurations}
            first = next(iter(probabilities.values()))
            rest = {key: arrays[key] for key in arrays.files if not key.startswith(PROBABILITIES)}
        return cls(Sample(probabilities=first, **rest), probabilities)


def calibrate(cases: Cases, folders: list[Path], out: Path, params: Params) -> None:
    """Write calibration.json from the validation folders of all configurations and folds.

    Raises SegpipeError where the folders do not belong together, or a softmax does not fit its case.
    """
    folds = by_fold([Member.read(folder) for folder in folders], params)
    state = out.parent / "state"
    with digest.exclusive(state / ".calibrate.lock", "calibrating"):
        members = [member for of_fold in folds.values() for member in of_fold.values()]
        settings, code = params.calibrate.model_dump(mode="json"), digest.of_code("calibrate")
        kept = Kept.of(state / "calibrate", [made_of(members), how(params), settings, code])
        digest.write_json(out, _content(cases, folds, params, kept))
        kept.remove()


def _content(cases: Cases, folds: dict[str, dict[str, Member]], params: Params, kept: Kept) -> dict[str, Any]:
    jobs = [(case, fold) for fold, members in folds.items() for case in _case_ids(members, cases)]
    each = max(2, params.calibrate.voxels // len(jobs))
    drawn = [one for members in folds.values() for one in _drawn(cases, members, each, params, kept)]
    rows = [len(one.sample.reference) for one in drawn]
    of_fold = np.repeat([fold for _, fold in jobs], rows)
    calibrations = [
        _calibration(names, sample, of_fold, cases, params.calibrate)
        for names, sample in _ensembles(drawn, params.configurations, params.ensemble)
    ]
    return {
        "calibrations": calibrations,
        "cases": len(jobs),
        "settings": params.calibrate.model_dump(mode="json"),
        "weights": dict(zip(params.configurations, params.ensemble.of(params.configurations), strict=True)),
        "identity": identity_of_all(folds, params),
        "labels": cases.labels.to_json(),
        "versions": summary.versions(),
    }


def _drawn(cases: Cases, members: dict[str, Member], each: int, params: Params, kept: Kept) -> list[_Drawn]:
    """Up to `each` voxels of every case of a fold."""
    ids, part = _case_ids(members, cases), f"fold_{next(iter(members.values())).summary['fold']}"

    def file(case: str) -> Path:
        return kept.path(part) / f"{case}.npz"

    def draw(case: str) -> None:
        _draw(cases, case, members, each, params.calibrate).save(file(case))

    kept.each(part, ids, draw, cases.at_once(params.runtime.threads), file)
    return [_Drawn.load(file(case), params.configurations) for case in ids]


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


def _case_ids(members: dict[str, Member], cases: Cases) -> list[str]:
    return [name.removesuffix(cases.label_ending) for name in next(iter(members.values())).cases]


def _draw(cases: Cases, case: str, members: dict[str, Member], n: int, settings: Calibrate) -> _Drawn:
    """Up to `n` voxels of a case. Which ones follows from the seed, its label and what all configurations segmented."""
    label = cases.read_label(case)
    inside = (label >= 0) & (label != cases.labels.ignore)
    foreground = inside & (label > 0)
    for member in members.values():
        foreground |= cases.read_segmentation(member.folder / "segmentations" / f"{case}{cases.label_ending}") > 0
    close = voxel_sample.near(foreground, cases.entry(case)["spacing_mm"], settings.near_mm)
    rng = np.random.default_rng(int(digest.of([settings.seed, case]), 16))
    index, weight = voxel_sample.draw(inside, close, n, rng)
    about = label.reshape(-1)[index], weight, close.reshape(-1)[index], cases.labels, cases.annotated(case)
    samples = {
        name: voxel_sample.of_voxels(_at(member.softmax(case), index, label, cases), *about)
        for name, member in members.items()
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
    drawn: list[_Drawn], configurations: Sequence[str], settings: Ensemble
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
