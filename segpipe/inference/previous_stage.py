"""What the first stage of a cascade segmented of the training cases: each by the fold that has not seen it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import problem, raise_all
from segpipe.evaluation import summary


def segmentations(cases: Cases, folders: list[Path]) -> dict[str, Path]:
    """The segmentation file of each training case. folders : the validations of all folds of the first stage

    Raises SegpipeError where folds were made with different data or settings, and where a case was validated by none
    of them or by several.
    """
    summaries = {folder: digest.read_json(folder / "summary.json") for folder in folders}
    summary.require_same("folds", {str(folder): content["identity"] for folder, content in summaries.items()})
    found = _by_case(cases, summaries)
    raise_all(
        "the first stage of the cascade",
        [_problem(case, found.get(case, [])) for case in cases.training if len(found.get(case, [])) != 1],
    )
    return {case: found[case][0] for case in cases.training}


def _by_case(cases: Cases, summaries: Mapping[Path, dict[str, Any]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder, content in summaries.items():
        for row in content["metric_per_case"]:
            name = Path(row["prediction_file"]).name
            found.setdefault(name.removesuffix(cases.label_ending), []).append(folder / "segmentations" / name)
    return found


def _problem(case: str, files: list[Path]) -> str:
    return problem(
        "not one out-of-fold segmentation of a case" if files else "a case that no fold validates",
        where=f"case {case}",
        found=", ".join(map(str, files)) or "none",
        expected="one: the second stage learns from segmentations by networks that have not seen the case",
        cure="let each training case be validated by exactly one fold (splits in params.yaml)",
    )
