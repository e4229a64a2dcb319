"""A search of 12 trials by two concurrent workers, of which one is killed in between.

    python benchmarks/search_killed.py > docs/search_killed.md

The trainings are small ones on the generated phantoms, on the CPU. When some trials have ended, a worker that is in the
middle of one gets SIGKILL. Snakemake starts it once more, and the call ends well. Exits with 1 where a finished trial
is lost or changed, one was trained twice, or the numbers of the trial that was killed are not those of the same
training without a kill.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from segpipe import params as params_yaml
from segpipe.data.cases import Cases
from segpipe.params import changed
from segpipe.prepare import store
from segpipe.search import ranges
from segpipe.training import job

REPO = Path(__file__).resolve().parents[1]
PREPARED = Path("data/preprocessed/Dataset000_Phantoms")
SETTINGS = {
    "phantoms.n_train": 10,
    "phantoms.n_test": 0,
    "splits.n_folds": 2,
    "folds": [0, 1],
    "plan.overrides.spacing_mm": [2.0, 2.0, 2.0],
    "plan.overrides.patch_size": [16, 16, 16],
    "plan.overrides.features_base": 4,
    "train.epochs": 8,
    "train.iterations_per_epoch": 10,
    "train.val_iterations_per_epoch": 2,
    "search.pruner.warmup_epochs": 4,
    "search.pruner.startup_trials": 3,
    "runtime.device": "cpu",
    "runtime.threads": 1,
}
Trials = dict[int, dict[str, str]]


def main() -> None:
    """Print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--ended", type=int, default=4, help="trials that have ended when the worker is killed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        text = (REPO / "params.yaml").read_text()
        Path("params.yaml").write_text(changed(text, SETTINGS | {"search.trials": arguments.trials}, "params.yaml"))
        snakemake(f"{PREPARED}/3d_fullres/manifest.json")
        number, before, said = kill_one(arguments.ended)
        trials = read()
        facts = {
            f"{len(before)} trials had ended before the kill; all are there, with the same value": all(
                trials[one] == row for one, row in before.items()
            ),
            f"{arguments.trials} trials have ended": len(trials) == arguments.trials,
            "each was begun once; the killed one alone was continued": starts(number),
            f"trial {number}: metrics.csv has the bytes of the same training without a kill": again(number, trials),
        }
    print(report(facts, number, said, trials))
    sys.exit(not all(facts.values()))


def command(*targets: str) -> list[str]:
    """A call of Snakemake in which two workers run side by side."""
    own = ["--snakefile", str(REPO / "Snakefile"), "--cores", "2"]
    return [sys.executable, "-m", "snakemake", *targets, *own, "--resources", "gpu=2"]


def snakemake(*targets: str) -> None:
    """A call that must succeed."""
    done = subprocess.run(command(*targets), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def kill_one(ended: int) -> tuple[int, Trials, str]:
    """Search; kill a worker when so many trials have ended. Its trial, what had ended, and what was said."""
    process = subprocess.Popen(command("search"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (victim := in_the_middle() if len(journal()) >= ended else None):
        if process.poll() is not None:
            sys.exit("the search ended before a worker could be killed\n" + (process.stdout or sys.stdin).read())
        time.sleep(0.02)
    number, pid = victim
    os.kill(pid, signal.SIGKILL)
    before = journal()
    said, _ = process.communicate()
    if process.returncode:
        sys.exit("the search failed\n" + said)
    return number, before, said


def in_the_middle() -> tuple[int, int] | None:
    """A trial that has done some epochs and not its last ones, and the process that trains it."""
    running = [path for path in Path("results/search").glob("*/trial_*") if number_of(path) not in journal()]
    for trial in running:
        locks, epochs = list(trial.glob("*/*/state/.lock")), list(trial.glob("*/*/state/*/metrics.csv"))
        if locks and epochs and 2 <= len(epochs[0].read_text().splitlines()) - 1 <= SETTINGS["train.epochs"] - 3:
            return number_of(trial), int(locks[0].read_text().split()[1].rstrip(":"))
    return None


def number_of(trial: Path) -> int:
    """7 of trial_7."""
    return int(trial.name.partition("_")[2])


def journal() -> Trials:
    """State and value of the ended trials, as the journal has them at this moment."""
    ended: Trials = {}
    for path in Path("results/search").glob("*/journal.log"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["op_code"] == 6 and entry["state"] in ENDED:
                value = entry["values"][0] if entry["values"] else None
                ended[entry["trial_id"]] = {
                    "state": ENDED[entry["state"]],
                    "value": "" if value is None else f"{value:.6g}",
                }
    return ended


ENDED = {1: "complete", 2: "pruned", 3: "fail"}


def read() -> Trials:
    """State and value of the trials of the table."""
    with Path("results/search/trials.csv").open() as file:
        return {int(row["number"]): {key: row[key] for key in ("state", "value")} for row in csv.DictReader(file)}


def starts(killed: int) -> bool:
    """Whether the logs of all trials tell of one beginning, and that of the killed one of a continuation."""
    for log in Path("results/search").glob("*/trial_*/*/*/state/*/train.log"):
        said = re.findall(r"fold 0: (starts|continues after epoch \d+)", log.read_text())
        number = number_of(log.parents[4])
        if said[0] != "starts" or len(said) != (2 if number == killed else 1):
            return False
    return True


def again(number: int, trials: Trials) -> bool:
    """Whether the same training, here and without a kill, writes the same numbers."""
    settings = params_yaml.load()
    with Path("results/search/trials.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if int(row["number"]) == number)
    values = {key: yaml.safe_load(row[key]) for key in settings.search.ranges}
    cases = Cases.read(PREPARED / "cases.json", settings.dataset)
    opened = store.ensure(cases, PREPARED / "plan.json", PREPARED / "3d_fullres/manifest.json", settings.runtime)
    job.train(opened, PREPARED / "splits.json", "0", Path("again"), ranges.applied(settings, values))
    (state,) = Path("results/search").glob(f"*/trial_{number}/3d_fullres/fold_0/state/*/")
    known = (state / "metrics.csv").read_text()
    whole = Path("again/metrics.csv").read_text()
    return known == whole if trials[number]["state"] == "complete" else whole.startswith(known)


def report(facts: dict[str, bool], number: int, said: str, trials: Trials) -> str:
    """The page."""
    shown = re.compile(
        r"^(trial \d+: (of|goes|pruned|dice|.*: (starts|continues))|search results|best|first|Job \d+: search)"
    )
    lines = [line for line in said.splitlines() if shown.match(line)]
    table = [f"| {one} | {row['state']} | {row['value']} |" for one, row in trials.items()]
    verdicts = [f"- {'yes' if holds else 'NO'}: {fact}" for fact, holds in facts.items()]
    return "\n".join(
        [
            "# A search of which a worker is killed",
            "",
            "`python benchmarks/search_killed.py`: `snakemake search` with two workers side by side on the CPU; the",
            f"one that trained trial {number} got SIGKILL, and was started once more.",
            "",
            *verdicts,
            "",
            "| trial | state | dice_ema |",
            "|---|---|---|",
            *table,
            "",
            "What the call said of it, in order:",
            "",
            "```",
            *lines,
            "```",
        ]
    )


if __name__ == "__main__":
    main()
