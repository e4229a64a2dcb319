"""params.yaml: its schema, and how it is read."""

from segpipe.params.editing import changed, put
from segpipe.params.fields import CASCADE, FULLRES, LOWRES, Configuration, Normalisation
from segpipe.params.reading import PARAMS_FILE, load, of_results, parse, problems, section, validated
from segpipe.params.schema import (
    Calibrate,
    Check,
    Choose,
    Download,
    Ensemble,
    Evaluate,
    Overrides,
    Params,
    Phantoms,
    Plan,
    Postprocess,
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
    "Calibrate",
    "Check",
    "Choose",
    "Configuration",
    "Download",
    "Ensemble",
    "Evaluate",
    "Normalisation",
    "Overrides",
    "Params",
    "Phantoms",
    "Plan",
    "Postprocess",
    "Runtime",
    "Splits",
    "Train",
    "Validate",
    "changed",
    "load",
    "of_results",
    "parse",
    "problems",
    "put",
    "section",
    "validated",
]
