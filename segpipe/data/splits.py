"""The folds of the cross-validation: nnU-Net's draw, groups and strata from cases.tsv, a site held out, or given ones.

nnU-Net's is that of nnunetv2/utilities/crossval_split.py.
"""

from collections import Counter
from logging import getLogger
from pathlib import Path

import numpy as np

from segpipe import digest
from segpipe.data import given_splits
from segpipe.data.cases import Cases
from segpipe.data.columns import Column, column
from segpipe.data.given_splits import Fold
from segpipe.errors import SegpipeError, problem
from segpipe.params import Splits

log = getLogger(__name__)

SIDES = ("train", "val")


def write(cases: Cases, settings: Splits, out: Path) -> None:
    """Draw or read the folds and write splits.json in the form of nnU-Net's splits_final.json.

    A fold of given splits may leave cases out; they stand there as `neither`.
    Raises SegpipeError where the cases or cases.tsv do not suffice, given splits do not fit the cases, or the cases of
    one group (of one patient) would be on both sides of a fold.
    """
    groups = column(cases, settings.group, required=False)
    strata, held_out = (column(cases, name) for name in (settings.stratify, settings.hold_out))
    if settings.file:
        folds = given_splits.read(Path(settings.file), cases.training, settings.n_folds)
    elif held_out:
        folds = hold_out(held_out, settings, cases.root)
    else:
        folds = draw(cases.training, settings, groups, strata, cases.root)
    for fold in folds:
        assert not set(fold["train"]) & set(fold["val"])
    _require_whole_groups(folds, groups, settings)
    digest.write_json(out, folds)
    for number, fold in enumerate(folds):
        log.info("fold %d: %s", number, _described(fold, groups, strata or held_out, settings))


def draw(
    cases: list[str],
    settings: Splits,
    groups: Column | None = None,
    strata: Column | None = None,
    where: object = "the dataset",
) -> list[Fold]:
    """One {"train": ids, "val": ids} per fold: shuffled k-fold over the sorted case ids, as nnU-Net draws it.

    groups : cases of one group stay together: the k-fold is over the sorted groups
    strata : each fold gets its share of each stratum (scikit-learn's StratifiedKFold and StratifiedGroupKFold)
    Raises SegpipeError where there are fewer cases or groups than folds, or no stratum has a case for each fold.
    """
    ids = np.array(sorted(cases))
    kind = settings.group if groups else "case"
    of_case = np.array([groups[case] if groups else case for case in ids.tolist()])
    _require_enough(len(set(of_case)), f"{kind}s", settings.n_folds, where)
    if strata is None:
        units = np.unique(of_case)
        # scikit-learn's KFold, whose import takes more than a second
        order = np.random.RandomState(settings.seed).permutation(len(units))
        sides = [np.isin(of_case, units[part]) for part in np.array_split(order, settings.n_folds)]
    else:
        from sklearn import model_selection  # noqa: PLC0415  # more than a second that few datasets need

        how = {"n_splits": settings.n_folds, "shuffle": True, "random_state": settings.seed}
        labels = [strata[case] for case in ids.tolist()]
        largest = max(Counter(labels).values())
        _require_enough(largest, f"cases of the largest {settings.stratify}", settings.n_folds, where)
        folds = model_selection.StratifiedGroupKFold(**how) if groups else model_selection.StratifiedKFold(**how)
        sides = [np.isin(np.arange(len(ids)), val) for _, val in folds.split(ids, labels, of_case if groups else None)]
    for number, side in enumerate(sides):
        _require_enough(int(side.sum()), f"cases that fold {number} validates", 1, where)
    return [{"train": ids[~side].tolist(), "val": ids[side].tolist()} for side in sides]


def hold_out(values: Column, settings: Splits, where: object) -> list[Fold]:
    """Fold k validates the cases with the k-th of the sorted values and trains on all others.

    Raises SegpipeError where the number of values is not the number of folds.
    """
    sites = sorted(set(values.values()))
    if len(sites) != settings.n_folds:
        raise SegpipeError(
            problem(
                "one fold per value to hold out",
                where=f"params.yaml: splits.n_folds, with splits.hold_out: {settings.hold_out}",
                found=settings.n_folds,
                expected=f"{len(sites)}: {', '.join(sites)}",
                cure=f"set splits.n_folds: {len(sites)}" if len(sites) > 1 else "name a column with several values",
            )
        )
    folds = []
    for site in sites:
        val = sorted(case for case, value in values.items() if value == site)
        folds.append({"train": sorted(values.keys() - set(val)), "val": val})
    return folds


def _require_enough(found: int, what: str, least: int, where: object) -> None:
    if found < least:
        raise SegpipeError(
            problem(
                f"fewer {what} than folds" if least > 1 else "a fold validates nothing",
                where=where,
                found=f"{found} {what}",
                expected=f"at least {least}",
                cure="add cases, or lower splits.n_folds in params.yaml",
            )
        )


def _require_whole_groups(folds: list[Fold], groups: Column | None, settings: Splits) -> None:
    for number, fold in enumerate(folds if groups else []):
        assert groups is not None
        train, val = ({groups[case] for case in fold[side]} for side in SIDES)
        if train & val:
            raise SegpipeError(
                problem(
                    f"a {settings.group} on both sides of a fold",
                    where=f"fold {number} of {settings.file or f'splits.hold_out: {settings.hold_out}'}",
                    found=", ".join(sorted(train & val)),
                    expected=f"all cases of a {settings.group} in training, or all in validation",
                    cure="correct the folds, or set splits.group: null in params.yaml if this is meant",
                )
            )


def _described(fold: Fold, groups: Column | None, strata: Column | None, settings: Splits) -> str:
    """`trains on 22 cases (11 patients), validates 6 cases (3 patients); no patient in both`."""
    sides = {}
    for side in SIDES:
        facts = [f"{len({groups[case] for case in fold[side]})} {settings.group}s"] if groups else []
        counts = Counter(strata[case] for case in fold[side]) if strata else {}
        facts += [f"{value}: {count}" for value, count in sorted(counts.items())]
        sides[side] = f"{len(fold[side])} cases" + (f" ({', '.join(facts)})" if facts else "")
    left_out = f", leaves {len(fold['neither'])} out" if "neither" in fold else ""
    kind = settings.group if groups else "case"
    return f"trains on {sides['train']}, validates {sides['val']}{left_out}; no {kind} in both"


def read(path: Path, fold: str) -> Fold:
    """The cases of one fold; `all` trains and validates on every case, whether a fold uses it or not.

    Raises SegpipeError for a fold that was not drawn.
    """
    folds: list[Fold] = digest.read_json(path)
    if fold == "all":
        everything = sorted(case for cases in folds[0].values() for case in cases)
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
    return {side: folds[int(fold)][side] for side in SIDES}
