"""plan.json: by the rules or from a file, and in words."""

from collections.abc import Iterable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import problem, raise_all
from segpipe.params import LOWRES, Params
from segpipe.prepare import plan_file
from segpipe.prepare.planner import Dataset, plan_dataset

log = getLogger(__name__)


def write(cases: Cases, fingerprint: Path, params: Params, out: Path) -> None:
    """Plan every configuration and write plan.json.

    Raises SegpipeError where params.yaml asks for a configuration that the plan does not offer.
    """
    plan = make(cases, fingerprint, params)
    raise_all(
        "params.yaml", [_missing(name, plan) for name in params.configurations if name not in plan["configurations"]]
    )
    digest.write_json(out, plan)
    log.info("%s", explained(plan, params.configurations))


def make(cases: Cases, fingerprint: Path, params: Params) -> dict[str, Any]:
    """The content of plan.json: the file that params.yaml names, or what the rules make of the fingerprint."""
    if params.plan.file is not None:
        return plan_file.read(Path(params.plan.file), cases.channel_names)
    statistics = digest.read_json(fingerprint)
    return plan_dataset(Dataset.of(cases, statistics), params.plan) | {"intensities": statistics["channels"]}


def _missing(name: str, plan: Mapping[str, Any]) -> str:
    """The problem of a configuration that is asked for and not planned; how to get it, where there is a way."""
    offered = plan["configurations"]
    cure = "ask for one of these"
    if "3d_fullres" in offered and LOWRES not in offered:
        coarser = ", ".join(f"{2 * edge:.4g}" for edge in offered["3d_fullres"]["spacing_mm"])
        cure += f", or plan {LOWRES} all the same: plan.overrides.spacing_mm: {{{LOWRES}: [{coarser}]}}"
    why = plan["not_planned"].get(name)
    return problem(
        "the plan does not offer a configuration",
        where="params.yaml: configurations",
        found=f"{name} ({why})" if why else name,
        expected=", ".join(offered),
        cure=cure,
    )


def explained(plan: Mapping[str, Any], names: Iterable[str]) -> str:
    """The reasons for the plan and for the named configurations; then what is not planned and why."""
    parts = {"plan": plan["reasons"], **{name: plan["configurations"][name]["reasons"] for name in names}}
    if plan["not_planned"]:
        parts["not planned"] = [f"{name}: {why}" for name, why in plan["not_planned"].items()]
    return "\n".join(f"{title}\n  " + "\n  ".join(lines) for title, lines in parts.items())
