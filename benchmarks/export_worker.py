"""What both sides of export.py say of themselves. Standard library only."""

import json
import time
from collections.abc import Callable
from pathlib import Path


def measured(export: Callable[[], None]) -> None:
    """Run an export and print what it took: seconds, CPU seconds, the most memory that this process ever had."""
    wall, cpu = time.perf_counter(), time.process_time()
    export()
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    print(json.dumps({**seconds, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Of this process since its start; what its parent had does not count, as it does in getrusage."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
