"""Write dvc.yaml from the Snakemake rules: the pipeline is defined once, and DVC makes the same calls.

    python workflow/scripts/make_dvc_yaml.py            write dvc.yaml into the working directory
    python workflow/scripts/make_dvc_yaml.py --check    show how dvc.yaml differs from the rules; exit 1 if it does

A rule becomes a stage. Its wildcards, the dataset and the choice of checkpoint become DVC's placeholders, so that
`dvc exp run -S` can set them; lists that one call takes (all folds, all configurations) are written out.
"""

import argparse
import contextlib
import difflib
import io
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from snakemake import utils
from snakemake.api import OutputSettings, ResourceSettings, SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.iocontainers import Wildcards
from snakemake.settings.enums import Quietness

from segpipe import params as params_yaml
from segpipe.data import phantoms
from segpipe.deciding import DECIDING_MODULES
from segpipe.params import Params

SNAKEFILE = Path(__file__).resolve().parents[2] / "Snakefile"
TARGET = Path("dvc.yaml")
HEADER = "# Generated from the Snakemake rules by workflow/scripts/make_dvc_yaml.py; do not edit.\n"
PLACEHOLDERS = {
    "configuration": "${item.configuration}",
    "fold": "${item.fold}",
    "checkpoint": "${validate.checkpoint}",
}
# A download: DVC would remove the dataset before it, and cache it once more. A search: several jobs work on one study
# for days, DVC runs one stage at a time and locks what it reads.
NO_STAGES = ("download", "search_worker", "search")
METRICS = "results/metrics.json"
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "dice_mean": "validation Dice while training"}


def main() -> None:
    """Write dvc.yaml, or compare it with the rules."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    arguments = parser.parse_args()
    text = dvc_yaml()
    if arguments.check:
        sys.exit(differs(text))
    TARGET.write_text(text)


def differs(text: str) -> bool:
    """Print the difference between dvc.yaml and what it should be, if there is one."""
    old = TARGET.read_text() if TARGET.exists() else ""
    lines = difflib.unified_diff(old.splitlines(), text.splitlines(), str(TARGET), "from the rules", lineterm="")
    print("\n".join(lines), end="")
    return old != text


def dvc_yaml() -> str:
    """The whole file."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        try:
            rules = read_rules(api)
        except WorkflowError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    params = params_yaml.load()
    content = {"stages": {rule.name: stage(rule, params) for rule in rules}, "plots": plots(params)}
    return HEADER + yaml.safe_dump(content, sort_keys=False, width=1000)


def read_rules(api: SnakemakeApi) -> list[Any]:
    """The rules that run a command, in the order of the Snakefile."""
    workflow = api.workflow(ResourceSettings(cores=1), snakefile=SNAKEFILE)
    with contextlib.redirect_stdout(io.StringIO()):
        workflow.list_rules()  # parses the Snakefile
    # Snakemake offers no public way to a rule; the comparison with the committed dvc.yaml notices if this one changes
    return [rule for rule in workflow._workflow.rules if rule.shellcmd and rule.name not in NO_STAGES]


def stage(rule: Any, params: Params) -> dict[str, Any]:
    """One rule as a stage."""
    wildcards = {name: PLACEHOLDERS[name] for name in rule.wildcard_names}
    inputs, outputs = rule.expand_input(wildcards)[0], rule.expand_output(wildcards)[0]
    values = rule.expand_params(wildcards, inputs, outputs, None)[0]
    files = {"input": inputs, "output": outputs, "log": rule.expand_log(wildcards)}
    command = utils.format(rule.shellcmd, **files, params=values, wildcards=Wildcards(fromdict=wildcards))
    reads, writes = [str(path) for path in inputs], [str(path) for path in outputs]
    return without_empty(
        matrix={name: values for name, values in matrix(rule, params).items() if name in wildcards},
        # the code of the commit that DVC has checked out: a queued experiment has its own, in a folder of its own
        cmd=f"PYTHONPATH=.:$PYTHONPATH {general(command, reads, params)}",
        deps=dependencies(rule, reads, params),
        params=list(values.get("cfg", {})),
        outs=[out(path, rule, params) for path in folded(writes) if path != METRICS],
        # cached as other results are: git ignores results/
        metrics=[path for path in writes if path == METRICS],
    )


def matrix(rule: Any, params: Params) -> dict[str, Any]:
    """What a stage is repeated over, written out: were it `${folds}`, another list would make DVC remove or begin
    trainings before a later stage, whose call has its own list, could refuse it.

    Of a cascade the first stage is trained as well, in all folds, and it is preprocessed by a stage of its own.
    """
    cascade = [name for name in params.configurations if "cascade" in name]
    if not cascade or "configuration" not in rule.wildcard_names:
        return {"configuration": list(params.configurations), "fold": list(params.folds)}
    alone = [name for name in params.trained if rule.name != "preprocess" or name not in cascade]
    return {"configuration": alone, "fold": list(range(params.splits.n_folds))}


def out(path: str, rule: Any, params: Params) -> str | dict[str, dict[str, bool]]:
    """An output of a stage. A continued training follows from what was trained before, not from its inputs alone.

    So its result must not come back where the same settings are met again: an output that persists keeps a stage out
    of DVC's run cache (dvc/stage/cache.py, `_can_hash`). dvc.lock and `dvc checkout` hold it as any other.
    """
    continues = rule.name == "train" and params.train.on_extend == "continue"
    return {path: {"persist": True}} if continues else path


def without_empty(**entries: Any) -> dict[str, Any]:
    """The entries that say something."""
    return {name: value for name, value in entries.items() if value}


def is_in(path: str, folder: str) -> bool:
    """Whether a file lies in a folder."""
    return Path(path).is_relative_to(folder)


def dependencies(rule: Any, reads: list[str], params: Params) -> list[str]:
    """What the rule reads, the raw dataset as one folder, and the modules that decide its result."""
    files = ["${dataset}" if is_in(path, params.dataset) else general(path, reads, params) for path in reads]
    return [*dict.fromkeys(files), *(f"segpipe/{module}" for module in DECIDING_MODULES[rule.name])]


def folded(outputs: list[str]) -> list[str]:
    """The outputs, the generated dataset as one folder. Never `${dataset}`: DVC empties a stage's outputs."""
    generated = f"data/raw/{phantoms.NAME}"
    return list(dict.fromkeys(generated if is_in(path, generated) else path for path in outputs))


def general(text: str, reads: list[str], params: Params) -> str:
    """Put placeholders where a text names the chosen checkpoint or, in a rule that reads it, the raw dataset."""
    chosen = rf"(validation|checkpoint)_{params.validate_.checkpoint}\b"
    text = re.sub(chosen, rf"\1_{PLACEHOLDERS['checkpoint']}", text)
    return text.replace(params.dataset, "${dataset}") if any(is_in(path, params.dataset) for path in reads) else text


def plots(params: Params) -> list[dict[str, Any]]:
    """The learning curves of all trainings, one plot for each column; the Dice of each class as bars."""
    trainings = product(params.trained, params.folds)
    files = [f"results/{configuration}/fold_{fold}/metrics.csv" for configuration, fold in trainings]
    curves = {title: {"x": "epoch", "y": dict.fromkeys(files, column)} for column, title in CURVES.items()}
    bars = {"template": "bar_horizontal", "x": "Dice", "y": {METRICS: "class"}}
    return [{title: plot} for title, plot in {**curves, "Dice of each class": bars}.items()]


if __name__ == "__main__":
    main()
