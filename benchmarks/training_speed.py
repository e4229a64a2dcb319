"""How fast are training steps, beside nnU-Net's, with equal plans and equal preprocessed cases?

    python benchmarks/training_speed.py --nnunet-python /path/to/nnunet/bin/python [--device cuda]

Each program is a process that stays; they are measured in turns, and stopped while the other is. Three numbers each:
with real feeding (the training loop as it is), feeding alone (batches made and thrown away), compute alone (steps on
one fixed batch). Warm-up is not counted. Host memory is the largest sum over a program's processes (PSS) while it
trains. nnU-Net runs as its command runs it: on the CPU with all cores in float32, on CUDA with one thread beside its
background processes, compiled; there it is measured not compiled as well.

Prints tables and which targets are missed, keeps `results/training_speed_<device>.json`. Without --nnunet-python
segpipe is measured alone.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import training_report
from running import leave_on_sigterm
from training_plans import DEFAULT, PLANS, Amount, Plan, project
from training_side import Answer, Side, nnunet_prepare, nnunet_side, segpipe_side

from segpipe import digest

RESULTS = Path(__file__).with_name("results")
MODES = ("real", "feed", "compute")
SECONDS = {"cpu": 600.0, "cuda": 400.0}
WARM_STEPS = {"cpu": 1, "cuda": 10}


def measure(sides: list[Side], amount: Amount, device: str, end: float) -> dict[str, Any]:
    """What each side says of itself, then its seconds per step by round, until the next one would end late."""
    facts = {side.name: side.answer() for side in sides}
    for side in sides:
        warm_up([side], WARM_STEPS[device], tune=True)
    answers: dict[str, dict[str, list[Answer]]] = {side.name: {mode: [] for mode in MODES} for side in sides}
    longest = 0.0
    for number in range(amount.rounds):
        began = time.monotonic()
        if number and began + longest > end:
            break
        for mode in MODES:
            for side in sides if number % 2 == 0 else sides[::-1]:
                answer = side.ask(mode, getattr(amount, mode))
                answers[side.name][mode] += [] if answer is None else [answer]
        longest = max(longest, time.monotonic() - began)
    return {side.name: (facts[side.name] or {}) | summed_up(side, answers[side.name]) for side in sides}


def compile_ahead(sides: list[Side]) -> None:
    """Compile for all sides at once, in processes that end: the measured ones find it in Inductor's folder.

    It takes a minute or more, in one thread each. Not in the measured ones, because cuDNN chooses its algorithms at a
    shape's first step for good, and beside others it cannot be let try them.
    """
    for side in sides:
        side.answer()
    warm_up(sides, 2, tune=False)


def summed_up(side: Side, answers: dict[str, list[Answer]]) -> dict[str, Any]:
    """Spreads over the rounds."""

    def spreads(key: str) -> dict[str, Any]:
        return {mode: measuring.spread(one[key] for one in found) for mode, found in answers.items() if found}

    device_mib = [one["device_mib"] for found in answers.values() for one in found if one["device_mib"]]
    return {
        "error": side.error,
        "seconds": spreads("seconds"),
        "cpu_seconds": {"compute": spreads("cpu_seconds")["compute"]} if answers["compute"] else {},  # of this process
        "host_peak_mib": side.peak_mib or None,
        "device_peak_mib": max(device_mib, default=None),
    }


def warm_up(sides: list[Side], steps: int, tune: bool) -> None:
    """Train, with nothing but memory noted, which would disturb the measurement."""
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(side.watched())
            side.tell("real", steps, tune)
        for side in sides:
            side.answer()


def start(args: argparse.Namespace, plan: Plan, folder: Path, dataset: Path, stack: ExitStack) -> list[Side]:
    """The programs, with nothing measured yet."""
    sides = []
    if args.nnunet_python:
        threads = args.threads if args.device == "cpu" else 1
        for compiled in [None] if args.device == "cpu" else [None, False]:
            given = (args.nnunet_python, dataset, plan.configuration, args.device, threads)
            sides.append(nnunet_side(*given, compiled))
    sides += [segpipe_side(folder, plan.configuration, variant) for variant in ["", *args.variant]]
    for side in sides:
        stack.callback(side.close)
    return sides


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet-python", type=Path, help="interpreter with nnunetv2 2.8; default: segpipe alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    titles = ", ".join(f"{key} {plan.title}" for key, plan in PLANS.items())
    parser.add_argument("--plans", help=f"comma-separated: {titles}; default: all that the device can do")
    parser.add_argument("--rounds", type=int, help="at most so many per plan")
    parser.add_argument("--steps", type=int, help="timed per round and kind")
    parser.add_argument(
        "--seconds", type=float, help="for all plans together, which share it; a first round is complete"
    )
    parser.add_argument("--threads", type=int, default=measuring.n_cores(), help="of a step; default: all cores")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        help="segpipe once more with other settings of runtime: compile=graphs",
    )
    parser.add_argument("--work", type=Path, help="scratch folder; default: a temporary one")
    parser.add_argument("--out", type=Path, help="JSON; default: results/training_speed_<device>.json")
    return parser.parse_args()


def amount_of(plan: Plan, args: argparse.Namespace) -> Amount:
    """How much is measured, with what the command line changes."""
    amount = plan.on[args.device]
    if args.steps:
        amount = replace(amount, real=args.steps, feed=args.steps, compute=args.steps)
    return replace(amount, rounds=args.rounds) if args.rounds else amount


def prepared(args: argparse.Namespace, keys: list[str], work: Path) -> dict[str, Path]:
    """nnU-Net's dataset of each plan; segpipe's project is `work`/<plan>."""
    with ThreadPoolExecutor(max(measuring.n_cores() // 2, 1)) as pool:
        jobs = {key: pool.submit(project, PLANS[key], work / key, args.device, args.threads) for key in keys}
    datasets = {key: job.result() for key, job in jobs.items()}
    if args.nnunet_python and keys:
        nnunet_prepare(args.nnunet_python, list(datasets.values()))
    return datasets


def run(args: argparse.Namespace, work: Path) -> None:
    """All plans, the quick ones first; the file is written after each."""
    end = time.monotonic() + (args.seconds or SECONDS[args.device])
    wanted = args.plans.split(",") if args.plans else list(PLANS)
    keys = [key for key in wanted if args.device in PLANS[key].on]
    content: dict[str, Any] = {
        "device": args.device,
        "threads": args.threads,
        "hardware": measuring.hardware(),
        "nnunet": "measured" if args.nnunet_python else "not installed here: segpipe alone",
        "not_measured": {PLANS[key].described: PLANS[key].instead[args.device] for key in wanted if key not in keys},
        "plans": {},
    }
    datasets = prepared(args, keys, work)
    for index, key in enumerate(keys):
        if index and time.monotonic() > end:
            content["not_measured"][PLANS[key].described] = "no time was left"
            digest.write_json(args.out, content)
            continue
        shares = [PLANS[other].share for other in keys[index:]]
        until = time.monotonic() + (end - time.monotonic()) * shares[0] / sum(shares)
        print(f"{PLANS[key].described} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        if args.device == "cuda":
            with ExitStack() as stack:
                compile_ahead(start(args, PLANS[key], work / key, datasets[key], stack))
        with ExitStack() as stack:
            sides = start(args, PLANS[key], work / key, datasets[key], stack)
            measured = measure(sides, amount_of(PLANS[key], args), args.device, until)
        row = {"title": PLANS[key].described, "took_s": time.monotonic() - began, "sides": measured}
        content["plans"][key] = row | training_report.compared(measured)
        digest.write_json(args.out, content)
    print(training_report.report(content))


def main() -> None:
    leave_on_sigterm()  # or stopped processes would stay
    args = arguments()
    args.out = args.out or RESULTS / f"training_speed_{args.device}.json"
    args.plans = args.plans or ",".join(DEFAULT[args.device])
    with tempfile.TemporaryDirectory() as scratch:
        run(args, args.work or Path(scratch))


if __name__ == "__main__":
    main()
