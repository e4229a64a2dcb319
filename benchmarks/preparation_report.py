"""What preparation.py says of its rounds: ratios, missed targets, tables. See preparation.py."""

from typing import Any

import measuring

SIDES = ("segpipe", "nnunetv2")
# of nnU-Net's number, by dataset; and no 0.1 MB of coordinates in each case of it
TARGETS = {"Dataset004_Hippocampus": {"wall_s": 0.25, "peak_mib": 0.5}}
MOST_COORDINATES_KB = {"Dataset004_Hippocampus": 100}
COORDINATES = {"segpipe": "foreground.npy", "nnunetv2": "pkl"}  # the kinds of file that hold them
UNITS = {"wall_s": "wall, s", "cpu_s": "CPU, s", "peak_mib": "peak memory, MiB"}
COMPARED = """\
What is compared: raw files to 2d and 3d_fullres. All 180 cases of Hippocampus have 1 mm spacing, so neither side
resamples them. Where 2d and 3d_fullres of a case are equal (Hippocampus; ACDC with 10 mm slices), segpipe prepares it
once and both share its files by hard links; nnU-Net prepares and writes it twice. Files that are shared count once in
the bytes. Memory comes from an extra run of each side that is sampled and not timed; of the large CT, which has one
round, from that round, sampled every 2 s."""


def summed_up(dataset: str, found: dict[str, Any]) -> dict[str, Any]:
    """Spreads of both sides, their ratios round by round, and what of the targets is missed."""
    content: dict[str, Any] = {**found["stored"], "missed": {}}
    for name in ("wall_s", "cpu_s"):
        ours, theirs = ([getattr(one, name) for one in found["runs"][side]] for side in SIDES)
        content[name] = {
            "segpipe": measuring.spread(ours),
            "nnunetv2": measuring.spread(theirs),
            "ratio": measuring.spread(a / b for a, b in zip(ours, theirs, strict=True)),
        }
    peaks = {side: found["peak_mib"][side] for side in SIDES}
    ratio = peaks["segpipe"] / peaks["nnunetv2"]
    content["peak_mib"] = {name: measuring.spread([value]) for name, value in (*peaks.items(), ("ratio", ratio))}
    for name, target in TARGETS.get(dataset, {}).items():
        if content[name]["ratio"]["median"] > target:
            content["missed"][name] = f"{content[name]['ratio']['median']:.2f} instead of {target}"
    kb = {side: content["bytes_per_case"][side].get(kind, 0) / 1000 for side, kind in COORDINATES.items()}
    content["coordinates_kb_per_case"] = kb
    most = MOST_COORDINATES_KB.get(dataset)
    if most and kb["segpipe"] >= most:
        content["missed"]["coordinates"] = f"{kb['segpipe']:.1f} kB instead of less than {most}"
    return content


def tables(datasets: dict[str, Any]) -> str:
    """Markdown: time, memory and coordinates, then bytes and shared cases, then what is compared."""
    rows = [row for dataset, content in datasets.items() for row in _rows(dataset, content)]
    times = measuring.table(("dataset", "", "rounds", "segpipe", "nnU-Net", "ratio (spread)", "target"), rows)
    sizes = [
        (
            dataset,
            *(_described(content["bytes_per_case"][side]) for side in SIDES),
            ", ".join(f"{name} {n} of {content['n_cases']}" for name, n in content["shared"].items()),
        )
        for dataset, content in datasets.items()
    ]
    bytes_table = measuring.table(("kB per case", "segpipe", "nnU-Net", "shared by segpipe"), sizes)
    return f"{times}\n\n{bytes_table}\n\n{COMPARED}"


def _rows(dataset: str, content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, title in UNITS.items():
        ours, theirs, ratio = (content[name][key] for key in (*SIDES, "ratio"))
        target = TARGETS.get(dataset, {}).get(name)
        met = "" if target is None else f"{target}: {_met(content, name)}"
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        rounds = str(len(ratio["rounds"])) if name != "peak_mib" else "sampled"
        rows.append((dataset, title, rounds, f"{ours['median']:.1f}", f"{theirs['median']:.1f}", spread, met))
    kb = content["coordinates_kb_per_case"]
    ratio = f"{kb['segpipe'] / kb['nnunetv2']:.2f}"
    most = MOST_COORDINATES_KB.get(dataset)
    met = "" if most is None else f"< {most} kB: {_met(content, 'coordinates')}"
    title = "coordinates (foreground.npy, pickles), kB per case"
    return [*rows, (dataset, title, "", f"{kb['segpipe']:.1f}", f"{kb['nnunetv2']:.1f}", ratio, met)]


def _met(content: dict[str, Any], name: str) -> str:
    return "missed" if name in content["missed"] else "met"


def _described(kinds: dict[str, int]) -> str:
    parts = ", ".join(f"{kind} {size / 1000:,.1f}" for kind, size in kinds.items())
    return f"{sum(kinds.values()) / 1000:,.1f}: {parts}"
