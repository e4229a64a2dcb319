"""Which configuration, or which of them together, is best in the cross-validation: model_choice.json.

Every set of configurations up to a limit is scored on all validation cases of the folds: one alone by what its
validation says, several by the mean of their saved softmax, as the prediction averages them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.columns import column
from segpipe.evaluation import intervals, summary
from segpipe.evaluation.intervals import Units
from segpipe.evaluation.overlap import Numbers, case_overlap
from segpipe.inference import mean_softmax
from segpipe.inference.ensemble import Member, by_fold, how, identity_of_all, made_of
from segpipe.inference.kept import Kept
from segpipe.params import Params, section

log = getLogger(__name__)

Floats = NDArray[np.float64]
Group = tuple[str, ...]  # of configurations
Scores = dict[str, Numbers]  # of a case, by the class's name in summary.json


@dataclass(frozen=True)
class Candidate:
    """Configurations whose softmax is averaged, and how each validation case of each fold is scored."""

    members: Group
    folds: dict[str, list[Scores]]

    def table(self, fold: str | None = None) -> dict[str, Any]:
        """The means over all cases, or those of one fold, as summary.json has them."""
        folds = self.folds.values() if fold is None else [self.folds[fold]]
        return summary.tables([summary.case_row(scores, "", "") for of_fold in folds for scores in of_fold])

    def mean(self, measure: str, fold: str | None = None) -> float | None:
        """Over the classes, of their means over the cases."""
        value: float | None = self.table(fold)["foreground_mean"][measure]
        return value

    def values(self, measure: str) -> Floats:
        """(cases, classes); NaN where a case has no number."""
        rows = [[one[measure] for one in scores.values()] for of_fold in self.folds.values() for scores in of_fold]
        return np.array(rows, np.float64)


def choose(cases: Cases, folders: list[Path], out: Path, params: Params) -> None:
    """Write which configurations the prediction should take, with the scores of all that were tried.

    folders : the validations of every configuration in every fold
    Raises SegpipeError where the validations do not belong together, or where the column of cases.tsv that groups
    cases has nothing for some.
    """
    folds = by_fold([Member.read(folder) for folder in folders], params)
    state = out.parent / "state"
    with digest.exclusive(state / ".choice.lock", "choosing among configurations"):
        members = [member for of_fold in folds.values() for member in of_fold.values()]
        code = digest.of_code("choose")
        kept = Kept.of(state / "choice", [made_of(members), how(params), params.choose.largest, code])
        candidates, of = _candidates(cases, folds, params, kept), _units(cases, folds, params)
        best, chosen = select(candidates, params.choose.measure, params.choose.margin)
        content = {
            "chosen": list(chosen.members),
            **section(params, "choose"),
            "weights": dict(zip(params.configurations, params.ensemble.of(params.configurations), strict=True)),
            "candidates": [_listed(candidate, best, of, params) for candidate in candidates],
            **of.told(),
            "identity": identity_of_all(folds, params),
            "labels": cases.labels.to_json(),
            "versions": summary.versions(),
        }
        digest.write_json(out, content)
        kept.remove()
    mean = summary.readable(chosen.mean(params.choose.measure))
    log.info("chosen: %s; mean foreground %s %s", " + ".join(chosen.members), params.choose.measure, mean)


def chosen(path: Path) -> list[str]:
    """The configurations that a model_choice.json names."""
    return list(digest.read_json(path)["chosen"])


def require_chosen_of(members: Sequence[Member], content: dict[str, Any]) -> None:
    """Raise SegpipeError where a model_choice.json was made of other networks than these members of a fold."""
    made_of = content["identity"]["networks"][members[0].summary["fold"]]
    present = {member.configuration: member.summary["digest"] for member in members}
    of_these = {name: made_of[name] for name in present}
    summary.require_same("choice and validations", {"model_choice.json": of_these, "validations": present})


def select(candidates: Sequence[Candidate], measure: str, margin: float) -> tuple[Candidate, Candidate]:
    """The best one, and the chosen one: of those at most `margin` worse the smallest, and of these the best."""
    means = [-1.0 if (mean := candidate.mean(measure)) is None else mean for candidate in candidates]
    good = [index for index, mean in enumerate(means) if mean >= max(means) - margin]
    first = min(good, key=lambda index: (len(candidates[index].members), -means[index]))
    return candidates[int(np.argmax(means))], candidates[first]


def _candidates(cases: Cases, folds: dict[str, dict[str, Member]], params: Params, kept: Kept) -> list[Candidate]:
    names = params.configurations
    several = [group for n in range(2, params.choose.largest + 1) for group in combinations(range(len(names)), n)]
    found = [Candidate((name,), {fold: _alone(of_fold[name]) for fold, of_fold in folds.items()}) for name in names]
    if not several:
        return found
    scored = {
        fold: _together(cases, [of_fold[name] for name in names], several, params, kept)
        for fold, of_fold in folds.items()
    }
    for index, group in enumerate(several):
        members = tuple(names[number] for number in group)
        found.append(Candidate(members, {fold: [of_case[index] for of_case in rows] for fold, rows in scored.items()}))
    return found


def _units(cases: Cases, folds: dict[str, dict[str, Member]], params: Params) -> Units:
    """What is drawn again of the cases, in the order of `Candidate.values`."""
    ids = [case for of_fold in folds.values() for case in _ids(next(iter(of_fold.values())), cases)]
    return intervals.units(ids, column(cases, params.splits.group, required=False), params.splits.group)


def _ids(member: Member, cases: Cases) -> list[str]:
    return [name.removesuffix(cases.label_ending) for name in member.cases]


def _alone(member: Member) -> list[Scores]:
    return [row["metrics"] for row in member.summary["metric_per_case"]]


def _together(
    cases: Cases, members: list[Member], groups: Sequence[Sequence[int]], params: Params, kept: Kept
) -> list[list[Scores]]:
    """Of each case of a fold, the scores of every group."""
    weights = params.ensemble.of([member.configuration for member in members])

    def score(case: str) -> list[Scores]:
        paths = [member.softmax(case) for member in members]
        maps = mean_softmax.label_maps(paths, weights, cases.labels, groups)
        reference = cases.read_label(case)
        return [case_overlap(one, reference, cases.labels, cases.annotated(case)) for one in maps]

    ids = _ids(members[0], cases)
    shapes = [cases.entry(case)["shape"] for case in ids]
    at_once = mean_softmax.at_once(shapes, params.runtime.threads, len(groups))
    return kept.each(f"fold_{members[0].summary['fold']}", ids, score, at_once)


def _listed(candidate: Candidate, best: Candidate, of: Units, params: Params) -> dict[str, Any]:
    measure = params.choose.measure
    return {
        "members": list(candidate.members),
        "mean": candidate.mean(measure),
        "per_class": {key: numbers[measure] for key, numbers in candidate.table()["mean"].items()},
        "per_fold": {fold: candidate.mean(measure, fold) for fold in candidate.folds},
        "to_best": _difference(candidate, best, of, params),
    }


def _difference(candidate: Candidate, best: Candidate, of: Units, params: Params) -> dict[str, Any]:
    """How much better a candidate is than the best one (0, or below), and the interval of that when the cases of the
    cross-validation, or its patients, are drawn again, the same draws for both.
    """
    measure, settings = params.choose.measure, params.evaluate
    drawn = [
        intervals.mean_of_known(intervals.drawn_means(one.values(measure)[..., None], of, settings))[:, 0]
        for one in (candidate, best)
    ]
    differences = drawn[0] - drawn[1]
    known = differences[np.isfinite(differences)]
    tail = (1 - settings.confidence_level) / 2
    low, high = np.quantile(known, [tail, 1 - tail]).tolist() if known.size else (None, None)
    means = candidate.mean(measure), best.mean(measure)
    difference = None if means[0] is None or means[1] is None else means[0] - means[1]
    return {"difference": difference, "low": low, "high": high}
