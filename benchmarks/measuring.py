"""What several benchmarks share: what they ran on, medians with their spread, tables. Standard library only."""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # the ones that decide how fast a convolution is


def versions(*packages: str) -> dict[str, str | None]:
    """Of the packages of this environment; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory. No name of the machine."""
    said = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(line.split(":", 1) for line in said.split("\n\n")[0].splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [flag for flag in CPU_FLAGS if flag in known.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": known.get("model name", platform.machine()),
        "flags": flags,
        "cores": n_cores(),
        "memory_gib": round(memory / 2**30, 1),
    }


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, smallest, largest, and every value as measured."""
    rounds = list(values)
    return {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds), "rounds": rounds}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
