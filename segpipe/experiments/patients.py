"""Which cases are of one patient, as far as the results of an experiment know."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.evaluation import intervals
from segpipe.evaluation.intervals import Units

Json = dict[str, Any]


@dataclass(frozen=True)
class Patients:
    """of_case : the patient of each case; column : what cases.tsv calls them"""

    column: str
    of_case: Mapping[str, str]


def known(contents: Iterable[Json], folder: Path, params: Json | None) -> Patients | None:
    """What a summary with intervals drew; where there is none yet, what the experiment's cases.json says.

    contents : of summaries; folder, params : of the experiment, None where it has no params.yaml
    """
    for content in contents:
        if "groups" in content:
            groups = content["groups"]
            return Patients(groups["column"], groups["of_case"]) if groups else None
    return _of_cases(folder, params) if params else None


def _of_cases(folder: Path, params: Json) -> Patients | None:
    column = str((params.get("splits") or {}).get("group"))
    name = (folder / str(params.get("dataset"))).resolve().name
    try:
        content = digest.read_json(folder / "data/preprocessed" / name / "cases.json")
        of_case = {case: entry["attributes"].get(column) for case, entry in content["training"].items()}
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    return Patients(column, of_case) if of_case and all(of_case.values()) else None


def units(cases: Sequence[str], *of_results: Patients | None) -> Units:
    """What is drawn again of some cases. The first result that knows a case's patient counts."""
    told = [one for one in of_results if one]
    of_case = {case: of for one in reversed(told) for case, of in one.of_case.items()}
    if not any(case in of_case for case in cases):
        return intervals.units(cases, None, None)
    return intervals.units(cases, {case: of_case.get(case, f"case {case}") for case in cases}, told[0].column)


def remark(of: Units) -> str | None:
    """What has to be known of intervals over patients; None where each case is a patient."""
    n_cases = len(of.of_case)
    return f"its {n_cases} cases are of {of.n} {of.name}: intervals draw these" if of.n < n_cases else None
