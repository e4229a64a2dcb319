"""What a search found: the table of its trials, and params.yaml with the best values."""

import csv
import io
import json
import time
from logging import getLogger
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.errors import SegpipeError, problem
from segpipe.params import PARAMS_FILE, Params
from segpipe.params.editing import changed
from segpipe.search import kept, plots
from segpipe.search.study import PRESENT, REASON, Search, listed

log = getLogger(__name__)

POLL_S, REMIND_S = 1.0, 60.0


def write(markers: list[Path], params: Params, out: Path) -> None:
    """Write trials.csv, plots and best_params.yaml of the search that the workers took part in.

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
    digest.write_text(out / "trials.csv", table(search))
    plots.draw(search, out)
    digest.write_text(out / "best_params.yaml", changed(PARAMS_FILE.read_text(), search.values(best), PARAMS_FILE))
    kept.publish(search.folder_of(best.number), out.parent)
    log.info("%s", summary(search, best, params))


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


def table(search: Search) -> str:
    """A line per trial: what it was, what came of it. An empty field where there is nothing to say."""
    text = io.StringIO()
    columns = ["number", "state", "value", "epochs", *search.ranges, "digests", "reason"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for one in search.trials:
        if one.state != TrialState.WAITING:
            values = {key: _cell(value) for key, value in search.values(one).items()}
            writer.writerow({**_facts(search, one), **values})
    return text.getvalue()


def _facts(search: Search, one: FrozenTrial) -> dict[str, Any]:
    states = sorted(search.folder_of(one.number).glob("*/fold_*/state/*/"))
    return {
        "number": one.number,
        "state": one.state.name.lower(),
        "value": "" if one.value is None else f"{one.value:.6g}",
        "epochs": len(one.intermediate_values),
        "digests": " ".join(state.name for state in states),
        "reason": " ".join(one.user_attrs.get(REASON, "").split()),
    }


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) or value is None else value


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
