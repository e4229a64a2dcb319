"""What training_speed.py found: ratios, overheads, tables for docs/benchmarks.md, targets that are missed.

python benchmarks/training_report.py results/training_speed_cpu.json      # the tables of a file, once more
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import spread, table

PEER, OURS = "nnU-Net", "segpipe"
MOST_OVERHEAD_PERCENT = 3.0
# of segpipe's seconds per step with real feeding to nnU-Net's: of the device, then of the plan where it has its own
TARGETS: dict[str, dict[str, float]] = {
    "cpu": dict.fromkeys("eacb", 0.6),
    "cuda": {"b": 0.45, "a": 0.25},
}
HEADER = [
    "program",
    "s/step, real feeding",
    "steps/s",
    "feeding alone, s/batch",
    "compute alone, s/step",
    "feeding overhead, %",
    "peak host, MiB",
]
LAST = {"cpu": "compute alone, CPU s/step", "cuda": "peak device, MiB"}


def compared(sides: dict[str, Any]) -> dict[str, Any]:
    """Ratios of segpipe to each other program, round by round; feeding overheads in % of compute; whether the same was
    trained."""
    found: dict[str, Any] = {"ratios": {}, "overhead_percent": {}}
    rounds = {name: {mode: value["rounds"] for mode, value in side["seconds"].items()} for name, side in sides.items()}
    for name, modes in rounds.items():
        pairs = list(zip(modes.get("real", []), modes.get("compute", []), strict=False))
        if pairs:
            found["overhead_percent"][name] = spread(100 * (real / compute - 1) for real, compute in pairs)
        if name != OURS:
            both = {mode: list(zip(rounds[OURS].get(mode, []), modes[mode], strict=False)) for mode in modes}
            found["ratios"][name] = {mode: spread(a / b for a, b in pairs) for mode, pairs in both.items() if pairs}
    trained = [(side["parameters"], side["batch"]) for side in sides.values() if "parameters" in side]
    found["same_network_and_batch"] = all(one == trained[0] for one in trained)
    return found


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    return "\n".join([_conditions(content), *_tables(content), *_verdicts(content)])


def _conditions(content: dict[str, Any]) -> str:
    hardware = content["hardware"]
    lines = [f"{hardware['processor']} ({', '.join(hardware['flags'])}), {hardware['cores']} cores, "]
    lines.append(f"{hardware['memory_gib']} GiB; {content['threads']} threads; nnU-Net: {content['nnunet']}\n")
    sides = {name: side for plan in content["plans"].values() for name, side in plan["sides"].items()}
    for name, side in sides.items():
        if "versions" in side:
            known = ", ".join(f"{package} {version}" for package, version in side["versions"].items() if version)
            lines.append(f"\n- {name}: {known}; {side['precision']}, {side['threads']} threads, {side['feeding']}")
            lines.append(f"; {side['device']}" if side["device"] else "")
    return "".join(lines)


def _tables(content: dict[str, Any]) -> Iterator[str]:
    for plan in content["plans"].values():
        n_rounds = max([len(side["seconds"].get("real", {}).get("rounds", [])) for side in plan["sides"].values()])
        differ = "" if plan["same_network_and_batch"] else "; NETWORKS OR BATCHES DIFFER"
        yield f"\n{plan['title']} (median, smallest to largest of {n_rounds} rounds{differ})\n"
        rows = [_row(name, side, plan) for name, side in plan["sides"].items()]
        rows += [_ratio_row(name, ratios, plan) for name, ratios in plan["ratios"].items() if ratios]
        yield table([*HEADER, LAST[content["device"]]], rows)
    for title, reason in content["not_measured"].items():
        yield f"\n{title}: {reason}"


def _row(name: str, side: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    if side["error"] or not side["seconds"]:
        last = (side["error"] or "no round finished").strip().splitlines()[-1]
        return [name, f"failed: {last}", *[""] * (len(HEADER) - 1)]
    seconds, overhead = side["seconds"], plan["overhead_percent"].get(name)
    return [
        name,
        _span(seconds["real"]),
        _number(1 / seconds["real"]["median"]),
        _span(seconds["feed"]),
        _span(seconds["compute"]),
        _span(overhead, ".1f") if overhead else "",
        f"{side['host_peak_mib']:.0f}" if side["host_peak_mib"] else "not known",
        f"{side['device_peak_mib']:.0f}" if side["device"] else _span(side["cpu_seconds"]["compute"]),
    ]


def _ratio_row(name: str, ratios: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    ours, theirs = plan["sides"][OURS], plan["sides"][name]
    on_device = ours["device"] is not None
    pairs = [
        (ours["host_peak_mib"], theirs["host_peak_mib"]),
        (ours["device_peak_mib"], theirs["device_peak_mib"])
        if on_device
        else (ours["cpu_seconds"]["compute"]["median"], theirs["cpu_seconds"]["compute"]["median"]),
    ]
    last = [f"{a / b:.2f}" if a and b else "" for a, b in pairs]
    real, feed, compute = (_span(ratios[mode], ".2f") if mode in ratios else "" for mode in ("real", "feed", "compute"))
    return [f"**segpipe / {name}**", f"**{real}**", "", feed, compute, "", *last]


def _verdicts(content: dict[str, Any]) -> Iterator[str]:
    """One line for each target."""
    targets = TARGETS[content["device"]]
    yield ""
    for key, plan in content["plans"].items():
        real = plan["ratios"].get(PEER, {}).get("real")
        if key in targets and real:
            yield f"- {_verdict(plan['title'], 'ratio to nnU-Net', real['median'], targets[key], '.2f')}"
        overhead = plan["overhead_percent"].get(OURS)
        if content["device"] == "cuda" and overhead:
            what = "feeding overhead in %"
            yield f"- {_verdict(plan['title'], what, overhead['median'], MOST_OVERHEAD_PERCENT, '.1f')}"


def _verdict(title: str, what: str, found: float, most: float, digits: str) -> str:
    met = "met" if found <= most else f"MISSED by {found - most:{digits}}"
    return f"{title}: {what} {found:{digits}}, target <= {most}: {met}"


def _span(values: dict[str, Any], digits: str = "") -> str:
    """Median (smallest to largest)."""
    shown = [f"{values[key]:{digits}}" if digits else _number(values[key]) for key in ("median", "min", "max")]
    return shown[0] if len(values["rounds"]) == 1 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text())))
