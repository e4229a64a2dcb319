"""params.yaml: its schema, and how it is read."""

from segpipe.params.fields import CASCADE, FULLRES, LOWRES, Configuration, Normalisation
from segpipe.params.reading import PARAMS_FILE, load, section
from segpipe.params.schema import (
    Check,
    Download,
    Evaluate,
    Overrides,
    Params,
    Phantoms,
    Plan,
    Runtime,
    Splits,
    Validate,
)
from segpipe.params.train import Train

__all__ = [
    "CASCADE",
    "FULLRES",
    "LOWRES",
    "PARAMS_FILE",
    "Check",
    "Configuration",
    "Download",
    "Evaluate",
    "Normalisation",
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
