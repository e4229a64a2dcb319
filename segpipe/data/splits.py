"""The folds of the cross-validation: the ones that nnU-Net draws (nnunetv2/utilities/crossval_split.py)."""

from logging import getLogger
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import Splits

log = getLogger(__name__)

Fold = dict[str, list[str]]


def draw(cases: list[str], settings: Splits) -> list[Fold]:
    """Shuffled k-fold over the sorted case ids: one {"train": ids, "val": ids} per fold."""
    ids = np.array(sorted(cases))
    folds = KFold(settings.n_folds, shuffle=True, random_state=settings.seed)
    return [{"train": ids[train].tolist(), "val": ids[val].tolist()} for train, val in folds.split(ids)]


def write(cases: Cases, settings: Splits, out: Path) -> None:
    """Draw the folds and write splits.json in the form of nnU-Net's splits_final.json.

    Raises SegpipeError where there are fewer cases than folds.
    """
    if len(cases.training) < settings.n_folds:
        raise SegpipeError(
            problem(
                "fewer cases than folds",
                where=cases.root,
                found=f"{len(cases.training)} training cases",
                expected=f"at least {settings.n_folds}",
                cure="add cases, or lower splits.n_folds in params.yaml",
            )
        )
    folds = draw(cases.training, settings)
    digest.write_json(out, folds)
    log.info("%d folds of %d cases", len(folds), len(cases.training))


def read(path: Path, fold: str) -> Fold:
    """The cases of one fold; `all` trains and validates on every case.

    Raises SegpipeError for a fold that was not drawn.
    """
    folds: list[Fold] = digest.read_json(path)
    if fold == "all":
        everything = sorted(folds[0]["train"] + folds[0]["val"])
        return {"train": everything, "val": everything}
    if int(fold) >= len(folds):
        raise SegpipeError(
            problem(
                "no such fold",
                where=path,
                found=fold,
                expected=f"0 to {len(folds) - 1}, or all",
                cure="ask for one of these, or raise splits.n_folds in params.yaml",
            )
        )
    return folds[int(fold)]
