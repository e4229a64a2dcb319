"""What a search found: the table of its trials, and params.yaml with the best values."""

import time
from logging import getLogger
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.errors import SegpipeError, problem
from segpipe.params import PARAMS_FILE, Params
from segpipe.params.editing import changed
from segpipe.search import kept, table
from segpipe.search.study import PRESENT, REASON, Search, listed

log = getLogger(__name__)

POLL_S, REMIND_S = 1.0, 60.0


def write(markers: list[Path], params: Params, out: Path) -> Search:
    """Write trials.csv and best_params.yaml of the search that the workers took part in, which is returned.

    markers : the files that the workers left
    out : folder; the studies lie in it as well
    Raises SegpipeError where no trial came to its end, or one is left that nobody works on.
    """
    search = Search(out / digest.read_json(markers[0])["study"], params, None)
    _wait(search, markers)
    best = search.best()
    if best is None:
        raise SegpipeError(_none_finished(search))
    kept.tidy(search)
    table.write(search, out)
    digest.write_text(out / "best_params.yaml", changed(PARAMS_FILE.read_text(), search.values(best), PARAMS_FILE))
    kept.publish(search.folder_of(best.number), out.parent)
    log.info("%s", summary(search, best, params))
    return search


def _wait(search: Search, markers: list[Path]) -> None:
    """Wait for trials that other jobs are still at: of another call, or of one that was killed.

    Raises SegpipeError where a trial is left. Then the workers' files, which say that there is nothing to do, are
    removed: the next call starts workers, and they go on with it.
    """
    reminded = -REMIND_S
    while left := search.left():
        alone = [number for number in left if not search.is_taken(number) and number in search.left()]
        if alone:
            for marker in markers:
                marker.unlink(missing_ok=True)
            found, expected = f"trial {alone[0]}, and no job that trains it", "all trials ended"
            cure = "give the same command again: it goes on with it"
            raise SegpipeError(
                problem("the search is not done", where=search.folder, found=found, expected=expected, cure=cure)
            )
        if time.monotonic() - reminded >= REMIND_S:
            log.info("waiting for %d trials that other jobs train", len(left))
            reminded = time.monotonic()
        time.sleep(POLL_S)


def _none_finished(search: Search) -> str:
    reasons = [one.user_attrs[REASON] for one in search.trials if REASON in one.user_attrs]
    found = f"{len(search.trials)} trials; the first reason:\n{reasons[0]}" if reasons else "no trial"
    expected, cure = "trials that come to their end", "narrow search.ranges, or see to the reason"
    return problem("no trial was finished", where=search.folder, found=found, expected=expected, cure=cure)


def summary(search: Search, best: FrozenTrial, params: Params) -> str:
    """The outcome in a few lines."""
    states = [one.state for one in search.trials]
    counts = ", ".join(
        f"{states.count(state)} {name}"
        for state, name in (
            (TrialState.COMPLETE, "finished"),
            (TrialState.PRUNED, "pruned"),
            (TrialState.FAIL, "failed"),
        )
    )
    lines = [f"{search.folder}: {counts}"]
    lines.append(f"best: trial {best.number}, {_described(search, best, params)}")
    present = next((one for one in search.trials if one.user_attrs.get(PRESENT)), None)
    if present is not None and present.number != best.number:
        lines.append(f"first: trial {present.number}, {_described(search, present, params)}")
    return "\n".join(lines)


def _described(search: Search, one: FrozenTrial, params: Params) -> str:
    value = "nothing" if one.value is None else f"{one.value:.4f}"
    return f"{params.search.measure} {value}: {listed(search.values(one))}"
