"""What every script of the workflow shares: arguments, settings, log file, exit codes.

A script is a verb: `run(function, "--cases", "--out")` parses exactly those arguments, reads params.yaml and calls
`function(args, params)`. Bad input exits with 2 and one readable message; an unexpected error with 1 and a traceback.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segpipe import launched
from segpipe import params as params_module
from segpipe.cli import launch
from segpipe.cli.outcome import exit_codes, start_log
from segpipe.errors import problem, raise_all
from segpipe.params import Params


def run(
    function: Callable[[argparse.Namespace, Params], None],
    *options: str,
    before_ranks: Callable[[argparse.Namespace, Params], Path] | None = None,
) -> None:
    """Run one verb. An option that ends in `+` takes several values, one that ends in `?` may be left out.

    before_ranks : run it in as many processes as `runtime.num_gpus` says; each is told by its environment which it is.
        Before there are several, this refuses what they could not do, and gives the lock of what they write
    """
    launched.begin()
    parser = argparse.ArgumentParser(description=function.__doc__)
    for option in options:
        nargs = "+" if option.endswith("+") else None
        parser.add_argument(option.rstrip("+?"), required=not option.endswith("?"), nargs=nargs)
    parser.add_argument("--log", help="the messages go here as well as to the terminal")
    args = parser.parse_args()
    with exit_codes():
        start_log(args.log)
        params = params_module.load()
        _agree(args, params)
        if before_ranks and params.runtime.num_gpus > 1 and not launched.is_rank():
            runtime = params.runtime
            launch.ranks(sys.argv, runtime.num_gpus, runtime.device, before_ranks(args, params), runtime.threads)
        else:
            function(args, params)


def _agree(args: argparse.Namespace, params: Params) -> None:
    """Refuse arguments that another params.yaml produced: a stale dvc.yaml, say."""
    raise_all(
        "the arguments disagree with params.yaml",
        [
            problem(
                "another argument than params.yaml gives",
                where=f"--{name}",
                found=found,
                expected=expected,
                cure="if DVC made this call: run 'python workflow/scripts/make_dvc_yaml.py'",
            )
            for name, found, expected in [*_wrong_values(vars(args), params), *_wrong_lists(vars(args), params)]
        ],
    )


def _wrong_values(given: dict[str, Any], params: Params) -> Iterator[tuple[str, str, str]]:
    """(option, found, expected) of single values that belong to other settings."""
    if given.get("dataset") not in (None, params.dataset):
        yield "dataset", given["dataset"], params.dataset
    if given.get("configuration") is not None and given["configuration"] not in params.trained:
        yield "configuration", given["configuration"], " or ".join(params.trained)
    if given.get("on_extend") not in (None, params.train.on_extend):
        yield "on-extend", given["on_extend"], params.train.on_extend
    if given.get("of") not in (None, params.predict.models):
        yield "of", given["of"], params.predict.models
    yield from _wrong_learnt(given, params)
    prepared = f"data/preprocessed/{params.dataset_name}/"
    for name in ("cases", "plan", "splits", "manifest", "fingerprint"):
        path = given.get(name)
        if path and not path.startswith(prepared):
            yield name, path, f"a file in {prepared}"


def _wrong_learnt(given: dict[str, Any], params: Params) -> Iterator[tuple[str, str, str]]:
    """What a prediction is given of the cross-validation's results, and what it should be given."""
    asked = {
        "choice": params.predict.models == "best",
        "rules": params.predict.postprocess,
        "calibration": params.predict.calibrated,
    }
    for name, wanted in asked.items():
        if name in given and wanted != (given[name] is not None):
            yield name, given[name] or "nothing", "a file" if wanted else "nothing"


def _wrong_lists(given: dict[str, Any], params: Params) -> Iterator[tuple[str, str, str]]:
    """The same of lists, which dvc.yaml writes out: DVC can change what they come from, but not them."""
    checkpoint = params.validate_.checkpoint
    folds = params.folds if given.get("fold") is None else [given["fold"]]
    lists = {
        "validations": [
            f"results/{name}/fold_{number}/validation_{checkpoint}"
            for name in params.configurations
            for number in folds
        ],
        "validated": [f"results/fold_{number}/segmentations" for number in params.folds],
        "trainings": [f"results/{name}/fold_{number}" for name in params.trained for number in params.folds],
        "summaries": [f"results/fold_{number}/summary.json" for number in params.folds],
        "models": [
            f"results/{name}/fold_{number}/checkpoint_{checkpoint}.pth"
            for name in params.trained
            for number in params.folds
        ],
    }
    for name, expected in lists.items():
        if given.get(name) not in (None, expected):
            yield name, " ".join(given[name]), " ".join(expected)
