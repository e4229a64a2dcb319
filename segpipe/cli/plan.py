"""`segpipe plan`."""

import argparse
import json
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.cli.settings import load_params
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params
from segpipe.prepare import planning
from segpipe.prepare.sizing import listed

log = getLogger(__name__)


def run(args: argparse.Namespace) -> None:
    """Print the plan of a dataset: the one that was made, else the one that would be."""
    params = load_params(args)
    plan = _plan(args.preprocessed or Path("data/preprocessed", params.dataset_name), params)
    for name, planned in plan["configurations"].items():
        sizes = f"patch {listed(planned['patch_size'])}, batch {planned['batch_size']}"
        print(f"{name}: {planned['architecture']}, spacing {listed(planned['spacing_mm'])} mm, {sizes}")
    if args.explain:
        print(f"\n{planning.explained(plan, list(plan['configurations']))}")


def _plan(folder: Path, params: Params) -> dict[str, Any]:
    """plan.json of the folder; where there is none, what the rules make of the other files there.

    Raises SegpipeError where these are absent as well.
    """
    path, cases, fingerprint = (folder / name for name in ("plan.json", "cases.json", "fingerprint.json"))
    made: dict[str, Any] | None = digest.read_json(path) if path.exists() else None
    new = None
    if cases.exists() and fingerprint.exists():
        new = planning.make(Cases.read(cases, params.dataset), fingerprint, params)
    if made and new and made != json.loads(json.dumps(new)):
        log.warning("%s is another plan than params.yaml asks for now: the next run of snakemake replaces it", path)
    if plan := made or new:
        return plan
    raise SegpipeError(
        problem(
            "nothing to plan from",
            where=folder,
            found="neither plan.json nor both cases.json and fingerprint.json",
            expected="what the pipeline leaves in the folder of a dataset",
            cure=f"run: snakemake --cores all {path}",
        )
    )
