"""Whether two results can be compared, and what has to be known before they are."""

from collections.abc import Iterator

from segpipe.experiments import patients, settings
from segpipe.experiments.found import Result
from segpipe.params import Evaluate
from segpipe.params.editing import on_one_line

SCORING = (
    "nsd_tolerance_mm",
    "lesion_match",
    "lesion_connectivity",
)  # of `evaluate`: what numbers of a case follow from
FEW = 10  # common cases or patients, below which percentiles of means over drawn cases lie too close together
SHOWN = 3  # keys or cases that a message names
assert set(SCORING) <= set(Evaluate.model_fields)


def common_cases(one: Result, other: Result) -> list[str]:
    """Cases that both have, with the same number of reference voxels in each class that both know."""
    return [case for case in one.cases if case in other.cases and _same_reference(one, other, case)]


def common_classes(one: Result, other: Result) -> list[str]:
    """Classes that both have and call alike, where names are known."""
    return [key for key in one.keys if key in other.keys and _alike(one, other, key)]


def _alike(one: Result, other: Result, key: str) -> bool:
    names = [result.classes.get(key) for result in (one, other)]
    return None in names or names[0] == names[1]


def _same_reference(one: Result, other: Result, case: str) -> bool:
    sizes = [[result.cases[case][key].get("n_ref") for result in (one, other)] for key in common_classes(one, other)]
    return all(None in pair or pair[0] == pair[1] for pair in sizes)


def remarks(reference: Result, result: Result) -> Iterator[str]:
    """What makes a result's numbers others than they seem beside those of the reference."""
    yield from _classes(reference, result)
    yield from _cases(reference, result)
    digests = [one.identity.get("dataset") for one in (reference, result)]
    if None not in digests and digests[0] != digests[1]:
        yield f"another dataset: digest {digests[1]}, not {digests[0]}"
    yield from _folds(reference, result)
    if reference.checkpoint and result.checkpoint and reference.checkpoint != result.checkpoint:
        what = f"{result.checkpoint}, not {reference.checkpoint}"
        yield f"another checkpoint: {what}; `best` was chosen by these very validation cases"
    scored = [one.recorded.get("evaluate", {}) for one in (reference, result)]
    scored = [{"evaluate": {key: one[key] for key in SCORING if key in one}} for one in scored]
    for key, (of_reference, own) in settings.differing(scored).items():
        yield f"scored otherwise: {key} is {on_one_line(own)}, not {on_one_line(of_reference)}"


def own_remarks(result: Result) -> Iterator[str]:
    """What has to be known of one result alone."""
    if result.mixed:
        yield "its folds were made with different settings or data: run snakemake to make them alike"
    if not result.recorded and not result.params:
        yield "its settings are not known"
    elif result.params is None:
        yield f"of its settings only those of {', '.join(result.recorded)} are known"
    edited = _edited(result)
    if edited:
        shown = list(edited.items())[:SHOWN]
        said = [f"{key} is {on_one_line(now)}, was {on_one_line(then)}" for key, (then, now) in shown]
        more = f" and {len(edited) - SHOWN} more" if len(edited) > SHOWN else ""
        yield f"params.yaml has changed since these results were made: {'; '.join(said)}{more}"


def _edited(result: Result) -> dict[str, list[object]]:
    """Settings that the results were made with, and those of params.yaml now; keys that only one has do not count."""
    if result.params is None:
        return {}
    now = {name: result.params.get(name) or {} for name in result.recorded}
    return settings.differing([result.recorded, now])


def _classes(reference: Result, result: Result) -> Iterator[str]:
    common = common_classes(reference, result)
    if set(common) != set(reference.keys) | set(result.keys):
        names = ["/".join(one.called(key) for key in one.keys) for one in (reference, result)]
        yield f"other classes: {names[1]}, not {names[0]}; the mean over the foreground is of something else"


def _cases(reference: Result, result: Result) -> Iterator[str]:
    shared = [case for case in reference.cases if case in result.cases]
    same = common_cases(reference, result)
    counts = len(reference.cases), len(result.cases)
    if not shared:
        yield "other cases: none in common, so there is no difference to show"
    elif len(shared) < max(counts):
        yield f"other cases: {counts[1]}, not {counts[0]}; {len(shared)} in common, the difference is over these"
    drawn = patients.units(same, reference.patients, result.patients)
    if 0 < drawn.n < FEW:
        least = 2.0 ** (1 - drawn.n)  # all differences of one sign, two-sided
        counted = f"{drawn.n} {drawn.name if drawn.n > 1 else drawn.name.removesuffix('s')}"
        yield f"intervals over {counted} are too narrow; p is at least {least:.2g}"
    if len(same) < len(shared):
        other = [case for case in shared if case not in same]
        listed = ", ".join(other[:SHOWN]) + (" ..." if len(other) > SHOWN else "")
        yield f"other references of {len(other)} cases, which the difference leaves out: {listed}"


def _folds(reference: Result, result: Result) -> Iterator[str]:
    """Whether a case was validated by networks that were trained with the same other cases."""
    both = [case for case in reference.fold_of if case in result.fold_of]
    if any(reference.fold_of[case] != result.fold_of[case] for case in both):
        yield "other splits: cases lie in other folds, so the networks were trained with other cases"
