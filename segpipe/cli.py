"""What every script of the workflow shares: arguments, settings, log file, exit codes.

A script is a verb: `cli.run(function, "--cases", "--out")` parses exactly those arguments, reads params.yaml and calls
`function(args, params)`. Bad input exits with 2 and one readable message; an unexpected error with 1 and a traceback.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from segpipe import params as params_module
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params

log = logging.getLogger("segpipe")


def run(function: Callable[[argparse.Namespace, Params], None], *options: str) -> None:
    """Run one verb. An option that ends in `+` takes several values; every option is required but `--log`."""
    parser = argparse.ArgumentParser(description=function.__doc__)
    for option in options:
        parser.add_argument(option.rstrip("+"), required=True, nargs="+" if option.endswith("+") else None)
    parser.add_argument("--log", help="the messages go here as well as to the terminal")
    args = parser.parse_args()
    _start_log(args.log)
    try:
        params = params_module.load()
        _agree(args, params)
        function(args, params)
    except SegpipeError as error:
        log.error("%s", error)
        sys.exit(2)


def _start_log(path: str | None) -> None:
    """Messages go to stderr and, appended, to the log file: a retried job keeps the history of its attempts."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="a"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    if path:
        log.debug("pid %d", os.getpid())


def _agree(args: argparse.Namespace, params: Params) -> None:
    """Refuse arguments that another params.yaml produced: a stale dvc.yaml, say."""
    given = vars(args)
    wrong = []
    if given.get("dataset") not in (None, params.dataset):
        wrong.append(("--dataset", given["dataset"], params.dataset))
    if given.get("configuration") is not None and given["configuration"] not in params.configurations:
        wrong.append(("--configuration", given["configuration"], " or ".join(params.configurations)))
    prepared = f"data/preprocessed/{params.dataset_name}/"
    for name in ("cases", "plan", "splits", "manifest", "fingerprint"):
        path = given.get(name)
        if path and not path.startswith(prepared):
            wrong.append((f"--{name}", path, f"a file in {prepared}"))
    if wrong:
        raise SegpipeError(
            "\n".join(
                problem(
                    "the arguments disagree with params.yaml",
                    where=name,
                    found=found,
                    expected=expected,
                    cure="if DVC made this call: run 'python workflow/scripts/make_dvc_yaml.py'",
                )
                for name, found, expected in wrong
            )
        )
