"""The rule `postprocess`: what the prediction will take, segmented in the cross-validation, before and after its rules.

With `predict.models: all` that is the ensemble of each fold, with `best` what model_choice.json names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.evaluation import summary
from segpipe.inference import choice, mean_softmax, postprocess, postprocessing
from segpipe.inference.ensemble import Member, how, scored
from segpipe.inference.kept import Kept
from segpipe.inference.postprocess import Rule
from segpipe.inference.postprocessing import Segmented
from segpipe.params import Params, section

log = getLogger(__name__)


@dataclass(frozen=True)
class Predicted:
    """The cross-validation of what the prediction will take.

    members : configurations; files : the segmentation of each case; rows : of summary.json, of each case
    """

    members: list[str]
    files: dict[str, Path]
    rows: dict[str, summary.CaseRow]
    identity: dict[str, Any]


def learn(cases: Cases, summaries: Sequence[Path], validations: Sequence[Path], out: Path, params: Params) -> None:
    """Write the rules that better the segmentations of the cross-validation, all that were tried, and the scores after.

    summaries : of the folds' ensembles; validations : of every configuration in every fold, with model_choice.json
        beside `out`, where the best of them counts
    Raises SegpipeError where the folds do not belong together.
    """
    state = out.parent / "state"
    with digest.exclusive(state / ".postprocess.lock", "learning what to remove"):
        is_best = params.predict.models == "best"
        kept_cases = _kept(state / "postprocess", summaries, validations, out, params)
        predicted = _best(cases, validations, out, params, kept_cases) if is_best else _all(cases, summaries)
        of = Segmented(cases, predicted.files, params.runtime.threads, kept_cases)
        kept, tried = postprocessing.learn(of, params.postprocess)
        rows = _after(of, predicted, kept, params)
        content = {
            "rules": [postprocess.to_json(rule) for rule in kept],
            "models": params.predict.models,
            "members": predicted.members,
            "before": _means(list(predicted.rows.values())),
            "tried": tried,
            "postprocessed": summary.tables(rows),
            "settings": section(params, "postprocess"),
            "identity": predicted.identity,
            "labels": cases.labels.to_json(),
            "versions": summary.versions(),
        }
        digest.write_json(out, content)
        kept_cases.remove()
    log.info("postprocessing: %d of %d rules kept", len(kept), len(tried))


def _kept(folder: Path, summaries: Sequence[Path], validations: Sequence[Path], out: Path, params: Params) -> Kept:
    choice_path = out.parent / "model_choice.json"
    is_best = params.predict.models == "best"
    files = [*summaries, *(path / "summary.json" for path in validations), *([choice_path] if is_best else [])]
    made_of = [digest.of_file(path) for path in files]
    return Kept.of(
        folder, [made_of, section(params, "postprocess"), is_best, how(params), digest.of_code("postprocess")]
    )


def _means(rows: list[summary.CaseRow]) -> dict[str, Any]:
    tables = summary.tables(rows)
    return {name: tables[name] for name in ("foreground_mean", "mean")}


def _all(cases: Cases, summaries: Sequence[Path]) -> Predicted:
    read = {path: digest.read_json(path) for path in summaries}
    summary.require_same("folds", {str(path): content["identity"] for path, content in read.items()})
    rows = {_case(row, cases): row for content in read.values() for row in content["metric_per_case"]}
    files = {case: Path(row["prediction_file"]) for case, row in rows.items()}
    first = next(iter(read.values()))
    return Predicted(list(first["members"]), files, rows, first["identity"])


def _best(cases: Cases, validations: Sequence[Path], out: Path, params: Params, kept: Kept) -> Predicted:
    chosen = digest.read_json(out.parent / "model_choice.json")
    members = [Member.read(folder) for folder in validations]
    folds: dict[str, list[Member]] = {}
    for member in members:
        if member.configuration in chosen["chosen"]:
            folds.setdefault(member.summary["fold"], []).append(member)
    identity = {**chosen["identity"], "chosen": chosen["chosen"]}
    rows: dict[str, summary.CaseRow] = {}
    for of_fold in folds.values():
        choice.require_chosen_of(of_fold, chosen)
        rows |= {_case(row, cases): row for row in of_fold[0].summary["metric_per_case"]}
    files = {case: Path(row["prediction_file"]) for case, row in rows.items()}
    if len(chosen["chosen"]) > 1:
        files = _averaged(cases, list(folds.values()), out.parent / "state/segmentations", params, kept)
        of = Segmented(cases, files, params.runtime.threads, kept)
        again = of.each("before", lambda case: scored(cases, case, of.read(case, []), files[case], params.evaluate))
        rows = dict(zip(files, again, strict=True))
    return Predicted(chosen["chosen"], files, rows, identity)


def _averaged(cases: Cases, folds: list[list[Member]], folder: Path, params: Params, kept: Kept) -> dict[str, Path]:
    """Segmentations of the mean softmax of the members of each fold, in an undeclared folder."""
    of_case = {name.removesuffix(cases.label_ending): members for members in folds for name in members[0].cases}
    files = {case: folder / f"{case}{cases.label_ending}" for case in of_case}

    def average(case: str) -> None:
        weights = params.ensemble.of([member.configuration for member in of_case[case]])
        paths = [member.softmax(case) for member in of_case[case]]
        cases.write_segmentation(files[case], mean_softmax.label_map(paths, weights, cases.labels), case)

    Segmented(cases, files, params.runtime.threads, kept).each("average", average, files.__getitem__)
    return files


def _after(of: Segmented, predicted: Predicted, kept: Sequence[Rule], params: Params) -> list[summary.CaseRow]:
    """The rows of all cases after the rules; those of a case that they do not change are as before."""

    def after(case: str) -> summary.CaseRow:
        segmentation = of.read(case, kept)
        if (segmentation == of.read(case, [])).all():
            return predicted.rows[case]
        return scored(of.cases, case, segmentation, predicted.files[case], params.evaluate)

    return of.each("after", after) if kept else list(predicted.rows.values())


def _case(row: summary.CaseRow, cases: Cases) -> str:
    return Path(row["prediction_file"]).name.removesuffix(cases.label_ending)
