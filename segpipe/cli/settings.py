"""The settings of a verb: params.yaml of the working directory, or of the project that segpipe was installed from."""

import argparse
from logging import getLogger

from segpipe import params
from segpipe.digest import PACKAGE
from segpipe.params import PARAMS_FILE, Params

log = getLogger(__name__)


def load_params(args: argparse.Namespace) -> Params:
    """What `--params` names; else params.yaml here; else, with a message, the one of the project.

    Raises SegpipeError for settings that are absent or wrong.
    """
    installed_from = PACKAGE.parent / PARAMS_FILE
    if args.params is None and not PARAMS_FILE.exists() and installed_from.exists():
        log.info("no params.yaml here: taking %s", installed_from)
        return params.load(installed_from)
    return params.load(args.params or PARAMS_FILE)
