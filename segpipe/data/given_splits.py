"""Folds made elsewhere, in the form of nnU-Net's splits_final.json: [{"train": ids, "val": ids}, ...]."""

import json
from collections import Counter
from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe.errors import SegpipeError, problem, raise_all

log = getLogger(__name__)

Fold = dict[str, list[str]]


def read(path: Path, cases: list[str], n_folds: int) -> list[Fold]:
    """The folds of a file. What a fold uses not at all is added to it as `neither`.

    cases : the ids of all training cases
    Raises SegpipeError with all that is wrong: no such form, another number of folds, unknown ids, a case twice or on
    both sides, nothing to train on or to validate.
    """
    folds = _read(path)
    raise_all(f"{path} cannot be used", _problems(path, folds, cases, n_folds))
    validated = Counter(case for fold in folds for case in fold["val"])
    trained = {case for fold in folds for case in fold["train"]}
    for what, found, so in (
        ("no fold validates", set(cases) - set(validated), "; the cascade needs each validated once"),
        ("no fold trains on", set(cases) - trained, ""),
        (
            "several folds validate",
            {case for case, times in validated.items() if times > 1},
            "; `folds` may name only one of these folds, and the cascade needs each validated once",
        ),
    ):
        if found:
            listed = ", ".join(sorted(found))
            log.warning("%s: %s %d of %d cases: %s%s", path, what, len(found), len(cases), listed, so)
    return [_complete(fold, cases) for fold in folds]


def require_each_validated_once(path: Path) -> None:
    """Refuse folds that a cascade cannot be trained with, before its first stage is: it learns from segmentations by
    the fold that has not seen a case.

    Raises SegpipeError naming the cases that no fold validates, or several.
    """
    folds = _read(path)
    validated = Counter(case for fold in folds for case in fold["val"])
    named = {case for fold in folds for case in (*fold["train"], *fold["val"])}
    wrong = sorted(case for case in named if validated[case] != 1)
    if wrong:
        found = ", ".join(f"{case} ({validated[case]} folds)" for case in wrong)
        expected = "each case validated by exactly one fold, as a cascade needs it"
        cure = "complete the folds, or leave 3d_cascade_fullres out of `configurations`"
        where = f"params.yaml: splits.file: {path}"
        raise SegpipeError(
            problem("folds that no cascade can use", where=where, found=found, expected=expected, cure=cure)
        )


def _complete(fold: Fold, cases: list[str]) -> Fold:
    left_out = sorted(set(cases) - set(fold["train"]) - set(fold["val"]))
    return {"train": fold["train"], "val": fold["val"], **({"neither": left_out} if left_out else {})}


def _read(path: Path) -> list[Fold]:
    found: object
    try:
        content = json.loads(path.read_text())
        if _has_form(content):
            return list(content)
        found = json.dumps(content)[:200]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        found = error
    raise SegpipeError(
        problem(
            "no usable splits",
            where=f"params.yaml: splits.file: {path}",
            found=found,
            expected='JSON as in nnU-Net\'s splits_final.json: [{"train": [ids], "val": [ids]}, ...]',
            cure="correct the path or the file, or set splits.file: null",
        )
    )


def _has_form(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(fold, dict)
        and all(isinstance(fold.get(side), list) for side in ("train", "val"))
        and all(isinstance(case, str) for side in ("train", "val") for case in fold[side])
        for fold in content
    )


def _problems(path: Path, folds: list[Fold], cases: list[str], n_folds: int) -> Iterator[str]:
    if len(folds) != n_folds:
        yield problem(
            "another number of folds",
            where=path,
            found=f"{len(folds)} folds",
            expected=f"{n_folds}: splits.n_folds in params.yaml",
            cure=f"set splits.n_folds: {len(folds)}" if len(folds) > 1 else "give at least two folds",
        )
    for number, fold in enumerate(folds):
        listed = Counter(fold["train"] + fold["val"])
        twice = sorted(case for case, times in listed.items() if times > 1)
        empty = [side for side in ("train", "val") if not fold[side]]
        for what, found, expected in (
            ("unknown cases", sorted(set(listed) - set(cases)), "ids of training cases"),
            ("cases listed more than once", twice, "each in train or in val, once"),
            ("nothing to train on or to validate", empty, "cases in both"),
        ):
            if found:
                yield problem(
                    what,
                    where=f"{path}, fold {number}",
                    found=", ".join(found),
                    expected=expected,
                    cure="correct the file",
                )
