"""Dice of whole validation cases while a network trains: predicted and exported as a validation does, never written.

The training takes `scorer`'s function as an argument, because its room comes before this one.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from segpipe.evaluation import summary
from segpipe.evaluation.overlap import case_overlap
from segpipe.inference import predict
from segpipe.inference.predict import Model
from segpipe.params.train import FullValidation
from segpipe.prepare.store import Store
from segpipe.ranks import ALONE, Ranks

Scores = dict[str, float | None]


def scorer(
    store: Store,
    cases: list[str],
    settings: FullValidation,
    mirror_axes: list[int] | None,
    dtype: torch.dtype,
    on_case: Callable[[], None],
    ranks: Ranks = ALONE,
) -> Callable[[nn.Module], Scores]:
    """A function that scores a network, on the device that it is on, and gives it back as it was.

    mirror_axes : train.mirror_axes, used where settings.mirroring is set
    dtype : of the convolutions; float32 is no autocast
    on_case : called before each case; what it raises ends the scoring
    ranks : who take turns at the cases; each gets the scores of all
    The function returns `case_dice_mean`, the mean over the foreground classes, and `case_dice_<class>`, the mean over
    the cases in which the class has a Dice; None where there is none.
    """
    labels = store.cases.labels

    def score(network: nn.Module) -> Scores:
        on = next(network.parameters()).device
        rows = []
        with _evaluating(network):
            for case in ranks.turns(cases):
                on_case()
                if case is None:
                    continue
                model = Model([network], labels, store.planned, mirror_axes, on, dtype)
                predicted = predict.segment(model, store.read(case), settings)
                reference, annotated = store.cases.read_label(case), store.cases.annotated(case)
                overlap = case_overlap(predicted, reference, labels, annotated)
                rows.append(summary.case_row(overlap, case, case))
        tables = summary.tables(ranks.collected(rows))
        by_class = {f"case_dice_{name}": tables["mean"][labels.key(name)]["Dice"] for name in labels.foreground}
        return {"case_dice_mean": tables["foreground_mean"]["Dice"], **by_class}

    return score


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
