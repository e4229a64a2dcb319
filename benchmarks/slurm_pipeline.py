"""The whole default target through profiles/slurm, its later rules disturbed: the files of an undisturbed local run?

    make slurm                                      # the plugin, into .venv
    .ci/slurm_single_node.sh run .venv/bin/python benchmarks/slurm_pipeline.py

Two configurations, two folds, tiny trainings; a validation is cancelled, the node reboots under one, the
prediction of imagesTs is cancelled. Needs root, as slurm_resume.py does. Prints a table of what was done, one of what
each rule asked Slurm for, and which published files differ; exits with 1 where one does.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import slurm_resume as slurm
import yaml

CONFIGURATIONS = ["2d", "3d_fullres"]
MANY_VALIDATED = {"phantoms": {"n_train": 20}, "splits": {"n_folds": 2}, "validate": {"step_size": 0.25}}
PREDICTION = {"models": "best", "probabilities": "npz", "calibrated": True, "uncertainty": True}
MIDDLE = range(1, 7)  # finished cases, of ten
UNDECLARED = {"state"}  # beside results; files that begin with a dot, locks, are not looked at either
ASKED = ("TimeLimit", "NumCPUs", "MinMemoryNode", "TresPerJob", "Requeue")


def write_params(folder: Path) -> None:
    """Trainings of seconds; validations and a prediction of so many cases that they are met at work."""
    slurm.write_params(folder, [0, 1], epochs=3, iterations=2)
    change(folder, MANY_VALIDATED)
    change(folder, {"configurations": CONFIGURATIONS, "phantoms": {"n_test": 10}, "predict": PREDICTION})
    change(folder, {"plan": {"overrides": {"patch_size": {"2d": [16] * 2, "3d_fullres": [16] * 3}}}})


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Other settings in its params.yaml; of a section those that are named."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(merged(params, changes), sort_keys=False))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The old values with the new ones in their place, section by section."""
    both = {key: isinstance(value, dict) and isinstance(old[key], dict) for key, value in new.items()}
    return old | {key: merged(old[key], value) if both[key] else value for key, value in new.items()}


def published(folder: Path) -> dict[str, Path]:
    """All files that rules have made for others, by their path in the folder."""
    files = [path for top in ("data", "results") for path in (folder / top).rglob("*") if path.is_file()]
    names = {path.relative_to(folder): path for path in files if not path.name.startswith(".")}
    return {name.as_posix(): path for name, path in names.items() if not UNDECLARED & set(name.parts)}


def differing(one: Path, other: Path) -> list[str]:
    """Published files that only one of them has, or whose bytes are not the same."""
    left, right = published(one), published(other)
    common = left.keys() & right.keys()
    return sorted((left.keys() ^ right.keys()) | {n for n in common if left[n].read_bytes() != right[n].read_bytes()})


def requests() -> dict[str, dict[str, str]]:
    """rule: what its jobs asked for, as the controller has it, of all jobs that it still knows."""
    found = {}
    for line in slurm.shell("scontrol", "show", "job", "--oneliner").splitlines():
        said = dict(part.split("=", 1) for part in line.split() if "=" in part)
        rule = said.get("Comment", "").removeprefix("rule_").split("_wildcards_")[0]
        if rule:
            found[rule] = {name: said.get(name, "none") for name in ASKED}
    return found


def work_of(comment: str) -> tuple[str, str]:
    """(log, records of finished cases as a pattern) of a job of `validate` or `predict`, by its comment in Slurm."""
    if comment == "rule_predict":
        return "logs/predict.log", "results/state/predictions/*/.segpipe/*.json"
    configuration, fold, checkpoint = comment.removeprefix("rule_validate_wildcards_").rsplit("_", 2)
    log = f"logs/validate/{configuration}/fold_{fold}_{checkpoint}.log"
    return log, f"results/{configuration}/fold_{fold}/state/validation_{checkpoint}/*/*.json"


def jobs_of(comment: str) -> set[str]:
    """Those in the queue for the same rule and wildcards."""
    return {job for job, (_, of) in slurm.queue().items() if of == comment}


def kept(log: Path) -> re.Match[str] | None:
    """What a job says of cases that were there. Snakemake removes the log when a job starts again."""
    return re.search(r"[1-9]\d* (of them )?predicted before", log.read_text()) if log.exists() else None


class Disturbed:
    """A run through the profile that is disturbed after its trainings.

    rows : what was done, to which job, what came of it
    requests : what each rule asked for
    """

    def __init__(self, folder: Path, *targets: str) -> None:
        self.folder = folder
        self.rows: list[tuple[str, str, str]] = []
        self.requests: dict[str, dict[str, str]] = {}
        self.main = slurm.snakemake(folder, "--workflow-profile", str(folder / "profile.yaml"), "--", *targets)

    def hit(self, rule: str) -> tuple[str, str]:
        """(job, comment) of a running job of this rule that has finished some of its cases."""
        job: tuple[str, str] = slurm.wait_for(f"a job of {rule} with a case done", lambda: self.in_the_middle(rule))
        return job

    def in_the_middle(self, rule: str) -> tuple[str, str] | None:
        """Such a job of those in the queue. Raises RuntimeError where none will come."""
        self.remember()
        if self.main.poll() is not None:
            raise RuntimeError(f"{rule} ended before anything could happen to it, see {self.folder}/snakemake.txt")
        for job, (state, comment) in slurm.queue().items():
            met = state == "RUNNING" and comment.startswith(f"rule_{rule}")
            if met and len([*self.folder.glob(work_of(comment)[1])]) in MIDDLE:
                return job, comment
        return None

    def remember(self) -> None:
        """What jobs ask for, before the controller forgets them."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.requests |= requests()

    def cancel(self, rule: str) -> None:
        """`scancel`; Snakemake submits another job."""
        job, comment = self.hit(rule)
        slurm.shell("scancel", job)
        new = slurm.wait_for(f"another job for {comment}", lambda: jobs_of(comment) - {job})
        self.note("scancel", comment, f"Snakemake submitted job {min(new)} for job {job}")

    def reboot(self, rule: str) -> None:
        """The node dies and is declared down, then comes back."""
        job, comment = self.hit(rule)
        slurm.kill_node()
        slurm.wait_for("the node down", slurm.node_is_down)
        slurm.wait_until_pending(job, slurm.revive_node)
        self.note("node reboot", comment, f"Slurm requeued job {job}")

    def note(self, event: str, comment: str, outcome: str) -> None:
        """A row of the table, with what the next attempt finds; said on stderr at once."""
        log, of = self.folder / work_of(comment)[0], comment.removeprefix("rule_").replace("_wildcards", "")
        found = slurm.wait_for(f"cases that were kept, in {log}", lambda: kept(log))[0]
        self.rows.append((event, of, f"{outcome}: {found}"))
        print(f"{time.strftime('%H:%M:%S')} {of}: {event}: {outcome}: {found}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        alone, disturbed = root / "alone", root / "disturbed"
        for folder in (alone, disturbed):
            write_params(folder)
        started = time.monotonic()
        run = Disturbed(disturbed)
        try:
            run.cancel("validate")
            run.reboot("validate")
            run.cancel("predict")
            status = run.main.wait(slurm.PATIENCE_S)
            run.remember()
        finally:
            run.main.kill()
        took_s = time.monotonic() - started
        if slurm.snakemake(alone, *slurm.ALONE).wait() or status:
            sys.exit(f"snakemake failed, see {root}/*/snakemake.txt (kept with --folder)")
        wrong, n_files = differing(alone, disturbed), len(published(alone))
    print("| what happened | job | what came of it |", "|---|---|---|", sep="\n")
    for row in run.rows:
        print(f"| {' | '.join(row)} |")
    print("", f"| rule | {' | '.join(ASKED)} |", f"|---|{'---|' * len(ASKED)}", sep="\n")
    for rule, asked in run.requests.items():
        print(f"| {rule} | {' | '.join(asked.values())} |")
    print(f"\n{n_files} published files, {took_s:.0f} s. Differing from a run without Slurm:", end=" ")
    print(f"{', '.join(wrong) or 'nothing'}.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
