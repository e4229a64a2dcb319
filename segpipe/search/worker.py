"""A job of a search: takes a trial, trains it, says what came of it, takes the next, until all are begun."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Formatter, getLogger
from pathlib import Path

import optuna
import torch

from segpipe import digest
from segpipe.errors import SegpipeError
from segpipe.params import Params
from segpipe.search import identity, kept, table, trial
from segpipe.search.study import RECORD, Search, Taken, listed
from segpipe.search.trial import Data
from segpipe.training.failures import TrainingFailed
from segpipe.training.setup import Scorer

log = getLogger(__name__)


def work(data: Data, params: Params, marker: Path, whole_cases: Scorer) -> None:
    """Take part in the search that params.yaml asks for; write `marker` where all its trials are begun.

    The study lies beside the marker, in a folder called by its digest, with the table of its trials as it goes on.
    Raises SegpipeError for bad input; Interrupted after SIGTERM or SIGUSR1, when the trial's state is saved.
    """
    record = identity.of_study(data, params)
    folder = marker.parent / record["digest"]
    epochs = data.epochs(params, data.store) * len(params.search.folds)
    search = Search(folder, params, epochs)
    if not (folder / RECORD).exists():
        digest.write_json(folder / RECORD, record)
    table.write(search, search.folder)  # by its date, the study that was worked on last
    while (taken := search.take()) is not None:
        with taken.lock, _prefixed(f"trial {taken.number}"):
            try:
                _try(search, taken, data, params, whole_cases)
                kept.tidy(search)
            finally:  # also of the trial that this job fails with
                table.write(search, search.folder)
    log.info("search %s: all of %d trials are begun or ended", folder, search.wanted)
    digest.write_json(marker, {"study": record["digest"], "trials": search.wanted})


def _try(search: Search, taken: Taken, data: Data, params: Params, whole_cases: Scorer) -> None:
    """Train one trial and tell the study. A job that is killed here has told nothing: another one goes on."""
    log.info("of %d: %s", search.wanted, listed(taken.values))
    try:
        value = trial.train(taken, data, params, whole_cases)
    except optuna.TrialPruned:
        search.prune(taken)
        log.info("pruned, other trials were better by this epoch")
    except TrainingFailed as error:
        search.fail(taken, str(error))
        log.warning("failed, the search goes on\n%s", error)
    except SegpipeError:  # not of this trial's making: the same happens to the others
        raise
    except Exception as error:
        search.crash(taken, f"{type(error).__name__}: {error}")
        raise
    else:
        search.finish(taken, value)
        log.info("%s %.4f", params.search.measure, value)
    finally:
        _free_memory()


@contextmanager
def _prefixed(prefix: str) -> Iterator[None]:
    """Put a prefix before all messages: of workers in one terminal, an epoch says whose it is. Not in train.log, which
    is opened later.
    """
    before = [(handler, handler.formatter) for handler in getLogger().handlers]
    for handler, _ in before:
        handler.setFormatter(Formatter(f"{prefix}: %(message)s"))
    try:
        yield
    finally:
        for handler, formatter in before:
            handler.setFormatter(formatter)


def _free_memory() -> None:
    """The next trial's network may be larger. And torch compiles a function a few times only, whoever compiles it."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
