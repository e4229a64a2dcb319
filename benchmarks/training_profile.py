"""Where the time of segpipe's training steps goes: shares of operators, on CUDA of kernels.

    python benchmarks/training_profile.py --plans e,a [--device cuda] [--threads 1]

Steps on one batch, of the plans of training_speed.py. On the CPU measure with one thread on a quiet machine: the
profiler reads the time of day, so waiting counts as computing.
"""

import argparse
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import measuring
import torch
from segpipe_training_speed import Segpipe
from torch.profiler import ProfilerActivity, profile
from training_plans import PLANS, project

from segpipe.training import loop

WARM_STEPS = 3
N_ROWS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", default="e,a", help=f"comma-separated: {', '.join(PLANS)}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    for key in args.plans.split(","):
        project(PLANS[key], work / key, args.device, args.threads)
        program = Segpipe(work / key, PLANS[key].configuration)
        print(f"\n{PLANS[key].described}; {args.device}, {args.threads} threads\n")
        print(shares(program, args.steps))
    shutil.rmtree(work)


def shares(program: Segpipe, steps: int) -> str:
    """A table of what takes most of a step."""
    _train(program, WARM_STEPS)
    wall, cpu = time.perf_counter(), time.process_time()
    _train(program, steps)
    wall, cpu = (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps
    activities = [ProfilerActivity.CPU] if program.on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        _train(program, steps)
    seconds, calls = Counter[str](), Counter[str]()
    for event in found.key_averages():
        taken = event.self_cpu_time_total if program.on_cpu else event.self_device_time_total
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if taken > 0 and (program.on_cpu or is_kernel):
            seconds[event.key] += taken / 1e6 / steps
            calls[event.key] += event.count / steps
    total = sum(seconds.values())
    rows = [
        [f"`{name[:90]}`", f"{calls[name]:.0f}", f"{1000 * value:.2f}", f"{100 * value / total:.1f}"]
        for name, value in seconds.most_common(N_ROWS)
    ]
    rest = total - sum(value for _, value in seconds.most_common(N_ROWS))
    rows.append(["all others", "", f"{1000 * rest:.2f}", f"{100 * rest / total:.1f}"])
    said = f"{wall:.4f} s per step, {cpu:.4f} CPU seconds, {total:.4f} s in what follows\n\n"
    return said + measuring.table(["operator", "calls", "ms per step", "%"], rows)


def _train(program: Segpipe, steps: int) -> None:
    training = program.training
    for _ in range(steps):
        training.losses.append(loop.train_step(training, training.step, [program.batch]))
    if not program.on_cpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
