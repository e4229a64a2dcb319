"""Where the time of segpipe's training steps goes: shares of operators, on CUDA of kernels.

    python benchmarks/training_profile.py --plans e,a [--device cuda] [--threads 1]

Steps on one batch, of the plans of training_speed.py. On the CPU an operator counts with the CPU seconds of all threads
while it runs, which other work on the machine changes little.
"""

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
from segpipe_training_speed import Segpipe
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from training_plans import PLANS, project

from segpipe.training import loop

WARM_STEPS = 3
N_ROWS = 12


class CpuSeconds(TorchDispatchMode):
    """Adds up CPU seconds and calls of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = time.process_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[func.name()] += time.process_time() - before
        self.calls[func.name()] += 1
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", default="e,a", help=f"comma-separated: {', '.join(PLANS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    for key in args.plans.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            project(PLANS[key], Path(scratch) / key, args.device, args.threads)
            program = Segpipe(Path(scratch) / key, PLANS[key].configuration)
        print(f"\n{PLANS[key].described}; {args.device}, {args.threads} threads\n")
        print(shares(program, args.steps))


def shares(program: Segpipe, steps: int) -> str:
    """A table of what takes most of a step."""
    _train(program, WARM_STEPS)
    wall = time.perf_counter()
    _train(program, steps)
    wall = (time.perf_counter() - wall) / steps
    total, seconds, calls = (_operators if program.on_cpu else _kernels)(program, steps)
    most = sorted(seconds.items(), key=lambda item: item[1], reverse=True)[:N_ROWS]
    most.append(("all else, the profiler too", total - sum(value for _, value in most)))
    rows = [
        [
            f"`{name[:90]}`",
            f"{calls.get(name, 0) / steps:.0f}",
            f"{1000 * value / steps:.2f}",
            f"{100 * value / total:.1f}",
        ]
        for name, value in most
    ]
    kind = "CPU seconds" if program.on_cpu else "seconds of kernels"
    said = f"{wall:.4f} s per step without profiler; {total / steps:.4f} {kind} with it\n\n"
    return said + measuring.table(["operator", "calls", "ms per step", "%"], rows)


Found = tuple[float, Mapping[str, float], Mapping[str, int]]  # seconds in all, by name; calls by name


def _operators(program: Segpipe, steps: int) -> Found:
    with CpuSeconds():
        _train(program, 1)  # its first use costs as much as half a step
    before = time.process_time()
    with CpuSeconds() as found:
        _train(program, steps)
    return time.process_time() - before, found.seconds, found.calls


def _kernels(program: Segpipe, steps: int) -> Found:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        _train(program, steps)
    kernels = [event for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    seconds = {event.key: event.self_device_time_total / 1e6 for event in kernels}
    return sum(seconds.values()), seconds, {event.key: event.count for event in kernels}


def _train(program: Segpipe, steps: int) -> None:
    training = program.training
    for _ in range(steps):
        training.losses.append(loop.train_step(training, training.step, [program.batch]))
    if not program.on_cpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
