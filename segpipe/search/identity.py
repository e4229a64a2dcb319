"""What a search is: the digest of all that decides what its trials are worth."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segpipe import digest, plugins
from segpipe.data import splits
from segpipe.params import Params
from segpipe.params.fields import IMPORT_PATH, texts
from segpipe.search import ranges
from segpipe.search.trial import Data


def of_study(data: Data, params: Params) -> dict[str, Any]:
    """Everything that decides, by its name, and `digest` of all. Not the present values of what is varied: the best
    ones may be put into params.yaml, and the search is still the same.

    Raises SegpipeError where a module that the settings name is absent.
    """
    settings, store = ranges.of_study(params), data.store
    planned = {key: value for key, value in asdict(store.planned).items() if key != "reasons"}
    record = {
        "settings": settings,
        "cases": store.digest,
        "labels": store.cases.labels.to_json(),
        "folds": {name: digest.of(splits.read(data.splits, name)) for name in data.fold_names(params)},
        "planned": digest.of_file(data.fingerprint) if "plan" in settings else digest.of(planned),
        "code": ranges.code_of_study(params),
        "named": _of_named(settings),
    }
    return {"digest": digest.of(record), **record}


def _of_named(settings: dict[str, Any]) -> dict[str, str]:
    """Modules and pretrained weights that settings and choices name, by what is in them."""
    found = {}
    for text in texts(settings):
        if re.match(IMPORT_PATH, text):
            found[text] = plugins.source_digest(text, "search.ranges, or train")
        elif text.endswith(".pth") and Path(text).is_file():
            found[text] = digest.of_file(Path(text))
    return found
