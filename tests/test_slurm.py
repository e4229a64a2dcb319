"""profiles/slurm: what it says, and what it does on a real Slurm.

make slurm && .ci/slurm_single_node.sh run .venv/bin/python -m pytest tests/test_slurm.py
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from volumes import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import slurm_resume

FOLDS, EPOCHS, ITERATIONS = [0, 1], 40, 150  # a minute on an idle machine: all that happens has to find them at work
PATIENCE_S = 900


def profile(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((REPO / f"profiles/{name}/profile.yaml").read_text())
    return content


def rules() -> dict[str, str]:
    """name: its text, of every rule in the workflow."""
    text = "".join(path.read_text() for path in sorted((REPO / "workflow/rules").glob("*.smk")))
    parts = re.split(r"^ *rule (\w+):$", text, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def missing() -> str | None:
    """What is not here for the tests on a real Slurm."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "needs the plugin: make slurm"
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], check=False, capture_output=True).returncode:
        return "needs a Slurm: .ci/slurm_single_node.sh start"
    if os.geteuid() != 0 or not (slurm_resume.SANDBOX / "slurm.conf").exists():
        return (
            "needs a Slurm of its own, to preempt jobs and change their limits: .ci/slurm_single_node.sh start, as root"
        )
    return None


@pytest.fixture
def real_slurm() -> None:
    if why := missing():
        pytest.skip(why)


def test_what_the_default_profile_needs_is_in_the_one_for_slurm() -> None:
    default, slurm = profile("default"), profile("slurm")
    assert {key: slurm.get(key) for key in default if key != "resources"} == {
        key: value for key, value in default.items() if key != "resources"
    }


def test_slurm_alone_counts_gpus() -> None:
    assert "resources" not in profile("slurm")
    assert not [name for name, request in profile("slurm")["set-resources"].items() if "gpu" in request]


def test_a_job_has_all_its_gpus_on_one_node() -> None:
    assert profile("slurm")["default-resources"]["nodes"] == 1


def test_every_rule_with_a_gpu_says_how_long_it_takes_and_how_much_memory() -> None:
    requests = profile("slurm")["set-resources"]
    with_gpu = [name for name, text in rules().items() if re.search(r"^ +gpu=", text, re.M)]
    assert {"train", "validate", "predict"} <= set(with_gpu)
    for name in with_gpu:
        assert {"mem_mb", "runtime"} <= requests.get(name, {}).keys(), name


def test_requests_are_of_rules_there_are() -> None:
    assert set(profile("slurm")["set-resources"]) <= set(rules())


def test_trainings_are_told_before_their_time_limit() -> None:
    for rule in ("train", "search_worker"):
        assert "--signal=USR1@" in profile("slurm")["set-resources"][rule]["slurm_extra"]


def test_squeue_is_asked_soon_enough() -> None:
    """Slurm forgets a finished job after MinJobAge, 300 s by default; the plugin wants three times its first wait."""
    assert profile("slurm")["slurm-status-command"] == "squeue"
    assert 3 * profile("slurm")["slurm-init-seconds-before-status-checks"] <= 300


@pytest.mark.usefixtures("real_slurm")
def test_cancelled_preempted_and_out_of_time_folds_have_the_weights_of_undisturbed_ones(tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        slurm_resume.write_params(folder, FOLDS, EPOCHS, ITERATIONS)
    # at the same time: the machine has little to do while jobs of the other run wait in the queue
    main = slurm_resume.snakemake(undisturbed, *slurm_resume.ALONE, "--", *slurm_resume.targets(FOLDS))
    run = slurm_resume.Disturbed(disturbed, FOLDS, EPOCHS)
    try:
        run.preempt()
        run.cancel()
        run.run_out_of_time()
        status = run.main.wait(PATIENCE_S)
        assert main.wait(PATIENCE_S) == 0
    finally:
        run.main.kill()
        main.kill()
    said = (disturbed / "snakemake.txt").read_text()
    assert status == 0, said
    assert said.count("Error in rule train") == 1, said  # the cancelled job; the others came back by themselves
    assert slurm_resume.differing(undisturbed, disturbed, FOLDS) == []
