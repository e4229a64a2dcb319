"""Programs that are run to their end and measured: wall time, CPU seconds, memory of all their processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Measured:
    """One run of one program.

    peak_mib : largest sum over its processes that was seen (PSS: what they share counts once); 0 where nothing looked
    largest_mib : the most that any one of its processes ever had (RSS), this one's own memory at the start at least
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    largest_mib: float


def measure(command: list[Any], environment: dict[str, str], log: Path, sample_s: float | None) -> Measured:
    """Run a program to its end. Stops this one, with what that said, where it fails; ends it where this one is stopped.

    sample_s : how often to add up its memory; None: never
    """
    peak_mib, over = [0.0], threading.Event()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(words, env={**kept, **environment}, stdout=file, stderr=file, start_new_session=True)
    watch = threading.Thread(target=_watch, args=(process.pid, peak_mib, over, sample_s)) if sample_s else None
    try:
        if watch:
            watch.start()
        _, status, usage = os.wait4(process.pid, 0)  # with all processes that it waited for
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        over.set()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # its session: the workers too
            process.wait()
        if watch:
            watch.join()
    if process.returncode:
        sys.exit(f"{' '.join(words)}\n{log.read_text()[-2000:]}")
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, peak_mib[0], usage.ru_maxrss / 1024)  # kB, of Linux


def segpipe_command(*arguments: object) -> list[Any]:
    """`segpipe ...` of this interpreter; runs the code beside the benchmarks with `own_path`."""
    return [Path(sys.executable).with_name("segpipe"), *arguments]


def own_path() -> dict[str, str]:
    """The environment variable that lets a process of this interpreter import segpipe from beside the benchmarks."""
    return {"PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])}


def pss_mib(pid: int) -> float:
    """Memory of a process and its descendants, what they share counted once; 0 where the system does not tell."""
    total = 0
    with suppress(psutil.Error):
        main = psutil.Process(pid)
        for process in [main, *main.children(recursive=True)]:
            with suppress(psutil.Error, AttributeError):
                total += process.memory_full_info().pss
    return total / 2**20


def _watch(pid: int, peak_mib: list[float], over: threading.Event, sample_s: float) -> None:
    while not over.wait(sample_s):
        peak_mib[0] = max(peak_mib[0], pss_mib(pid))


def peer_versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Of packages in nnU-Net's environment."""
    found = f"{{'python': platform.python_version(), **{{n: version(n) for n in {packages}}}}}"
    code = f"from importlib.metadata import version; import json, platform; print(json.dumps({found}))"
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout))


def read_once(folder: Path) -> None:
    """So that whoever goes first does not wait for the disk."""
    for path in folder.resolve().rglob("*"):
        if path.is_file():
            path.read_bytes()


def leave_on_sigterm() -> None:
    """Leave as on Ctrl-C: no process and no temporary folder stays behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
