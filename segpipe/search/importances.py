"""Which settings mattered: how much of the differences between the finished trials each one explains."""

from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState

from segpipe.search.study import Search

FEWEST = 4  # finished trials that importances follow from


def of(search: Search) -> dict[str, float]:
    """The share of each setting by its key, the largest first (fANOVA: Hutter et al. 2014); their sum is 1.

    Nothing where the trials do not tell: fewer than `FEWEST` have finished, or all with one value.
    """
    finished = [one for one in search.trials if one.state == TrialState.COMPLETE]
    if len(finished) < FEWEST or len({one.value for one in finished}) == 1:
        return {}
    found = FanovaImportanceEvaluator(seed=0).evaluate(search.study)
    total = sum(found.values())
    return {key: value / total for key, value in found.items()} if total else {}
