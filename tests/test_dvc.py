"""DVC itself on a tiny dataset: dvc.yaml follows the rules, experiments run, what was computed before is restored."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import REPO, Project, run, tiny_params, wait_until
from recorded import MAKE, Repository, ran, repository

from segpipe import digest

SUMMARY = "results/fold_0/summary.json"
METRICS = "results/metrics.json"
OF_A_CHECKPOINT = [
    "validate",
    "ensemble",
    "crossval",
    "calibrate",
    "choose",
    "postprocess",
    "predict",
    "volumes",
    "report",
]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository after `dvc repro`, committed; tests leave its settings and results as they were."""
    project = repository(tmp_path_factory.mktemp("reproduced"), folds=[0])
    everything = ["phantoms", "check", "fingerprint", "plan", "splits", "preprocess"]
    everything += ["train", *OF_A_CHECKPOINT]
    assert sorted(ran(project.dvc("repro"))) == sorted(everything)
    project.commit()
    return project


def test_dvc_yaml_is_what_the_rules_say() -> None:
    run([*MAKE, "--check"], REPO)


def test_the_comparison_notices_a_difference(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy2(REPO / name, tmp_path)
    make = [sys.executable, str(REPO / "workflow/scripts/make_dvc_yaml.py"), "--check"]
    (tmp_path / "dvc.yaml").write_text((REPO / "dvc.yaml").read_text().replace("- train\n", "- train.epochs\n"))
    assert "-    - train.epochs\n+    - train\n" in run(make, tmp_path, ok=False)


def test_bad_settings_are_explained(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write({**tiny_params(), "folds": [7]})
    output = run([sys.executable, str(REPO / "workflow/scripts/make_dvc_yaml.py")], tmp_path, ok=False)
    assert "folds: 7 does not exist" in output
    assert "Traceback" not in output
    assert not (tmp_path / "dvc.yaml").exists()


def test_a_stale_dvc_yaml_is_refused(reproduced: Repository) -> None:
    """A list that DVC cannot follow makes the stage fail; it never passes an old result off as a new one."""
    try:
        reproduced.set("configurations", ["2d"])
        for stage, option in (("ensemble@0", "--validations"), ("predict", "--models")):
            output = reproduced.dvc("repro", "--single-item", stage, ok=False)
            assert option in output
            assert "run 'python workflow/scripts/make_dvc_yaml.py'" in output
    finally:
        reproduced.git("checkout", "params.yaml")
        reproduced.dvc("checkout")
    assert ran(reproduced.dvc("repro")) == []


def test_a_second_call_runs_nothing(reproduced: Repository) -> None:
    assert ran(reproduced.dvc("repro")) == []
    assert "up to date" in reproduced.dvc("status")


def test_runtime_settings_run_nothing(reproduced: Repository) -> None:
    reproduced.set("runtime.prefetch", 1)
    try:
        assert ran(reproduced.dvc("repro")) == []
    finally:
        reproduced.git("checkout", "params.yaml")


def test_an_experiment_and_the_way_back(reproduced: Repository) -> None:
    """`-S` reaches training and summary; the old settings bring the old results back without any computation."""
    before = (reproduced.folder / SUMMARY).read_text()
    changes = ["--set-param", "train.epochs=2", "--set-param", "train.optimiser.learning_rate=0.02"]
    experiment = reproduced.dvc("exp", "run", *changes, "--name", "shorter")
    assert sorted(ran(experiment)) == sorted(["train", *OF_A_CHECKPOINT])
    member = digest.read_json(reproduced.folder / SUMMARY)["members"]["3d_fullres"]
    assert member["settings"]["train"]["epochs"] == 2
    assert member["settings"]["train"]["optimiser"]["learning_rate"] == 0.02
    shown = json.loads(reproduced.dvc("metrics", "show", "--json"))[""]["data"]
    assert list(shown) == [METRICS]
    columns = [key for key, value in shown[METRICS]["data"].items() if not isinstance(value, list)]
    assert columns == ["Dice", "nsd", "hd95_mm", "Dice_low", "Dice_high", "Dice_postprocessed", "Dice_of"]
    assert shown[METRICS]["data"]["Dice"] == digest.read_json(reproduced.folder / SUMMARY)["foreground_mean"]["Dice"]
    assert re.search(rf"{METRICS} +Dice_of.liver +0\.\d+ +0\.\d+ +-?0\.\d+", reproduced.dvc("metrics", "diff"))
    assert re.search(r"train.optimiser.learning_rate +0\.01 +0\.02", reproduced.dvc("params", "diff"))
    assert "shorter" in reproduced.dvc("exp", "show", "--csv", "--only-changed")
    reproduced.git("checkout", "params.yaml")
    restored = reproduced.dvc("repro")
    assert ran(restored) == []
    assert "is cached" in restored
    assert (reproduced.folder / SUMMARY).read_text() == before


def test_the_checkpoint_is_chosen_from_the_command_line(reproduced: Repository) -> None:
    output = reproduced.dvc("exp", "run", "--set-param", "validate.checkpoint=best")
    assert sorted(ran(output)) == sorted(OF_A_CHECKPOINT)
    assert digest.read_json(reproduced.folder / SUMMARY)["checkpoint"] == "best"
    reproduced.git("checkout", "params.yaml")
    assert ran(reproduced.dvc("repro")) == []


def test_a_continued_training_never_enters_the_run_cache(reproduced: Repository) -> None:
    """It follows from what was trained before, not from its settings alone: those must not bring it back."""
    train = ["repro", "--single-item", "train@3d_fullres-0"]
    fold = reproduced.folder / "results/3d_fullres/fold_0"
    before = (fold / "checkpoint_final.pth").read_bytes()
    try:
        reproduced.set("train.epochs", 4)
        reproduced.set("train.on_extend", "continue")
        # a stage that DVC would cache is refused
        output = reproduced.dvc(*train, ok=False)
        assert re.search(r"--on-extend\n.*found: +restart\n.*expected: +continue\n.*make_dvc_yaml\.py", output)
        run(MAKE, reproduced.folder)
        output = reproduced.dvc(*train)
        assert "extends a finished training of 6 steps" in output
        continued = (fold / "checkpoint_final.pth").read_bytes()
        assert ran(reproduced.dvc(*train)) == []
        # its files come back with dvc.lock, as any other
        (fold / "checkpoint_final.pth").unlink()
        reproduced.dvc("checkout", str(fold.relative_to(reproduced.folder) / "checkpoint_final.pth"))
        assert (fold / "checkpoint_final.pth").read_bytes() == continued
        # the settings of before bring the training of before back
        reproduced.git("checkout", "params.yaml", "dvc.yaml")
        assert "is cached" in reproduced.dvc(*train)
        assert (fold / "checkpoint_final.pth").read_bytes() == before
        # the same settings again, where there is nothing to continue: trained from the beginning, not restored
        reproduced.set("train.epochs", 4)
        reproduced.set("train.on_extend", "continue")
        run(MAKE, reproduced.folder)
        (fold / "state").rename(reproduced.folder / "aside")
        output = reproduced.dvc(*train)
        assert ran(output) == ["train"]
        assert "fold 0: starts from the beginning: no finished, shorter training differs in its length alone" in output
        assert (fold / "checkpoint_final.pth").read_bytes() not in (before, continued)
    finally:
        reproduced.git("checkout", "params.yaml", "dvc.yaml")
        if (reproduced.folder / "aside").exists():
            shutil.rmtree(fold / "state")
            (reproduced.folder / "aside").rename(fold / "state")
        reproduced.dvc(*train)
    assert ran(reproduced.dvc("repro")) == []


def test_a_killed_training_continues(tmp_path: Path, killed: list[int]) -> None:
    project = repository(tmp_path, folds=[0])
    project.set("train.epochs", 20)
    target = ["repro", "train@3d_fullres-0"]
    dvc = project.start([sys.executable, "-m", "dvc", *target])
    killed.append(dvc.pid)
    metrics = tmp_path / "results/3d_fullres/fold_0/state"
    wait_until(lambda: any(len(path.read_text().splitlines()) > 3 for path in metrics.glob("*/metrics.csv")))
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.wait()
    assert re.search(r"continues after epoch [1-9]", project.dvc(*target))


def test_snakemake_accepts_what_dvc_made(reproduced: Repository) -> None:
    """After `dvc repro` or `dvc checkout`, one call tells Snakemake that the files are current."""
    reproduced.snakemake("--touch", "--forceall")
    assert reproduced.planned() == {}
    assert ran(reproduced.dvc("repro")) == []
