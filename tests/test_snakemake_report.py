"""`snakemake --report`: what a reader wants of a run, with captions, from any target, without a network."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from conftest import REPO, Project, run

WORKFLOW = REPO / "workflow"


def without_network() -> list[str]:
    """What to put before a command so that it has none; nothing where this machine does not let us."""
    prefix = ["unshare", "--map-root-user", "--net"]
    try:
        return prefix if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def reported(project: Project, path: Path, *targets: str) -> str:
    """The page."""
    run([*without_network(), *project.command(*targets, "--report", str(path))], project.folder)
    if path.suffix == ".html":
        return path.read_text()
    with ZipFile(path) as file:
        return file.read(f"{path.stem}/report.html").decode()


def results(page: str) -> dict[str, Any]:
    """What it lists, by path."""
    found: dict[str, Any] = json.loads(re.findall(r"^ *var results = (\{.*\});?$", page, re.M)[0])
    return found


def description(page: str) -> str:
    return str(json.loads(re.findall(r"^ *var workflow_desc = (\".*\");?$", page, re.M)[0]))


def test_a_finished_run_is_reported_with_captions(finished: Project, tmp_path: Path) -> None:
    page = reported(finished, tmp_path / "report.zip")
    found = results(page)
    crossval = ("summary", "model_choice", "postprocessing", "calibration")
    assert set(found) == {
        "data/preprocessed/Dataset000_Phantoms/check.html",
        *(f"results/3d_fullres/fold_{fold}/progress.png" for fold in (0, 1)),
        *(f"results/crossval/{name}.json" for name in crossval),
        "results/volumes.csv",
        "results/report.html",
    }
    assert all(one["caption"].startswith("<p>") for one in found.values())
    assert found["results/3d_fullres/fold_1/progress.png"]["caption"].startswith("<p>3d_fullres, fold 1: losses")
    with ZipFile(tmp_path / "report.zip") as file:
        (inside,) = (name for name in file.namelist() if re.search(r"data/raw/\w+/report\.html$", name))
        assert file.read(inside) == (finished.folder / "results/report.html").read_bytes()
    said = description(page)
    assert "Dataset000_Phantoms. The settings are in the results" in said
    names = ("Report", "Data", "Training", "Cross-validation", "Predictions")
    assert all(f"app.showCategory('{name}')" in said for name in names)
    assert "Search" not in said
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"http[^>]*", page)


def test_one_fold_is_reported_as_far_as_it_goes(finished: Project, tmp_path: Path) -> None:
    page = reported(finished, tmp_path / "fold.html", "results/fold_0/summary.json")
    assert set(results(page)) == {
        "data/preprocessed/Dataset000_Phantoms/check.html",
        "results/3d_fullres/fold_0/progress.png",
    }
    assert "Training" in description(page)
    assert "Report" not in description(page)
    assert "system-message" not in page  # how docutils shows what is wrong with a text


@pytest.mark.parametrize("name", sorted(path.name for path in (WORKFLOW / "report").iterdir()))
def test_no_caption_is_left_over(name: str) -> None:
    rules = "".join(path.read_text() for path in [WORKFLOW / "Snakefile", *(WORKFLOW / "rules").iterdir()])
    assert len(re.findall(rf'report/{name}"', rules)) == 1
