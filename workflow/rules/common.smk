# What the rules share: the validated settings, paths, and how a rule names what it depends on.
import os
import shlex
import sys
import typing
from pathlib import Path

import yaml

from segpipe import digest, gpus, plugins
from segpipe import params as params_yaml
from segpipe.data import dataset, download, given_splits, labels, phantoms
from segpipe.errors import SegpipeError, problem
from segpipe.training import check

try:
    PARAMS = params_yaml.load()
    LABELS = (
        labels.parse(phantoms.LABELS, None, phantoms.NAME)
        if PARAMS.dataset_name == phantoms.NAME
        else dataset.labels_of(Path(PARAMS.dataset))
    )
    if LABELS is not None:
        check.check(PARAMS, LABELS)
        PARAMS.evaluate.tolerances_mm(LABELS.foreground)
except SegpipeError as error:
    raise WorkflowError(str(error))


configfile: "params.yaml"


if config != yaml.safe_load(Path("params.yaml").read_text()):
    raise WorkflowError(
        problem(
            "settings from the command line",
            where="--config or --configfile",
            found="values that differ from params.yaml",
            expected="params.yaml alone: it is what the scripts and DVC read",
            cure="edit params.yaml",
        )
    )

# A job per GPU of this machine, unless a profile or `--resources gpu=N` says how many there are. Not where `--jobs` may
# mean a cluster, whose nodes have GPUs of their own; a job on a node is part of a workflow that decided it.
if workflow.is_main_process and workflow.resource_settings.nodes is None:
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", gpus.jobs_at_a_time(PARAMS.runtime.device))

# `python` in a rule is the one that runs Snakemake, also where no environment is activated.
shell.prefix(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; ')

# Relative to the working directory, which `snakemake --directory` may set to any other.
SCRIPTS = os.path.relpath(f"{workflow.current_basedir}/../scripts")

GENERATED = f"data/raw/{phantoms.NAME}"
DATASET = Path(PARAMS.dataset).as_posix()
PREPARED = f"data/preprocessed/{PARAMS.dataset_name}"
CHECKPOINT = PARAMS.validate_.checkpoint
CONFIGURATIONS = typing.get_args(params_yaml.Configuration)


wildcard_constraints:
    configuration="|".join(CONFIGURATIONS),
    fold=r"\d+|all",
    checkpoint="final|best",


def stop(error):
    """End the call before anything runs. What a function of the input raises, Snakemake would wrap in a traceback."""
    logger.error(str(error))
    sys.exit(1)


def settings(*keys):
    """What a step depends on, by its key in params.yaml (`train`, `validate.mirroring`)."""
    return {key: setting(*key.split(".")) for key in keys}


def setting(name, key=None):
    """One section of params.yaml, or one key of it."""
    section = params_yaml.section(PARAMS, name)
    return section if key is None else section[key]


def script(name):
    """Path of a script, for `params`. A function of the input, because Snakemake reruns nothing when such a value
    changes: where the project lies is no setting."""
    return lambda wildcards, input: f"{SCRIPTS}/{name}.py"
