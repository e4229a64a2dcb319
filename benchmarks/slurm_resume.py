"""Five folds through profiles/slurm, disturbed in every way a cluster knows: the weights of undisturbed ones?

    make slurm                                      # the plugin, into .venv
    .ci/slurm_single_node.sh run .venv/bin/python benchmarks/slurm_resume.py

Needs root for the Slurm of one node that .ci/slurm_single_node.sh starts: the node has to die and come back. Prints a
table in Markdown; exits with 1 where a fold's final weights, best weights or metrics.csv differ in a bit.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

REPO = Path(__file__).resolve().parents[1]
CONFIGURATION = "3d_fullres"
# The profile, in the partition whose jobs may be preempted, and asking more often than a cluster would like.
SANDBOX_PROFILE = {"slurm-init-seconds-before-status-checks": 3, "seconds-between-status-checks": 3}
SANDBOX = Path(os.environ.get("SLURM_SANDBOX", "/tmp/segpipe_slurm"))
WANTS_BOTH_GPUS = ("--partition=high", "--gpus=2", "--mem=100", "--output=/dev/null", "--wrap=sleep 5")
ALONE = ("--cores", "2", "--resources", "gpu=2", "--set-threads", "train=1")  # two trainings at a time
PATIENCE_S = 900


def write_params(folder: Path, folds: list[int], epochs: int, iterations: int) -> None:
    """Small trainings on the CPU."""
    params = yaml.safe_load((REPO / "params.yaml").read_text())
    params["folds"] = folds
    params["phantoms"].update(n_train=10, n_test=0)
    params["plan"]["overrides"] |= {
        "spacing_mm": [3.0] * 3,
        "patch_size": [16] * 3,
        "batch_size": 2,
        "features_base": 4,
    }
    params["train"].update(epochs=epochs, iterations_per_epoch=iterations, val_iterations_per_epoch=2)
    params["runtime"].update(device="cpu", threads=1)
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    profile = yaml.safe_load((REPO / "profiles/slurm/profile.yaml").read_text()) | SANDBOX_PROFILE
    profile["default-resources"]["slurm_partition"] = "'low'"
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))


def targets(folds: list[int]) -> list[str]:
    """What the trainings of these folds make."""
    return [f"results/{CONFIGURATION}/fold_{fold}/checkpoint_final.pth" for fold in folds]


def snakemake(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start it there; what it says is appended to snakemake.txt."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile"), "--directory", str(folder)]
    with (folder / "snakemake.txt").open("a") as said:
        return subprocess.Popen([*command, *arguments], cwd=REPO, env=environment, stdout=said, stderr=said)


def through_slurm(folder: Path, folds: list[int], *arguments: str) -> "subprocess.Popen[bytes]":
    """Train these folds through the profile, in partition low."""
    return snakemake(folder, "--workflow-profile", str(folder / "profile.yaml"), *arguments, "--", *targets(folds))


def shell(*command: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def queue() -> dict[str, tuple[str, str]]:
    """job: (its state, the rule and wildcards it is of)."""
    rows = [line.split("|") for line in shell("squeue", "--noheader", "--format=%i|%T|%k").splitlines()]
    return {job: (state, comment) for job, state, comment in rows}


def wait_for(what: str, ready: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """What `ready` gives once it is something. Raises TimeoutError."""
    until = time.monotonic() + patience_s
    while not (value := ready()):
        if time.monotonic() > until:
            raise TimeoutError(f"{what} within {patience_s:.0f} s")
        time.sleep(0.5)
    return value


def epochs_done(folder: Path, fold: int) -> int:
    """Rows of the training's metrics.csv."""
    found = list((folder / f"results/{CONFIGURATION}/fold_{fold}/state").glob("*/metrics.csv"))
    return len(found[0].read_text().splitlines()) - 1 if found else 0


def in_the_middle(folder: Path, folds: list[int], epochs: int) -> tuple[str, int] | None:
    """(job, fold) of a running training with some epochs done and some to do."""
    for job, (state, comment) in queue().items():
        fold = next((fold for fold in folds if comment == f"rule_train_wildcards_{CONFIGURATION}_{fold}"), None)
        if state != "RUNNING" or fold is None or not has_trained(folder, job, fold):
            continue
        if 2 <= epochs_done(folder, fold) <= 0.6 * epochs:
            return job, fold
    return None


def has_trained(folder: Path, job: str, fold: int) -> bool:
    """Whether the job has finished an epoch since it was last started; Snakemake removes the log at each start."""
    log = folder / f"logs/train/{CONFIGURATION}/fold_{fold}.log"
    said = shell("squeue", "--noheader", "--format=%S", f"--jobs={job}").strip()
    if not said:  # it has ended since
        return False
    started = datetime.fromisoformat(said)
    return log.exists() and log.stat().st_mtime > started.timestamp() and "\nepoch" in log.read_text()


def restarts(job: str) -> int:
    """How often Slurm has started the job again."""
    said = shell("scontrol", "show", "job", job)
    return int(said.split("Restarts=")[1].split()[0])


def wait_until_pending(job: str, act: Callable[[], Any]) -> None:
    """Do something that takes a running job back into the queue, and wait until it is there or runs again."""
    before = restarts(job)
    act()
    wait_for(f"job {job} requeued", lambda: state_of(job) == "PENDING" or restarts(job) > before)


def state_of(job: str) -> str:
    """Of a job that has not ended. Stops this program where it has: its training was too short to be met at work."""
    jobs = queue()
    if job not in jobs:
        sys.exit(f"job {job} ended before anything could happen to it: more --iterations")
    return jobs[job][0]


def kill_node() -> None:
    """A power cut: the node's daemon, its step daemons and every process of a job, all by SIGKILL."""
    daemon = int((SANDBOX / "slurmd.pid").read_text())
    steps = [process for process in psutil.process_iter() if process.name() == "slurmstepd"]
    below = [child for step in steps for child in step.children(recursive=True)]
    os.kill(daemon, signal.SIGKILL)
    for process in [*steps, *below]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def revive_node() -> None:
    """The node boots."""
    host = os.uname().nodename.split(".")[0]
    subprocess.run(["slurmd", "-N", host, "-f", str(SANDBOX / "slurm.conf")], check=True)


def node_is_down() -> bool:
    """Whether the controller has noticed."""
    return "down" in shell("sinfo", "--noheader", "--format=%T")


def differing(one: Path, other: Path, folds: list[int]) -> list[str]:
    """Files of the trainings whose tensors, or whose bytes, are not the same."""
    names = [f"results/{CONFIGURATION}/fold_{fold}/{name}" for fold in folds for name in ("final", "best", "metrics")]
    return [name for name in names if not _same(one, other, name)]


def _same(one: Path, other: Path, name: str) -> bool:
    if name.endswith("metrics"):
        return (one / f"{name}.csv").read_bytes() == (other / f"{name}.csv").read_bytes()
    folder, _, which = name.rpartition("/")
    weights = [
        torch.load(root / folder / f"checkpoint_{which}.pth", weights_only=True)["network"] for root in (one, other)
    ]
    return weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[0]
    )


class Disturbed:
    """A run that is disturbed. rows : the events of the table, (what was done, to which folds, what came of it)."""

    def __init__(self, folder: Path, folds: list[int], epochs: int) -> None:
        self.folder, self.folds, self.epochs = folder, folds, epochs
        self.rows: list[tuple[str, str, str]] = []
        self.main = through_slurm(folder, folds)

    def hit(self) -> tuple[str, int]:
        """A training in its middle."""
        return wait_for("a training in its middle", lambda: in_the_middle(self.folder, self.folds, self.epochs))

    def note(self, event: str, fold: int | str, outcome: str) -> None:
        """A row of the table; said on stderr at once."""
        self.rows.append((event, str(fold), outcome))
        print(f"{time.strftime('%H:%M:%S')} fold {fold}: {event}: {outcome}", file=sys.stderr, flush=True)

    def cancel(self) -> None:
        """`scancel`: SIGTERM to all processes of the job, which does not come back."""
        job, fold = self.hit()
        at = epochs_done(self.folder, fold)
        shell("scancel", job)
        new = self.another_job(job, fold)
        self.note("scancel", fold, f"job {job} cancelled in epoch {at + 1}; Snakemake submitted job {new}")

    def run_out_of_time(self) -> None:
        """A time limit that comes near."""
        job, fold = self.hit()
        at = epochs_done(self.folder, fold)
        time.sleep(8)  # some work done: less than 10 s counts as a limit too short
        wait_until_pending(job, lambda: shell("scontrol", "update", f"JobId={job}", "TimeLimit=2"))
        shell("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        self.note("time limit", fold, f"SIGUSR1 after epoch {at} or later; job {job} requeued itself")

    def preempt(self) -> None:
        """A job of a higher partition that wants both GPUs."""
        job, fold = self.hit()
        at = epochs_done(self.folder, fold)
        wait_until_pending(job, lambda: shell("sbatch", *WANTS_BOTH_GPUS))
        self.note("preemption", fold, f"after epoch {at}; Slurm requeued job {job}")

    def reboot(self) -> None:
        """The node dies and is declared down, then comes back."""
        job, fold = self.hit()
        at = epochs_done(self.folder, fold)
        kill_node()
        since = time.monotonic()
        wait_for("the node down", node_is_down)
        down_s = time.monotonic() - since
        wait_until_pending(job, revive_node)
        self.note("node reboot", fold, f"after epoch {at}; down noticed after {down_s:.0f} s; Slurm requeued job {job}")

    def lose_snakemake(self) -> None:
        """SIGKILL of Snakemake itself while a job runs, and the same call again: a second job, beside the first."""
        job, fold = self.hit()
        self.main.kill()
        self.main.wait()
        for other in queue().keys() - {job}:  # so that there is a GPU for the second job
            shell("scancel", other)
        self.main = through_slurm(self.folder, [fold])
        second = self.another_job(job, fold)
        wait_for(f"job {second} over or started again", lambda: second not in queue() or restarts(second) > 0)
        found = "found the fold locked and requeued itself" if restarts(second) else "found it finished"
        if self.main.wait(PATIENCE_S):
            raise RuntimeError(f"snakemake failed, see {self.folder}/snakemake.txt")
        self.note("SIGKILL of snakemake", fold, f"job {job} went on; started again: job {second} {found}")
        self.main = through_slurm(self.folder, self.folds)

    def another_job(self, job: str, fold: int) -> str:
        """The job that Snakemake submits for this fold beside, or after, this one."""
        comment = f"rule_train_wildcards_{CONFIGURATION}_{fold}"
        return wait_for(
            f"another job for fold {fold}",
            lambda: next((other for other, (_, of) in queue().items() if of == comment and other != job), None),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folds = [0, 1, 2, 3, 4]
        undisturbed, disturbed = root / "undisturbed", root / "disturbed"
        for folder in (undisturbed, disturbed):
            write_params(folder, folds, arguments.epochs, arguments.iterations)
        started = time.monotonic()
        run = Disturbed(disturbed, folds, arguments.epochs)
        for event in (run.cancel, run.run_out_of_time, run.preempt, run.reboot, run.lose_snakemake):
            event()
        status = run.main.wait(PATIENCE_S)
        took_s = time.monotonic() - started
        if snakemake(undisturbed, *ALONE, "--", *targets(folds)).wait() or status:
            sys.exit(f"snakemake failed, see {root}/*/snakemake.txt (kept with --folder)")
        wrong = differing(undisturbed, disturbed, folds)
    print("| what happened | fold | what came of it |", "|---|---|---|", sep="\n")
    for row in run.rows:
        print(f"| {' | '.join(row)} |")
    print(
        f"\n{len(folds)} folds of {arguments.epochs} epochs, {took_s:.0f} s with all of it. Differing from a run",
        end=" ",
    )
    print(f"without Slurm and without disturbance: {', '.join(wrong) or 'nothing'}.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
