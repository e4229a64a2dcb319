"""What prediction.py says of its rounds: ratios, missed targets, tables. See prediction.py."""

from typing import Any

import measuring
from running import Measured

SIDES = ("segpipe", "nnunetv2")
# of nnU-Net's number, by whether there is mirroring; memory in both
MOST_WALL = {False: 0.4, True: 0.6}
MOST_MEMORY = 0.5
LEAST_EQUAL, MOST_APART = 0.999, 1e-6
UNITS = {"wall_s": "wall, s", "cpu_s": "CPU, s", "peak_mib": "peak memory, MiB"}
COMPARED = """\
What is compared: the command of each program, from its start to its end, with segmentations and probabilities written.
Equal voxels, probabilities: the worst case. Dice: the mean over cases and classes. The evaluations are nnU-Net's and
segpipe's of the same segmentations, as their summary.json say it."""


def summed_up(
    runs: dict[str, list[Measured]], peak_mib: dict[str, float], tried: dict[str, Measured], kept: str
) -> dict[str, Any]:
    """Spreads of both sides, and their ratios round by round."""
    content: dict[str, Any] = {}
    for name in ("wall_s", "cpu_s"):
        ours, theirs = ([getattr(one, name) for one in runs[side]] for side in SIDES)
        content[name] = {
            "segpipe": measuring.spread(ours),
            "nnunetv2": measuring.spread(theirs),
            "ratio": measuring.spread(a / b for a, b in zip(ours, theirs, strict=True)),
        }
    ratio = peak_mib["segpipe"] / peak_mib["nnunetv2"]
    content["peak_mib"] = {name: measuring.spread([value]) for name, value in (*peak_mib.items(), ("ratio", ratio))}
    content["nnunet_workers"] = {"kept": kept, "wall_s": {name: one.wall_s for name, one in tried.items()}}
    return content


def tables(content: dict[str, Any]) -> tuple[str, bool]:
    """Markdown, and whether the outcome is not the same."""
    rows = list(content["tasks"].values())
    speed = [line for row in rows for line in _speed(row)]
    of_speed = measuring.table(("", "mirroring", "", "segpipe", "nnU-Net", "ratio (spread)", "target"), speed)
    outcome = [_outcome(row) for row in rows]
    header = ("", "mirroring", "equal voxels", "Dice of each other", "Dice: segpipe, nnU-Net")
    header += ("largest difference of probabilities", "evaluations apart", "npz: segpipe, nnU-Net")
    workers = [_workers(row) for row in rows]
    missed = [f"{row['title']}, {_way(row)}: {name}" for row in rows for name in _missed(row)]
    is_other = any(_is_other(row) for row in rows)
    parts = [of_speed, measuring.table(header, outcome), COMPARED, "\n".join(workers)]
    return "\n\n".join([*parts, f"Missed: {'; '.join(missed) or 'nothing'}."]), is_other


def _way(row: dict[str, Any]) -> str:
    return "with" if row["mirroring"] else "without"


def _speed(row: dict[str, Any]) -> list[tuple[str, ...]]:
    lines = []
    targets = {"wall_s": MOST_WALL[row["mirroring"]], "peak_mib": MOST_MEMORY}
    for name, title in UNITS.items():
        ours, theirs, ratio = (row[name][key] for key in (*SIDES, "ratio"))
        target = targets.get(name)
        met = "" if target is None else f"{target}: {'met' if ratio['median'] <= target else 'missed'}"
        n = len(ratio["rounds"])
        spread = f"{ratio['median']:.2f}" + (f" ({ratio['min']:.2f} to {ratio['max']:.2f})" if n > 1 else "")
        shown = (f"{side['median']:.1f}" for side in (ours, theirs))
        lines.append((row["title"], _way(row), title, *shown, spread, met))
    return lines


def _outcome(row: dict[str, Any]) -> tuple[str, ...]:
    found = row["agreement"]
    dice = ", ".join(f"{found['dice'][side]:.4f}" for side in SIDES) if found["dice"] else "no labels"
    difference = f"{found['largest_difference']:.1e} ({100 * found['voxels_further_apart']:.2f} % above 0.002)"
    stored = (found["npz"][side] for side in SIDES)
    sizes = ", ".join(f"{one['kb_per_case']:,.0f} kB {one['dtype']}" for one in stored)
    evaluated = f"{found['evaluations_apart']:.0e}" if "evaluations_apart" in found else "no labels"
    equal = f"{100 * found['equal_voxels']:.3f} %"
    return row["title"], _way(row), equal, f"{found['dice_between']:.5f}", dice, difference, evaluated, sizes


def _workers(row: dict[str, Any]) -> str:
    tried = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["nnunet_workers"]["wall_s"].items())
    return f"- {row['title']}, {_way(row)} mirroring: nnU-Net by its workers (-npp, -nps), tried once each: {tried}"


def _is_other(row: dict[str, Any]) -> bool:
    found = row["agreement"]
    return found["equal_voxels"] < LEAST_EQUAL or found.get("evaluations_apart", 0) > MOST_APART


def _missed(row: dict[str, Any]) -> list[str]:
    ratios = {name: row[name]["ratio"]["median"] for name in ("wall_s", "peak_mib")}
    targets = {"wall_s": MOST_WALL[row["mirroring"]], "peak_mib": MOST_MEMORY}
    missed = [
        f"{UNITS[name]} {ratios[name]:.2f} instead of {targets[name]}"
        for name in ratios
        if ratios[name] > targets[name]
    ]
    return missed + (["the outcome"] if _is_other(row) else [])
