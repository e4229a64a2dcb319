"""`snakemake search` as it is called: two workers side by side, one of them killed and started once more."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

from conftest import Project, wait_until

TRIALS, EPOCHS = 4, 6
CALL = ("search", "--resources", "gpu=2")
ENDED = {1: "complete", 2: "pruned", 3: "fail"}  # in Optuna's journal


def ended(project: Project) -> dict[int, str]:
    """State of the trials that have ended, as the journal says at this moment."""
    found = {}
    for path in project.folder.glob("results/search/*/journal.log"):
        entries = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        found = {
            one["trial_id"]: ENDED[one["state"]] for one in entries if one["op_code"] == 6 and one["state"] in ENDED
        }
    return found


def number(path: Path) -> int:
    """7 of a path with trial_7."""
    return int(next(part for part in path.parts if part.startswith("trial_"))[6:])


def in_the_middle(project: Project) -> list[tuple[int, int]]:
    """Trials that have a checkpoint and not all epochs, and the processes that train them."""
    found = []
    for latest in project.folder.glob("results/search/*/trial_*/3d_fullres/fold_0/state/*/latest.pth"):
        lines = len((latest.parent / "metrics.csv").read_text().splitlines())
        if number(latest) not in ended(project) and lines < EPOCHS - 1:
            found.append((number(latest), int((latest.parents[1] / ".lock").read_text().split()[1].rstrip(":"))))
    return found


def rows(project: Project) -> list[dict[str, str]]:
    with (project.folder / "results/search/trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_of_which_a_worker_is_killed_loses_no_trial(copy: Project, killed: list[int]) -> None:
    copy.set("train.epochs", EPOCHS)
    copy.set("train.iterations_per_epoch", 6)
    copy.set("search.trials", TRIALS)
    process = copy.start(copy.command(*CALL))
    killed.append(process.pid)
    victims: list[tuple[int, int]] = []

    def has_a_victim() -> bool:
        assert process.poll() is None, copy.said.read_text()
        victims[:] = in_the_middle(copy) if ended(copy) else []
        return bool(victims)

    wait_until(has_a_victim, 240)
    victim, pid = victims[0]
    os.kill(pid, signal.SIGKILL)
    before = ended(copy)
    assert process.wait(240) == 0, copy.said.read_text()
    said = copy.said.read_text()
    assert all(said.index(f"search: worker {worker}") < said.index("all of") for worker in (0, 1))  # side by side
    assert [int(row["number"]) for row in rows(copy)] == list(range(TRIALS))
    assert before
    assert before.items() <= {int(row["number"]): row["state"] for row in rows(copy)}.items()
    for log in copy.folder.glob("results/search/*/trial_*/3d_fullres/fold_0/state/*/train.log"):
        begun = re.findall(r"fold 0: (starts|continues)", log.read_text())
        assert begun == (["starts", "continues"] if number(log) == victim else ["starts"])

    shutil.copy(copy.folder / "results/search/best_params.yaml", copy.folder / "params.yaml")
    copy.set("report.cases", 2)
    assert copy.planned("search") == {"search": 1}  # neither searches anew: the table is written again
    copy.set("search.seed", 1)
    assert copy.planned("search") == {"search_worker": 2, "search": 1}


FAILS = """
from pathlib import Path
def fail(training, row):
    with open("noted", "a") as file:
        file.write("x")
    if 2 < Path("noted").stat().st_size < 5:
        raise RuntimeError("out of luck")
"""


def test_a_worker_that_fails_twice_leaves_the_table(copy: Project) -> None:
    (copy.folder / "own.py").write_text(FAILS)
    for key, value in {
        "train.callbacks": ["own:fail"],
        "train.epochs": 2,
        "search.trials": 1,
        "search.workers": 1,
    }.items():
        copy.set(key, value)
    copy.snakemake("search")
    copy.set("search.trials", 3)
    said = copy.snakemake("search", ok=False)
    assert "removed, what it was made of is gone: results/search/best_params.yaml" in said
    assert [(row["state"], row["reason"][:25]) for row in rows(copy)] == [
        ("complete", ""),
        ("fail", "RuntimeError: out of luck"),
    ]
    assert copy.planned("search") == {"search_worker": 1, "search": 1}


def test_a_worker_that_fails_before_it_has_a_study_leaves_no_table_of_another_one(copy: Project) -> None:
    other = copy.folder / "results/search/0123456789abcdef/trials.csv"
    other.parent.mkdir(parents=True)
    other.write_text("number,state\n0,complete\n")
    (copy.folder / "data/preprocessed/Dataset000_Phantoms/splits.json").write_text("[")
    copy.set("search.workers", 1)
    said = copy.snakemake("search", ok=False)
    assert "Error in rule search_worker" in said
    assert "as the trials are now" not in said
    assert not (copy.folder / "results/search/trials.csv").exists()


def test_a_search_that_cannot_be_stops_who_asks_for_it_before_anything_runs(fresh: Project) -> None:
    fresh.set("search.ranges", {"train.optimizer.learning_rate": {"low": 0.1, "high": 0.2}})
    fresh.set("search.measure", "dice_kidney")
    for targets in ((), ("results/fold_0/summary.json",)):
        assert fresh.planned(*targets)["train"] >= 1
    for call in (("search", "--dry-run"), ("search",)):
        said = fresh.snakemake(*call, ok=False)
        assert said.count("params.yaml: search: 2 problems") == 1
        assert "did you mean 'train.optimiser.learning_rate'?" in said
        assert "did you mean 'dice_kidneys'?" in said
        assert "InputFunctionException" not in said
        assert "Traceback" not in said
    assert not (fresh.folder / "data").exists()


def test_a_search_follows_from_the_modules_that_it_may_choose(fresh: Project) -> None:
    (fresh.folder / "losses.py").touch()
    fresh.set("search.ranges", {"train.loss.custom": [None, "losses:Loss"]})
    assert "losses.py" in fresh.snakemake("search", "--filegraph")
    assert "losses.py" not in fresh.snakemake("--filegraph")


def test_a_failed_job_takes_what_was_made_of_it_with_a_wrong_search_as_well(copy: Project) -> None:
    copy.set("search.measure", "dice_spleen")
    copy.set("splits.n_folds", 9)  # more than there are cases
    summary = copy.folder / "results/fold_0/summary.json"
    assert summary.exists()
    said = copy.snakemake("results/fold_0/summary.json", ok=False)
    assert "removed, what it was made of is gone: results/fold_0/summary.json" in said
    assert not summary.exists()
