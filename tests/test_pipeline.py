"""Snakemake itself on a tiny dataset: what runs, what does not run again, and what survives a kill."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, Project, run_warm, tiny_params, wait_until
from nibabel.nifti1 import Nifti1Image
from volumes import nnunet_dataset

from segpipe.data import dataset

FOLD_0, FOLD_1 = (f"results/fold_{fold}/summary.json" for fold in (0, 1))
MODEL = "results/3d_fullres/fold_0/checkpoint_final.pth"
LONGER = 20


def test_a_fresh_folder_plans_every_job(fresh: Project) -> None:
    once = ["phantoms", "check", "fingerprint", "plan", "splits", "preprocess"]
    once += ["crossval", "calibrate", "choose", "postprocess", "predict", "volumes", "report"]
    assert fresh.planned() == {**dict.fromkeys(once, 1), "train": 2, "validate": 2, "ensemble": 2}


def test_one_fold_plans_only_what_it_needs(fresh: Project) -> None:
    needed = ["phantoms", "check", "fingerprint", "plan", "splits", "preprocess", "train", "validate", "ensemble"]
    assert fresh.planned(FOLD_0) == dict.fromkeys(needed, 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochz", 3, "did you mean 'epochs'?"),
        ("train.epochs", "many", "params.yaml: train.epochs"),
        ("dataset", "data/raw/Dataset001_Missing", "data/raw/Dataset001_Missing does not exist"),
    ],
)
def test_bad_settings_stop_before_anything_runs(fresh: Project, key: str, value: object, message: str) -> None:
    fresh.set(key, value)
    output = fresh.snakemake(ok=False)
    assert message in output
    assert "Traceback" not in output
    assert not (fresh.folder / "data").exists()


def test_settings_that_do_not_fit_are_named_together_before_anything_is_removed(copy: Project) -> None:
    before = contents(copy.folder)
    copy.set("train.loss.class_weights", {"livr": 2.0})
    copy.set("train.best.fitness", {"dice_kidney": 1.0})
    copy.set("train.pretrained_weights", "absent.pth")
    copy.set("train.callbacks", ["no_such_module:thing"])
    before[Path("params.yaml")] = (copy.folder / "params.yaml").read_bytes()
    output = copy.snakemake("--dry-run", ok=False)
    assert "params.yaml does not fit: 4 problems" in output
    for said in ("did you mean 'liver'?", "did you mean 'dice_kidneys'?", "absent.pth: no such file", "no such module"):
        assert said in output
    assert "Traceback" not in output
    assert contents(copy.folder) == before


def test_weights_that_the_training_replaces_are_refused(copy: Project) -> None:
    copy.set("train.pretrained_weights", MODEL)
    output = copy.snakemake(ok=False)
    assert f"found:    {MODEL}\n" in output
    assert "cure:     copy it, or name state/<digest>/final.pth beside it, which stays" in output
    assert (copy.folder / MODEL).exists()
    (kept,) = copy.folder.glob("results/3d_fullres/fold_0/state/*/final.pth")
    copy.set("train.pretrained_weights", str(kept.relative_to(copy.folder)))  # as it says
    assert copy.planned(MODEL) == {"train": 1}


def test_an_edit_of_a_named_module_trains_again(copy: Project) -> None:
    (copy.folder / "own.py").write_text("def note(training, row): ...\n")
    copy.set("train.callbacks", ["own:note"])
    copy.snakemake("--touch", MODEL)  # as if it had been trained with it
    (copy.folder / "other.py").write_text("def note(training, row): ...\n")
    assert copy.planned(MODEL) == {}
    (copy.folder / "own.py").write_text("def note(training, row): return None\n")
    assert copy.planned(MODEL) == {"train": 1}


def test_a_malformed_dataset_json_is_explained_by_the_check(fresh: Project) -> None:
    raw = fresh.folder / "data/raw/Dataset007_Own"
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text("{")
    fresh.set("dataset", "data/raw/Dataset007_Own")
    output = fresh.snakemake("--retries=2", "data/preprocessed/Dataset007_Own/cases.json", ok=False)
    assert "Trying to restart" not in output
    assert "dataset.json is not JSON" in output[output.index("logs/check.log ends with") :]
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{}", '{"labels": []}', '{"labels": {"liver": "x"}, "channel_names": {"0": "CT"}}', "\xff"],
)
def test_labels_of_what_is_no_dataset_json_are_unknown(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content, encoding="latin-1")
    assert dataset.labels_of(tmp_path) is None


def test_settings_on_the_command_line_are_refused(fresh: Project) -> None:
    assert "edit params.yaml" in fresh.snakemake("--dry-run", "--config", "dataset=elsewhere", ok=False)


def test_without_test_images_nothing_is_predicted(fresh: Project) -> None:
    fresh.set("phantoms.n_test", 0)
    assert "predict" not in fresh.planned()


def test_fewer_phantoms_leave_none_of_the_others_behind(fresh: Project) -> None:
    cases = "data/preprocessed/Dataset000_Phantoms/cases.json"
    for n_train in (6, 5):
        fresh.set("phantoms.n_train", n_train)
        fresh.snakemake(cases)
        assert len(read_json(fresh.folder / cases)["training"]) == n_train


MODULE = f"""
module segpipe:
    snakefile: "{REPO}/workflow/Snakefile"
use rule * from segpipe as sp_*
print("in no queue:", sorted(workflow._localrules))
"""


def test_a_dataset_of_ones_own_is_listed_not_generated(finished: Project, fresh: Project) -> None:
    raw = fresh.folder / "elsewhere/Dataset007_Own"
    shutil.copytree(finished.folder / "data/raw/Dataset000_Phantoms", raw)
    (raw / "imagesTr/._hidden_0000.nii.gz").touch()
    fresh.set("dataset", "elsewhere/Dataset007_Own")
    assert "phantoms" not in fresh.planned()
    splits = "data/preprocessed/Dataset007_Own/splits.json"
    fresh.snakemake(splits)
    for path in (raw / "imagesTr").iterdir():
        path.touch()
    assert fresh.planned(splits) == {}  # newer files, the same contents
    label = raw / "labelsTr/phantom_000.nii.gz"
    date_ns = label.stat().st_mtime_ns
    label.write_bytes((raw / "labelsTr/phantom_001.nii.gz").read_bytes())
    os.utime(label, ns=(date_ns - 10**12, date_ns - 10**12))
    said = fresh.snakemake("--dry-run", splits)
    assert "not as the check read them: labelsTr/phantom_000.nii.gz; 1 in all" in said
    assert fresh.planned(splits) == {"check": 1, "splits": 1}  # another content, an older file

    snakefile = fresh.folder / "Snakefile"
    snakefile.write_text(MODULE)
    said = run_warm(Project(fresh.folder, snakefile).command("--dry-run", splits), fresh.folder)
    assert re.findall(r"^(sp_\w+) +1$", said, re.M)[:2] == ["sp_check", "sp_splits"]
    assert "in no queue: ['sp_crossval', 'sp_plan', 'sp_search', 'sp_splits']" in said


def test_a_list_of_cases_that_is_damaged_is_named_before_anything_runs(fresh: Project) -> None:
    nnunet_dataset(fresh.folder / "data/raw/Dataset007_Own")
    cases = fresh.folder / "data/preprocessed/Dataset007_Own/cases.json"
    cases.parent.mkdir(parents=True)
    cases.write_text("{")
    fresh.set("dataset", "data/raw/Dataset007_Own")
    output = fresh.snakemake("--dry-run", ok=False)
    assert "cure:     delete data/preprocessed/Dataset007_Own/cases.json; the next call checks" in output
    assert "InputFunctionException" not in output
    assert "Traceback" not in output
    cases.unlink()
    assert fresh.planned()["check"] == 1


def test_the_run_wrote_what_it_promises(finished: Project) -> None:
    folder = finished.folder / "results"
    for fold in (0, 1):
        for name in ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv", "progress.png"):
            assert (folder / f"3d_fullres/fold_{fold}" / name).stat().st_size > 0
        validation = folder / f"3d_fullres/fold_{fold}/validation_final"
        cases = sorted(path.name.removesuffix(".npz") for path in (validation / "softmax").glob("*.npz"))
        assert cases == sorted(name.removesuffix(".nii.gz") for name in names(validation / "segmentations"))
        assert len(cases) in (2, 3)
        assert len(read_json(folder / f"fold_{fold}/summary.json")["metric_per_case"]) == len(cases)
    assert len(read_json(folder / "crossval/summary.json")["metric_per_case"]) == 5
    assert names(folder / "predictions") >= {"phantom_005.nii.gz"}


def test_a_second_run_has_nothing_to_do(finished: Project) -> None:
    assert "Nothing to be done" in finished.snakemake()


def test_runtime_settings_redo_nothing(copy: Project) -> None:
    copy.set("runtime.prefetch", 1)
    copy.set("runtime.threads", 2)
    assert copy.planned() == {}


def test_settings_of_the_report_make_the_page_again_and_nothing_else(copy: Project) -> None:
    before = (copy.folder / "results/report.html").read_text()
    copy.set("report.cases", 1)
    assert copy.planned() == {"report": 1}
    copy.snakemake()
    assert "median:" in before
    assert "median:" not in (copy.folder / "results/report.html").read_text()


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("phantoms.seed", 1, "phantoms"),
        ("check.geometry_tolerance_mm", 0.2, "check"),
        ("plan.gpu_memory_gb", 9.0, "plan"),
        ("splits.seed", 1, "splits"),
        ("train.optimiser.learning_rate", 0.02, "train"),
        ("validate.mirroring", True, "validate"),
    ],
)
def test_a_setting_redoes_its_rule_and_what_follows(copy: Project, key: str, value: object, first: str) -> None:
    order = ["phantoms", "check", "fingerprint", "plan", "splits", "preprocess", "train", "validate", "ensemble"]
    copy.set(key, value)
    planned = copy.planned()
    assert planned[first] > 0
    assert not [rule for rule in order[: order.index(first)] if rule in planned]
    assert planned["ensemble"] == 2


def test_a_plan_and_folds_made_elsewhere_are_taken_and_count_by_their_content(fresh: Project) -> None:
    plan, splits = (f"data/preprocessed/Dataset000_Phantoms/{name}.json" for name in ("plan", "splits"))
    given, folds = fresh.folder / "given.json", fresh.folder / "folds.json"
    content = (REPO / "tests/data/nnunet_plans_file.json").read_text()
    given.write_text(content)
    fresh.set("plan.overrides", dict.fromkeys(fresh.params()["plan"]["overrides"]))
    fresh.set("plan.file", "given.json")
    cases = [f"phantom_{number:03d}" for number in range(fresh.params()["phantoms"]["n_train"])]
    n_folds = fresh.params()["splits"]["n_folds"]
    drawn = [
        {"train": [c for c in cases if c not in cases[k::n_folds]], "val": cases[k::n_folds]} for k in range(n_folds)
    ]
    folds.write_text(json.dumps(drawn))
    fresh.set("splits.file", "folds.json")
    fresh.snakemake(plan, splits)
    assert read_json(fresh.folder / plan)["configurations"]["3d_fullres"]["architecture"] == "resenc"
    assert read_json(fresh.folder / splits) == drawn
    given.write_text(content.replace("nnUNetPlannerResEncM", "Mine"))
    folds.write_text(json.dumps(drawn[::-1]))
    for file in (given, folds):
        os.utime(file, (0, 0))  # as a file copied with its time
    assert fresh.planned(plan, splits) == {"plan": 1, "splits": 1}


def test_another_checkpoint_only_validates_and_what_follows(copy: Project) -> None:
    copy.set("validate.checkpoint", "best")
    once = ["crossval", "calibrate", "choose", "postprocess", "predict", "volumes", "report"]
    assert copy.planned() == {"validate": 2, "ensemble": 2, **dict.fromkeys(once, 1)}
    assert copy.planned(FOLD_0) == {"validate": 1, "ensemble": 1}
    copy.snakemake(FOLD_0)
    fold = copy.folder / "results/3d_fullres/fold_0"
    assert (fold / "validation_final/summary.json").exists()
    assert (fold / "validation_best/summary.json").exists()
    copy.set("validate.checkpoint", "final")
    assert copy.planned(FOLD_0) == {"ensemble": 1}


def test_two_configurations_are_ensembled_from_their_softmax(copy: Project) -> None:
    copy.set("configurations", ["2d", "3d_fullres"])
    copy.set("folds", [0])
    copy.set("predict.models", "best")
    crossval = "results/crossval/summary.json"
    copy.snakemake(crossval)
    results = copy.folder / "results"
    choice = read_json(results / "crossval/model_choice.json")
    assert [one["members"] for one in choice["candidates"]] == [["2d"], ["3d_fullres"], ["2d", "3d_fullres"]]
    after = read_json(copy.folder / crossval)["postprocessed"]
    assert (after["models"], after["members"]) == ("best", choice["chosen"])
    assert after["rules"] == read_json(results / "crossval/postprocessing.json")["rules"]
    assert sorted(read_json(results / "fold_0/summary.json")["members"]) == ["2d", "3d_fullres"]
    for file in names(results / "fold_0/segmentations"):
        case = file.removesuffix(".nii.gz")
        members = results.glob(f"*/fold_0/validation_final/softmax/{case}.npz")
        mean = np.mean([np.load(path)["probabilities"].astype(np.float32) for path in members], axis=0)
        written = np.asarray(Nifti1Image.from_filename(results / "fold_0/segmentations" / file).dataobj)
        assert np.array_equal(written.T, mean.argmax(0))


def test_a_failed_fold_leaves_no_stale_result(copy: Project) -> None:
    """Snakemake takes the downstream results of a failed job for current (its issue 1978)."""
    before = {fold: trained_as(copy, fold) for fold in (0, 1)}
    copy.set("train.optimiser.learning_rate", 0.02)
    block = copy.folder / "results/3d_fullres/fold_1/state/.lock"
    block.unlink()
    block.mkdir()  # the training of fold 1 cannot lock its state
    output = copy.snakemake(ok=False)
    assert "results/fold_1/summary.json" in re.findall(r"removed, .*: (.*)", output)
    assert "results/crossval/summary.json" in re.findall(r"removed, .*: (.*)", output)
    block.rmdir()
    copy.snakemake(FOLD_0, FOLD_1)
    after = {fold: trained_as(copy, fold) for fold in (0, 1)}
    assert after[0] == after[1] != before[0] == before[1]


def test_a_failure_after_a_kill_leaves_no_stale_result(copy: Project) -> None:
    """A killed run has removed the old model already, so the failing run after it never saw one."""
    copy.set("train.optimiser.learning_rate", 0.02)
    for path in (copy.folder / "results/3d_fullres/fold_1").glob("checkpoint_*"):
        path.unlink()
    block = copy.folder / "results/3d_fullres/fold_1/state/.lock"
    block.unlink()
    block.mkdir()
    copy.snakemake(ok=False)
    block.rmdir()
    copy.snakemake(FOLD_0, FOLD_1)
    assert trained_as(copy, 0) == trained_as(copy, 1)


def test_every_result_goes_when_its_input_went(copy: Project) -> None:
    """The guard follows the whole chain, folders included."""
    copy.set("splits.n_folds", 9)  # more than there are cases
    output = copy.snakemake(ok=False)
    assert "expected: at least 9" in output[output.index("logs/check.log ends with") :]
    results = [path for path in (copy.folder / "results").rglob("*") if path.is_file() and "state" not in path.parts]
    assert results == []
    assert list((copy.folder / "results").rglob("state/*/latest.pth"))


def test_results_without_their_inputs_are_left_alone(copy: Project) -> None:
    """Somebody else's results, copied without data and state, survive a failure of the check."""
    for name in ("data/preprocessed", ".snakemake"):
        shutil.rmtree(copy.folder / name)
    (copy.folder / "data/raw/Dataset000_Phantoms/labelsTr/phantom_000.nii.gz").write_text("broken")
    copy.set("splits.n_folds", 9)
    copy.snakemake("data/preprocessed/Dataset000_Phantoms/splits.json", ok=False)
    assert (copy.folder / FOLD_0).exists()
    assert (copy.folder / MODEL).exists()


@pytest.fixture(scope="module")
def uninterrupted(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A longer training that nobody disturbed."""
    project = longer(finished, tmp_path_factory.mktemp("uninterrupted"))
    project.snakemake(MODEL)
    return project


@pytest.mark.parametrize("victim", ["the training", "both"])
def test_a_killed_training_continues(
    finished: Project, uninterrupted: Project, tmp_path: Path, killed: list[int], victim: str
) -> None:
    project = longer(finished, tmp_path)
    snakemake = project.start(project.command(MODEL))
    killed.append(snakemake.pid)
    pid = wait_for_epochs(project)
    if victim == "the training":
        os.kill(pid, signal.SIGKILL)
    else:
        os.killpg(snakemake.pid, signal.SIGKILL)
    assert snakemake.wait() != 0
    done = len(epochs(project))
    assert 3 <= done < LONGER
    output = project.snakemake(MODEL)
    continued = re.search(r"continues after epoch (\d+)", output)
    assert continued
    assert done - 1 <= int(continued[1]) <= done
    assert_same_training(project, uninterrupted)


def test_a_training_that_is_asked_to_end_is_started_again(
    finished: Project, uninterrupted: Project, tmp_path: Path, killed: list[int]
) -> None:
    """It saves where it is and fails in a way that `--retries` answers with another start."""
    project = longer(finished, tmp_path)
    snakemake = project.start(project.command(MODEL, "--retries", "1"))
    killed.append(snakemake.pid)
    os.kill(wait_for_epochs(project), signal.SIGTERM)
    assert snakemake.wait() == 0
    output = project.said.read_text()
    saved = re.search(r"SIGTERM, saved after step (\d+); a rerun continues there", output)
    assert saved
    assert 6 <= int(saved[1]) < 2 * LONGER
    assert re.search(r"continues after epoch \d+", output)
    assert read_json(project.state(0) / "run.json")["resumed_after_step"] == int(saved[1])
    assert_same_training(project, uninterrupted)


def test_an_orphaned_training_is_waited_for(
    finished: Project, uninterrupted: Project, tmp_path: Path, killed: list[int]
) -> None:
    project = longer(finished, tmp_path)
    snakemake = project.start(project.command(MODEL))
    killed.append(snakemake.pid)
    pid = wait_for_epochs(project)
    os.kill(snakemake.pid, signal.SIGKILL)
    snakemake.wait()
    done = len(epochs(project))
    wait_until(lambda: len(epochs(project)) > done)
    os.kill(pid, signal.SIGSTOP)  # holds its lock for as long as the second call needs to get there
    second = project.start(project.command(MODEL))
    killed.append(second.pid)
    wait_until(lambda: "is being written by" in project.said.read_text())
    os.kill(pid, signal.SIGCONT)
    assert second.wait() == 0
    output = project.said.read_text()
    assert re.search(rf"is being written by pid {pid}: .*epoch \d+", output)
    assert not re.search("continues after|starts", output)  # nothing was left to do
    assert "published from" in output
    assert_same_training(project, uninterrupted)


def test_python_is_the_one_that_runs_snakemake(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.venv/bin/snakemake` works where nothing is activated: no `python` of another environment gets in."""
    other = fresh.folder / "other"
    other.mkdir()
    (other / "python").write_text("#!/bin/sh\nexit 3\n")
    (other / "python").chmod(0o755)
    monkeypatch.setattr("conftest.INTERPRETER", other)
    fresh.snakemake("data/raw/Dataset000_Phantoms/dataset.json")


def test_the_workflow_stands_alone(fresh: Project) -> None:
    """The Snakemake catalogue starts from workflow/Snakefile."""
    assert Project(fresh.folder, REPO / "workflow/Snakefile").planned() == fresh.planned()


def longer(finished: Project, folder: Path) -> Project:
    """The finished project up to preprocessing, and a training that takes long enough to be killed."""
    project = Project(folder)
    for name in ("data", ".snakemake"):
        shutil.copytree(finished.folder / name, folder / name)
    project.write(tiny_params())
    project.set("train.epochs", LONGER)
    return project


def epochs(project: Project) -> list[dict[str, str]]:
    """The finished epochs of fold 0."""
    metrics = list((project.folder / "results/3d_fullres/fold_0/state").glob("*/metrics.csv"))
    if not metrics:
        return []
    with metrics[0].open() as file:
        return list(csv.DictReader(file))


def wait_for_epochs(project: Project) -> int:
    """Wait until the training is well under way; its pid."""
    wait_until(lambda: len(epochs(project)) >= 3)
    lock = project.folder / "results/3d_fullres/fold_0/state/.lock"
    return int(lock.read_text().split(":")[0].removeprefix("pid "))


def assert_same_training(project: Project, other: Project) -> None:
    """Byte by byte the same checkpoints and the same curves."""
    assert project.state(0).name == other.state(0).name
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv"):
        one, two = (each.folder / "results/3d_fullres/fold_0" / name for each in (project, other))
        assert one.read_bytes() == two.read_bytes(), name


def trained_as(project: Project, fold: int) -> str:
    """Digest of the settings that the model behind a fold's summary was trained with."""
    return str(read_json(project.folder / f"results/fold_{fold}/summary.json")["identity"]["training"])


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but Snakemake's own."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".snakemake" not in path.parts)
    return {path.relative_to(folder): path.read_bytes() for path in files}


def names(folder: Path) -> set[str]:
    """Names of the visible files of a folder."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
