"""Columns of cases.tsv: of the training cases as cases.json has them, or of a table by itself."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path

from segpipe.data import case_table
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem, raise_all

log = getLogger(__name__)

Column = Mapping[str, str]  # value by case


def column(cases: Cases, name: str | None, required: bool = True) -> Column | None:
    """The values of the training cases in a column of cases.tsv; None where it is not asked for.

    required : where False, None for a column that the dataset does not have as well
    Raises SegpipeError for a column that is missing, or that is empty for some cases.
    """
    values = {case: cases.entry(case)["attributes"].get(name) for case in cases.training}
    if name is None or not (required or any(value is not None for value in values.values())):
        if name is not None:
            log.info("no column `%s` in cases.tsv: each case is a group of its own", name)
        return None
    known = sorted({key for case in cases.training for key in cases.entry(case)["attributes"]})
    missing = [case for case, value in values.items() if not value]
    if missing:
        raise SegpipeError(
            problem(
                "cases.tsv does not say it of every case",
                where=f"{cases.root / 'cases.tsv'}, column {name}",
                found=f"nothing for {', '.join(missing)}" if name in known else f"columns {known}",
                expected=f"a value for each of the {len(values)} training cases",
                cure="fill it in, or name another column, or null, in splits of params.yaml",
            )
        )
    return {case: value for case, value in values.items() if value}


def of_table(path: Path, name: str | None, cases: Sequence[str]) -> Column:
    """The values of some cases in a column of a table like cases.tsv, which may have other cases as well.

    Raises SegpipeError where it is no such table, has a case twice, or does not say it of every case.
    """
    table = [line for _, line in case_table.lines(path)]
    values = {line["case"]: line.get(name or "", "") for line in table}
    wrong = list(case_table.twice(path, [line["case"] for line in table]))
    if missing := [case for case in cases if not values.get(case)]:
        wrong.append(
            problem(
                "the table does not say it of every case",
                where=f"{path}, column {name}",
                found=f"nothing for {', '.join(missing)}",
                expected=f"a value for each of the {len(cases)} cases",
                cure="fill it in, or name another column in splits.group of params.yaml",
            )
        )
    raise_all(f"{path} does not group the cases", wrong)
    return {case: values[case] for case in cases}
