"""A training that has not ended is validated and predicted with; nobody takes the results for finished ones."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import REPO, Project, run, tiny_params, wait_until
from tiny import params

from segpipe import digest
from segpipe.data import splits
from segpipe.errors import SegpipeError
from segpipe.inference import predict, validation, while_training
from segpipe.inference.predict_dataset import predict_dataset
from segpipe.params import section
from segpipe.training import checkpoint
from segpipe.training.identity import identify

pytest_plugins = ["phantom_fixtures"]

RESULTS = Path("results/3d_fullres/fold_0")
FOLDERS = {"latest": "latest", "best": "best_so_far"}


@pytest.fixture
def state(prepared, trained, tmp_path, monkeypatch):
    """The working directory of a training that is about to end; the folder of its checkpoints."""
    monkeypatch.chdir(tmp_path)
    Path("data/preprocessed").mkdir(parents=True)
    Path("raw").symlink_to(prepared.root / "raw")
    Path("data/preprocessed/Dataset000_Phantoms").symlink_to(prepared.root / "prepared")
    shutil.copytree(trained / "fold_0/state", RESULTS / "state")
    fold = splits.read(prepared.splits, "0")
    state = RESULTS / "state" / identify(prepared.store, fold, params(), RESULTS / "state").digest
    (state / "final.pth").unlink()
    return state


def validate(which="latest", fold="0", **changes):
    while_training.validate("3d_fullres", fold, which, params(**changes))


def summary_of(folder):
    return digest.read_json(RESULTS / folder / "summary.json")


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def visible(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["latest", "best"])
def test_the_present_checkpoint_is_validated_beside_the_finished_results(prepared, trained, state, which):
    validate(which)
    assert visible(RESULTS) == ["state", f"validation_{FOLDERS[which]}"]
    content, summary = checkpoint.load(state / f"{which}.pth"), summary_of(f"validation_{FOLDERS[which]}")
    assert (summary["checkpoint"], summary["fold"], summary["configuration"]) == (which, "0", "3d_fullres")
    assert summary["digest"] == content["digest"] == state.name
    assert summary["epoch"] == content["epoch"] == {"latest": 3, "best": summary["epoch"]}[which]
    assert summary["training"] == content["facts"]
    published = trained / "fold_0" / {"latest": "checkpoint_final.pth", "best": "checkpoint_best.pth"}[which]
    validation.validate(prepared.store, prepared.splits, "0", published, Path("expected/trial"), params())
    for part in ("segmentations", "softmax"):
        expected = files_of(Path("expected/trial") / part)
        assert files_of(RESULTS / f"validation_{FOLDERS[which]}" / part) == expected != {}


def test_each_fold_has_its_own_training(prepared, trained, state):
    shutil.copytree(trained / "fold_1/state", RESULTS.with_name("fold_1") / "state")
    validate(fold="1")
    summary = digest.read_json(RESULTS.with_name("fold_1") / "validation_latest/summary.json")
    assert summary["digest"] == checkpoint.load(trained / "fold_1/checkpoint_final.pth")["digest"] != state.name
    assert len(summary["metric_per_case"]) == len(splits.read(prepared.splits, "1")["val"]) == 2
    assert visible(RESULTS) == ["state"]


@pytest.mark.parametrize("which", ["latest", "best"])
def test_images_are_predicted_with_the_present_checkpoint(prepared, trained, state, which):
    while_training.predict("3d_fullres", "0", which, params())
    assert visible(RESULTS) == [f"predictions_{FOLDERS[which]}", "state"]
    published = trained / "fold_0" / {"latest": "checkpoint_final.pth", "best": "checkpoint_best.pth"}[which]
    predict_dataset(prepared.cases, [published], ["3d_fullres"], Path("expected/predictions"), params())
    predicted = files_of(RESULTS / f"predictions_{FOLDERS[which]}")
    assert predicted == files_of(Path("expected/predictions"))
    assert len(predicted) == 3  # two cases, and what their classes are


def test_the_training_is_left_as_it_was(state):
    before = files_of(state)
    for which in ("latest", "best"):
        validate(which)
        while_training.predict("3d_fullres", "0", which, params())
    assert files_of(state) == before


@pytest.mark.usefixtures("state")
def test_the_settings_of_the_validation_are_those_of_params_yaml():
    validate(validate__softmax_dtype="float32", validate__step_size=0.5)
    assert summary_of("validation_latest")["settings"]["validate"] == section(
        params(validate__softmax_dtype="float32", validate__step_size=0.5), "validate"
    )


def test_a_later_call_takes_the_checkpoint_of_then(state):
    validate()
    first = summary_of("validation_latest")
    digest.copy(state / "best.pth", state / "latest.pth")  # the training went on
    validate()
    second = summary_of("validation_latest")
    assert (first["epoch"], second["epoch"]) == (3, checkpoint.load(state / "best.pth")["epoch"])
    assert first["validation_digest"] != second["validation_digest"]
    assert first["epoch"] != second["epoch"]


def test_cases_of_an_epoch_that_is_over_are_neither_used_nor_kept(state, monkeypatch):
    """The training goes on while a validation is killed."""
    predicted, original = [], predict.run

    def counting(*arguments):
        if len(predicted) == 2:
            raise KeyboardInterrupt
        predicted.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "run", counting)
        validate()
    assert not (RESULTS / "validation_latest").exists()
    digest.copy(state / "best.pth", state / "latest.pth")
    predicted.clear()
    monkeypatch.setattr(predict, "run", lambda *rest, **named: predicted.append(1) or original(*rest, **named))
    validate()
    assert len(predicted) == 3
    assert visible(RESULTS / "state/validation_latest") == [".lock"]


@pytest.mark.usefixtures("state")
def test_a_killed_prediction_goes_on_whatever_else_is_predicted(monkeypatch):
    predicted, original = [], predict.run

    def counting(*arguments, **named):
        if predicted:
            raise KeyboardInterrupt
        predicted.append(1)
        return original(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "run", counting)
        while_training.predict("3d_fullres", "0", "latest", params())
    while_training.predict("3d_fullres", "0", "best", params())
    monkeypatch.setattr(predict, "run", lambda *rest, **named: predicted.append(1) or original(*rest, **named))
    while_training.predict("3d_fullres", "0", "latest", params())
    assert len(predicted) == 2


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("which", ["final", "latest.pth", ""])
def test_other_checkpoints_are_for_the_workflow(which):
    with pytest.raises(SegpipeError, match=r"(?s)--checkpoint.*latest or best"):
        validate(which)
    assert visible(RESULTS) == ["state"]


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("fold", ["fold_0", "-1", ""])
def test_a_fold_is_a_number_or_all(fold):
    with pytest.raises(SegpipeError, match=r"(?s)--fold.*a number, or all"):
        validate(fold=fold)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("fold", ["1", "all"])
def test_a_fold_without_a_training_is_explained(fold):
    with pytest.raises(SegpipeError, match=rf"(?s)no checkpoint.*no training with the present.*fold_{fold}/checkpoint"):
        validate(fold=fold)


def test_another_training_is_never_taken_for_the_one_of_params_yaml(state):
    with pytest.raises(SegpipeError, match=rf"(?s)no training with the present params\.yaml.*others: {state.name}"):
        validate(train__seed=1)
    assert visible(RESULTS) == ["state"]


def test_a_training_in_its_first_epoch_is_explained(state):
    for name in ("latest.pth", "best.pth"):
        (state / name).unlink()
    for which in ("latest", "best"):
        with pytest.raises(SegpipeError, match=rf"(?s){which}\.pth.*saved none yet: its first epoch"):
            validate(which)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("missing", ["cases.json", "plan.json", "splits.json", "3d_fullres/manifest.json"])
def test_a_dataset_that_is_not_prepared_is_explained(prepared, tmp_path, missing):
    link = tmp_path / "data/preprocessed/Dataset000_Phantoms"
    link.unlink()
    shutil.copytree(prepared.root / "prepared", link)
    (link / missing).unlink()
    with pytest.raises(SegpipeError, match=rf"(?s){missing}.*not prepared yet.*snakemake results/3d_fullres/fold_0"):
        validate()


@pytest.mark.usefixtures("state")
def test_a_dataset_without_images_to_predict_is_explained(prepared, tmp_path):
    link = tmp_path / "data/preprocessed/Dataset000_Phantoms"
    link.unlink()
    shutil.copytree(prepared.root / "prepared", link)
    digest.write_json(link / "cases.json", {**prepared.cases.content, "test": {}})
    with pytest.raises(SegpipeError, match=r"(?s)nothing to predict.*imagesTs"):
        while_training.predict("3d_fullres", "0", "latest", params())
    assert visible(RESULTS) == ["state"]


# ---- the real thing --------------------------------------------------------------------------------------------------

MODEL = "results/3d_fullres/fold_0/checkpoint_final.pth"
FINAL = ("checkpoint_final.pth", "checkpoint_best.pth", "metrics.csv")
LONGER = 20


def longer(finished: Project, folder: Path) -> Project:
    """The finished project up to preprocessing, and a training that takes long enough to be looked at."""
    project = Project(folder)
    for name in ("data", ".snakemake"):
        shutil.copytree(finished.folder / name, folder / name)
    project.write(tiny_params())
    project.set("train.epochs", LONGER)
    return project


def now(project: Project, verb: str, *options: str, ok: bool = True) -> str:
    script = [sys.executable, str(REPO / f"workflow/scripts/{verb}_now.py")]
    return run([*script, "--configuration", "3d_fullres", "--fold", "0", *options], project.folder, ok)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_a_running_training_is_validated_and_predicted_with(
    finished: Project, tmp_path: Path, killed: list[int]
) -> None:
    """While it stands still; afterwards it ends as one that nobody looked at. The workflow knows nothing of it."""
    project, undisturbed = (longer(finished, tmp_path / name) for name in ("project", "undisturbed"))
    fold = project.folder / "results/3d_fullres/fold_0"
    too_early = now(project, "validate", "--checkpoint", "latest", ok=False)
    assert "no training with the present params.yaml; there are others: none" in too_early
    assert "Traceback" not in too_early
    snakemake = project.start(project.command(MODEL))
    killed.append(snakemake.pid)
    wait_until(
        lambda: len(list(fold.glob("state/*/best.pth"))) == 1 and len(list(fold.glob("state/*/latest.pth"))) == 1
    )
    pid = int((fold / "state/.lock").read_text().split(":")[0].removeprefix("pid "))
    os.kill(pid, signal.SIGSTOP)
    (state,) = (path.parent for path in fold.glob("state/*/latest.pth"))
    for which, folder in FOLDERS.items():
        content = checkpoint.load(state / f"{which}.pth")
        said = now(project, "validate", "--checkpoint", which)
        assert f"raw weights of epoch {content['epoch']}\n" in said
        assert re.search(rf"validation_{folder} of 3d_fullres fold 0: mean foreground Dice 0\.\d+", said)
        summary = read_json(fold / f"validation_{folder}/summary.json")
        assert (summary["checkpoint"], summary["epoch"], summary["digest"]) == (which, content["epoch"], state.name)
        assert 1 <= summary["epoch"] < LONGER
        assert len(summary["metric_per_case"]) == len(visible(fold / f"validation_{folder}/softmax")) == 3
        now(project, "predict", "--checkpoint", which)
        assert visible(fold / f"predictions_{folder}") == [".made_of.json", "labels.json", "phantom_005.nii.gz"]
    os.kill(pid, signal.SIGCONT)
    now(project, "validate", "--checkpoint", "latest")  # while it goes on
    assert snakemake.wait() == 0
    undisturbed.snakemake(MODEL)
    for name in FINAL:
        there, expected = (each.folder / "results/3d_fullres/fold_0" / name for each in (project, undisturbed))
        assert there.read_bytes() == expected.read_bytes(), name
    project.snakemake("results/3d_fullres/fold_0/validation_final/summary.json")
    assert (fold / "validation_latest/summary.json").exists()
    assert read_json(fold / "validation_final/summary.json")["checkpoint"] == "final"


def test_validate_by_hand_takes_any_checkpoint(finished: Project, tmp_path: Path) -> None:
    """docs/while_training.md: the script of the rule, with the latest checkpoint of whatever training there is."""
    project = Project(tmp_path)
    shutil.copytree(finished.folder, project.folder, dirs_exist_ok=True)
    project.set("train.epochs", 99)  # the present settings ask for another training
    prepared, fold = "data/preprocessed/Dataset000_Phantoms", "results/3d_fullres/fold_0"
    (model,) = (path.relative_to(tmp_path) for path in tmp_path.glob(f"{fold}/state/*/latest.pth"))
    command = [
        sys.executable,
        str(REPO / "workflow/scripts/validate.py"),
        "--configuration",
        "3d_fullres",
        "--fold",
        "0",
    ]
    for name in ("cases", "plan", "splits"):
        command += [f"--{name}", f"{prepared}/{name}.json"]
    command += ["--manifest", f"{prepared}/3d_fullres/manifest.json", "--model", str(model)]
    run([*command, "--out", f"{fold}/validation_latest"], tmp_path)
    summary = read_json(tmp_path / fold / "validation_latest/summary.json")
    assert (summary["checkpoint"], summary["epoch"]) == ("latest", 3)
    assert summary["settings"]["train"]["epochs"] == 3
    refused = run([*command, "--out", f"{fold}/validation_final"], tmp_path, ok=False)
    assert "belongs to another checkpoint" in refused
    assert "Traceback" not in refused


@pytest.mark.usefixtures("state")
def test_pretrained_weights_that_are_gone_are_named():
    with pytest.raises(SegpipeError, match=r"train\.pretrained_weights\n.*absent\.pth: no such file"):
        validate(train__pretrained_weights="absent.pth")
