"""Several ranks: what they tell each other, that a job shared by them is the job of one, how one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fellows
import psutil
import pytest
import torch
from conftest import Project, environment, tiny_params, wait_until

TESTS = Path(__file__).parent
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank of each fellowship made, and what one alone made: {name: (alone, [rank, ...])}."""
    out = tmp_path_factory.mktemp("fellows")
    command = [sys.executable, str(TESTS / "fellows.py"), str(out)]
    done = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def of(results, index, n):
    return [torch.load(results / f"{index}.{rank}", weights_only=True) for rank in range(n)]


@pytest.fixture(params=fellows.FELLOWSHIPS)
def shared(request, results):
    """(alone, [rank, ...]) of a fellowship."""
    index = list(fellows.FELLOWSHIPS).index(request.param)
    alone = torch.load(results / f"{index}.alone", weights_only=True)
    return alone, of(results, index, fellows.FELLOWSHIPS[request.param].n)


def test_the_ranks_see_the_samples_of_one(shared):
    alone, ranks = shared
    assert sorted(sample for rank in ranks for sample in rank["seen"]) == sorted(alone["seen"])
    assert all(len(rank["seen"]) < len(alone["seen"]) for rank in ranks)


def test_the_weights_are_those_of_one(shared):
    alone, ranks = shared
    for name in ("weights", "averaged"):
        for rank in ranks:
            if alone[name] is not None:
                torch.testing.assert_close(rank[name], alone[name], **ROUNDING)


def test_all_ranks_have_the_same_weights_and_rows(shared):
    _, (first, *others) = shared
    for rank in others:
        assert torch.equal(rank["weights"], first["weights"])
        assert rank["rows"] == first["rows"]


def test_the_rows_are_those_of_one(shared):
    alone, (first, *_) = shared
    for row, expected in zip(first["rows"], alone["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("n", [2, 3])
def test_what_ranks_tell_each_other(results, n):
    said = of(results, f"talked{n}", n)
    items = list("abcde")
    assert [number for one in said for number in one["share"]] == list(range(5))
    assert {len(one["turns"]) for one in said} == {-(-5 // n)}
    assert [one for turn in zip(*(rank["turns"] for rank in said), strict=True) for one in turn if one] == items
    assert all(one["collected"] == items for one in said)
    assert all(one["same"] == "from 0" for one in said)
    assert all(one["highest"] == 15 * (n - 1) for one in said)
    assert all(one["total"] == [n, sum(range(n))] for one in said)
    assert all(one["gpus"] == ([f"GPU-{rank}" for rank in range(n)],) * 2 for one in said)
    kinds = ", ".join(f"rank {rank} on {'cpu' if rank else 'cuda'}" for rank in range(n))
    for said_to_rank, backend, seconds in (one["kinds"] for one in said):
        assert (
            f"different kinds of devices\n  where:    params.yaml: runtime.num_gpus\n  found:    {kinds}"
            in said_to_rank
        )
        assert (backend, seconds) == ("nccl", [3600])
    assert all(one["parallel"] == ["met", "built"] for one in said)
    assert [one["order"] for one in said] == list(range(n))


def test_all_ranks_meet(results):
    """Of eight: where two or four are, a broadcast would do."""
    assert of(results, "late", 8) == [True] * 8


# through torchrun, as Snakemake starts it

MODEL = "results/3d_fullres/fold_0/checkpoint_final.pth"
SUMMARY = "results/fold_0/summary.json"
EPOCHS = 12


def shared_project(finished: Project, folder: Path, n: int = 2, **train) -> Project:
    """The finished project up to preprocessing, with a job for `n` ranks."""
    project = Project(folder)
    for name in ("data", ".snakemake"):
        shutil.copytree(finished.folder / name, folder / name)
    settings = tiny_params()
    settings["train"].update(precision="off", **train)
    settings["runtime"]["num_gpus"] = n
    project.write(settings)
    return project


def weights_of(project: Project) -> dict[str, torch.Tensor]:
    return torch.load(project.folder / MODEL, weights_only=True)["network"]


def rows_of(project: Project) -> list[str]:
    return (project.state(0) / "metrics.csv").read_text().splitlines()


def test_a_fold_shared_by_two_ranks_is_the_fold_of_one(finished, tmp_path):
    """Trained, validated and, with imagesTs, predicted: the same samples, cases and numbers."""
    goals = [SUMMARY, "results/predictions"]
    made = {}
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        project = shared_project(finished, tmp_path / str(n), n)
        project.set("folds", [0])
        project.set("predict.postprocess", False)
        project.snakemake(*goals)
        summary = json.loads((project.folder / SUMMARY).read_text())
        predicted = sorted(path.name for path in (project.folder / "results/predictions").glob("*.nii.gz"))
        made[n] = weights_of(project), summary["foreground_mean"], predicted
        (run,) = project.folder.glob("results/3d_fullres/fold_0/state/*/run.json")
        assert json.loads(run.read_text())["ranks"] == n
    torch.testing.assert_close(made[2][0], made[1][0], **ROUNDING)
    assert made[2][1] == pytest.approx(made[1][1], abs=1e-3)
    assert made[2][2] == made[1][2] != []


def test_more_ranks_than_samples_are_refused(finished, tmp_path):
    project = shared_project(finished, tmp_path, 3)
    said = project.snakemake(MODEL, ok=False)
    assert "more GPUs than a batch has samples" in said
    assert "at most 2" in said
    assert "3 ranks of" not in said  # none was started
    assert "exit status 2" in said
    assert "Traceback" not in said


def test_ranks_end_with_a_launcher_that_dies_before_they_have_met(finished, tmp_path, killed):
    project = shared_project(finished, tmp_path)
    snakemake = project.start(project.command(MODEL))
    killed.append(snakemake.pid)

    def found() -> list[psutil.Process]:
        children = psutil.Process(snakemake.pid).children(recursive=True)
        return [one for one in children if "LOCAL_RANK" in one.environ()]

    wait_until(lambda: len(found()) == 2)
    ranks = found()
    ranks[0].parent().kill()
    _, alive = psutil.wait_procs(ranks, 40)
    assert not alive


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    project = shared_project(finished, tmp_path_factory.mktemp("undisturbed"), epochs=EPOCHS)
    project.snakemake(MODEL)
    return project


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    """The rank processes of a running training, the first one first."""
    return sorted(launcher.children(), key=lambda one: int(one.environ()["LOCAL_RANK"]))


def launched(project: Project, killed: list[int], epochs: int) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """Start snakemake, and give the launcher of the ranks when they have done some epochs more."""
    snakemake = project.start(project.command(MODEL))
    killed.append(snakemake.pid)
    before = len(rows_of(project)) if list(project.folder.glob("results/*/*/state/*/metrics.csv")) else 0

    def trained() -> bool:
        return bool(list(project.folder.glob("results/*/*/state/*/metrics.csv"))) and len(rows_of(project)) >= (
            before + epochs
        )

    wait_until(trained)
    children = psutil.Process(snakemake.pid).children(recursive=True)
    (launcher,) = [one for one in children if "train.py" in " ".join(one.cmdline()) and is_launcher(one)]
    return snakemake, launcher


def is_launcher(process: psutil.Process) -> bool:
    return any("train.py" in " ".join(child.cmdline()) for child in process.children())


def test_a_killed_rank_ends_the_job_with_the_cause_and_a_rerun_goes_on(finished, undisturbed, tmp_path, killed):
    project = shared_project(finished, tmp_path, epochs=EPOCHS)
    snakemake, launcher = launched(project, killed, 2)
    victim = ranks_of(launcher)[1]
    victim.kill()
    assert snakemake.wait(300) != 0
    said = project.said.read_text()
    assert f"rank 1 of 2, pid {victim.pid}" in said
    assert "found:    SIGKILL" in said

    snakemake, launcher = launched(project, killed, 2)
    ranks = ranks_of(launcher)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):  # the first counts, and no other ends the launcher
        launcher.send_signal(number)
        time.sleep(0.05)
    snakemake.wait(300)
    assert not any(rank.is_running() for rank in ranks)
    assert "SIGUSR1, saved after step" in project.said.read_text()
    assert f"exit status {128 + signal.SIGUSR1}" in project.said.read_text()

    snakemake, launcher = launched(project, killed, 2)
    ranks = ranks_of(launcher)
    os.killpg(snakemake.pid, signal.SIGKILL)  # snakemake and launcher; the ranks are told by the kernel
    _, alive = psutil.wait_procs(ranks, 30)
    assert not alive

    project.snakemake(MODEL)
    assert rows_of(project) == rows_of(undisturbed)
    before, after = weights_of(undisturbed), weights_of(project)
    assert all(torch.equal(before[name], after[name]) for name in before)
