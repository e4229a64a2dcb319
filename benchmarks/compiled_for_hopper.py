"""Whether segpipe's training step compiles for an H200, and what it becomes there: without a GPU.

    python benchmarks/compiled_for_hopper.py [--cases a,b,...] [--no-assembly]

In a Python with torch built for CUDA 13, Triton with it, and a C++ compiler. The steps are those of the training loop,
of the plans of training_speed.py, on tensors without numbers, for a device that is pretended (pretended_hopper.py).
Nothing is run and nothing timed: the milliseconds are a floor, computed from bytes and operations.

Prints tables, keeps `results/compiled_for_hopper.json`. The exit code is 1 where a graph breaks, is compiled again in
the second step or cannot be replayed, a layout is not what the code expects, or a kernel cannot be assembled.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compiled_kernels  # before torch
import measuring
import numpy as np
import torch
from compiled_kernels import SEEN, Written
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from training_plans import PLANS, Plan, settings_of

from segpipe import digest, params
from segpipe.data import labels
from segpipe.prepare.plan import Configuration
from segpipe.prepare.planner import Dataset, plan_dataset
from segpipe.ranks import ALONE
from segpipe.training import loop
from segpipe.training.feed import Batch
from segpipe.training.loop import Training
from segpipe.training.network import create
from segpipe.training.setup import Setup

RESULTS = Path(__file__).with_name("results") / "compiled_for_hopper.json"
CASES = {
    "a": ("a", {}),
    "a, graphs": ("a", {"compile": "graphs"}),
    "b": ("b", {}),
    "b, channels last": ("b", {"channels_last": True}),
    "c": ("c", {}),
    "d, channels last": ("d", {"channels_last": True}),
}
LABELS = labels.parse({"background": 0, "outer": 1, "inner": 2}, None, "the benchmark")
BYTES_PER_S, FLOPS = 4.8e12, 790e12  # an H200's memory by its datasheet; its dense bf16, as reached


class Cases(SimpleNamespace):
    def annotated(self, case: str) -> None:
        return None


class Unfed(Setup):
    """A training without cases."""

    def _feed(self) -> Any:
        return SimpleNamespace(store=self.store, held=SimpleNamespace(choice=SimpleNamespace(tier="device")))


def training(plan: Plan, runtime: dict[str, Any]) -> tuple[Training, Batch]:
    """The training of a plan, and a batch; to be called under a FakeTensorMode."""
    raw = settings_of(plan, "dataset", "cuda", 1)
    raw["runtime"] |= runtime
    settings = params.Params.model_validate(raw)
    dataset = Dataset(np.array([plan.spacing_mm] * 5), np.array([plan.case_shape] * 5, float), 1.0, 3, ["MRI"])
    planned = Configuration(**plan_dataset(dataset, settings.plan)["configurations"][plan.configuration])
    store: Any = SimpleNamespace(planned=planned, cases=Cases(labels=LABELS, channel_names=["MRI"]))
    with torch.device("cuda:0"):
        network = create(1, len(LABELS.heads), planned, None)
        n, patch = planned.batch_size, planned.patch_size
        batch = Batch(torch.empty(n, 1, *patch), torch.zeros(n, *patch, dtype=torch.int64), None, [])
    fold: Any = {"train": ["case"] * 4, "val": ["other"]}
    dtype = torch.bfloat16
    setup = Unfed(store, fold, settings, torch.device("cuda:0"), dtype, network, {}, {}, ALONE)
    return setup.training(None, lambda: None), batch


def written(plan: Plan) -> dict[str, Any]:
    """A step that is not compiled."""
    with FakeTensorMode():
        one, batch = training(plan, {"compile": "never"})
        loop.train_step(one, 0, [batch])
        with Written() as found:
            loop.train_step(one, 1, [batch])
    return {"operators": sum(found.calls.values()), "gb": sum(found.bytes.values()) / 1e9}


def compiled(plan: Plan, runtime: dict[str, Any]) -> dict[str, Any]:
    """A step that is: compiled in the first, and no more in the second."""
    torch._dynamo.reset()
    counters.clear()
    SEEN.begin()
    with FakeTensorMode():
        one, batch = training(plan, {"compile": "fused", **runtime})
        assert one.execution.compiled != "never"
        loop.train_step(one, 0, [batch])
        graphs = list(SEEN.graphs)
        SEEN.count()
        loop.train_step(one, 1, [batch])
        n_parameters = sum(parameter.numel() for parameter in one.network.parameters())
    rest = n_parameters * 4 * 8  # norm of the gradient, clipping, SGD with momentum
    conversions = 0 if one.execution.channels_last else 2
    floor = sum(max((1 + conversions) * n / BYTES_PER_S, flops / FLOPS) for n, flops in SEEN.convolutions)
    return {
        "graphs": graphs,
        "breaks": dict(counters["graph_break"]),
        "compiled_again": len(SEEN.graphs) - len(graphs),
        "launches": SEEN.launches,
        "convolutions": len(SEEN.convolutions),
        "gb": SEEN.bytes / 1e9,
        "convolutions_gb": sum(n for n, _ in SEEN.convolutions) / 1e9,
        "tflop": sum(flops for _, flops in SEEN.convolutions) / 1e12,
        "layouts_moved": SEEN.moved,
        "wrong": SEEN.wrong,
        "estimated_floor_ms": 1e3 * (floor + (SEEN.bytes + rest) / BYTES_PER_S),
    }


def failures(row: dict[str, Any]) -> list[str]:
    refused = [graph for graph in row["graphs"] if graph["refused"] and graph["cuda_graph"]]
    found = {
        "graph breaks": row["breaks"],
        "compiled again": row["compiled_again"],
        "refused for CUDA graphs": refused,
        "unexpected layouts": row["wrong"],
        "not assembled": row.get("assembled", {}).get("failed"),
    }
    return [f"{what}: {value}" for what, value in found.items() if value]


def report(content: dict[str, Any]) -> str:
    """Two tables: what a step becomes, and its machine code."""
    cases = content["cases"].items()
    header = ["case", "graphs", "operators as written", "kernels + convolutions", "GB as written", "GB of kernels"]
    header += ["GB of convolutions", "TFLOP", "floor, ms (estimate)"]
    rows = []
    for name, row in cases:
        eager = content["written"][name.split(",")[0]]
        numbers = [eager["gb"], row["gb"], row["convolutions_gb"], row["tflop"], row["estimated_floor_ms"]]
        counts = [len(row["graphs"]), eager["operators"], f"{row['launches']} + {row['convolutions']}"]
        rows.append([name, *map(str, counts), *(f"{number:.1f}" for number in numbers)])
    codes = [[name, *map(str, row["assembled"].values())] for name, row in cases if "assembled" in row]
    titles = "\n".join(f"{key}: {plan.described}" for key, plan in PLANS.items())
    columns = ["case", "kernels", "machine codes", "failed", "most registers", "most shared bytes", "spilling"]
    return "\n\n".join([titles, measuring.table(header, rows), measuring.table(columns, codes)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", help=f"separated by semicolons; default: {'; '.join(CASES)}")
    parser.add_argument("--no-assembly", action="store_true", help="leave out Triton and ptxas, half of the time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = [name.strip() for name in args.cases.split(";")] if args.cases else list(CASES)
    compiled_kernels.watch()
    content: dict[str, Any] = {"versions": measuring.versions("segpipe", "torch", "triton"), "written": {}, "cases": {}}
    for name in names:
        key, runtime = CASES[name]
        print(f"{name} ...", file=sys.stderr, flush=True)
        if key not in content["written"]:
            content["written"][key] = written(PLANS[key])
        content["cases"][name] = compiled(PLANS[key], runtime)
        if not args.no_assembly:
            content["cases"][name]["assembled"] = compiled_kernels.assembled(SEEN.kernels)
        digest.write_json(args.out, content)
    print(report(content))
    wrong = [f"{name}: {text}" for name, row in content["cases"].items() for text in failures(row)]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
