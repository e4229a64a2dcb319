"""The ranks beside the first one: they train with it, and leave files and messages to it."""

import torch

from segpipe.training import checkpoint, divergence, failures, interrupt, loop, model
from segpipe.training.setup import Scorer, Setup


def follow(setup: Setup, whole_cases: Scorer | None) -> None:
    """Train with the first rank to the end, from the checkpoint that it goes on from.

    Raises SegpipeError where this rank's device is too small, Interrupted when any rank was asked to end and the first
    one has saved the state.
    """
    ranks = setup.ranks
    with interrupt.noted() as requests:

        def between() -> None:
            if number := ranks.highest(requests.number or 0):
                ranks.meet()
                raise interrupt.Interrupted(number)

        try:
            training = setup.training(whole_cases, between)
            if path := ranks.same(None):
                model.restore(training, checkpoint.load(path))
            loop.fit(training, between, lambda row, seconds_per_step: None)
        except torch.OutOfMemoryError as error:
            raise failures.out_of_memory(error, setup.store.planned) from error
        except divergence.Diverged:
            ranks.meet()  # where the first one never comes: it says what happened, and ends
