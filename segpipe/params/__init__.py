"""params.yaml: its schema, and how it is read."""

from segpipe.params.fields import Configuration
from segpipe.params.reading import PARAMS_FILE, load, section
from segpipe.params.schema import Check, Overrides, Params, Phantoms, Plan, Runtime, Splits, Validate
from segpipe.params.train import Train

__all__ = [
    "PARAMS_FILE",
    "Check",
    "Configuration",
    "Overrides",
    "Params",
    "Phantoms",
    "Plan",
    "Runtime",
    "Splits",
    "Train",
    "Validate",
    "load",
    "section",
]
