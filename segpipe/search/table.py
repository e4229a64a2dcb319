"""The table of a search's trials: as it goes on beside the journal, in the end in results/search/."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from segpipe import digest
from segpipe.search import locks
from segpipe.search.study import REASON, Search

FILE = "trials.csv"


def write(search: Search, out: Path) -> None:
    """Write trials.csv, as the trials are now, into a folder. Of several jobs the last one has the latest."""
    with locks.held(search.folder / ".lock"):
        digest.write_text(out / FILE, of(search))


def of(search: Search) -> str:
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
