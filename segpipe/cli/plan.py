"""`segpipe plan`."""

import argparse
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.cli.settings import add_params, load_params
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError, problem
from segpipe.params import Params
from segpipe.prepare import planning
from segpipe.prepare.sizing import listed


def add(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("--explain", action="store_true", help="print the reason for each decision")
    parser.add_argument(
        "--preprocessed",
        type=Path,
        metavar="FOLDER",
        help="with plan.json, or with cases.json and fingerprint.json; default: data/preprocessed/<dataset>",
    )
    add_params(parser)


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
    """plan.json of the folder; where there is none, what the rules make of the other files there."""
    path, cases, fingerprint = (folder / name for name in ("plan.json", "cases.json", "fingerprint.json"))
    if path.exists():
        plan: dict[str, Any] = digest.read_json(path)
        return plan
    if cases.exists() and fingerprint.exists():
        return planning.make(Cases.read(cases, params.dataset), fingerprint, params)
    raise SegpipeError(
        problem(
            "nothing to plan from",
            where=folder,
            found="neither plan.json nor both cases.json and fingerprint.json",
            expected="what the pipeline leaves in the folder of a dataset",
            cure=f"run: snakemake --cores all {path}",
        )
    )
