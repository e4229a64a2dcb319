"""What others get: recorded results pushed to a store, pulled into fresh clones, experiments queued and compared."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import Project, run, wait_until
from recorded import Repository, ran, repository

METRICS = "results/metrics.json"
NOTES = "data/raw/Dataset001_Notes"


@pytest.fixture(scope="module")
def origin(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Results that Snakemake made, recorded and pushed: git to a bare repository, files to a folder."""
    folder = tmp_path_factory.mktemp("origin")
    project = repository(folder / "work")
    project.dvc("remote", "add", "--default", "store", str(folder / "store"))
    for name in ("data", "results"):
        shutil.copytree(finished.folder / name, project.folder / name)
    (project.folder / NOTES).mkdir()
    (project.folder / NOTES / "notes.txt").write_text("a dataset of one's own, in the repository")
    project.dvc("add", NOTES)
    project.commit()
    project.dvc("exp", "save", "--force", "--name", "made-by-snakemake")
    project.commit()
    project.dvc("push")
    run(["git", "init", "--quiet", "--bare", str(folder / "git")], folder)
    project.git("remote", "add", "origin", str(folder / "git"))
    project.git("push", "--quiet", "--set-upstream", "origin", "HEAD")
    return project


@pytest.fixture
def clone(origin: Repository, tmp_path: Path) -> Repository:
    """A fresh clone, without any file of DVC's."""
    run(["git", "clone", "--quiet", str(origin.folder.parent / "git"), str(tmp_path / "clone")], tmp_path)
    return Repository(tmp_path / "clone", tmp_path / "clone/Snakefile")


def test_a_fresh_clone_has_everything_and_nothing_to_do(origin: Repository, clone: Repository, tmp_path: Path) -> None:
    """What Snakemake made and DVC recorded comes with `dvc pull`; both find all of it done."""
    assert not (clone.folder / "results").exists()
    clone.dvc("pull")
    for name in (METRICS, NOTES + "/notes.txt", "results/3d_fullres/fold_1/checkpoint_best.pth", "results/report.html"):
        assert (clone.folder / name).read_bytes() == (origin.folder / name).read_bytes(), name
    assert ran(clone.dvc("repro")) == []
    assert "up to date" in clone.dvc("status")
    clone.dvc("plots", "show")
    page = (clone.folder / "dvc_plots/index.html").read_text()
    titles = ["training loss", "validation loss", "validation Dice while training", "Dice of each class"]
    assert [title for title in titles if f'"text": "{title}"' in page] == titles
    assert all(f'"class": "{name}"' in page for name in ("liver", "kidneys", "vessel"))
    assert clone.git("status", "--short") == ""
    clone.snakemake("--touch", "--forceall")
    assert clone.planned() == {}
    images = "data/raw/Dataset000_Phantoms/imagesTs"
    predict = ["segpipe", "predict", "--device", "cpu", "--model", "results", "-i", images, "-o", str(tmp_path / "out")]
    run(predict, clone.folder)
    assert (tmp_path / "out/phantom_005.nii.gz").exists()


def test_a_clone_goes_on_from_what_it_pulled(clone: Repository) -> None:
    """A setting of the validation: nothing is trained; the preprocessed cases, which nobody pushes, are made again."""
    clone.dvc("pull")
    clone.set("validate.step_size", 0.9)
    output = clone.dvc("repro", "--single-item", "train@3d_fullres-0", "validate@3d_fullres-0")
    assert ran(output) == ["validate"]
    assert "3d_fullres: 5 cases preprocessed, 0 were there" in output
    assert "0 predicted before" in output


def test_experiments_of_a_queue(origin: Repository, clone: Repository) -> None:
    """Two at a time, each in a folder of its own with the code that it was queued with; another clone restores one."""
    page = origin.folder / "segpipe/report/page.py"
    code = page.read_text()
    assert "<h1>" in code
    page.write_text(code.replace("<h1>", "<h1 id=queued>"))
    origin.dvc("exp", "run", "--queue", "--set-param", "report.cases=1,2")
    page.write_text(code)
    origin.dvc("queue", "start", "--jobs", "2")
    head = origin.git("rev-parse", "HEAD").strip()
    of_this_commit = f".git/refs/exps/{head[:2]}/{head[2:]}/*"
    wait_until(lambda: len([*origin.folder.glob(of_this_commit)]) == 2, seconds=300)
    names = sorted(path.name for path in origin.folder.glob(of_this_commit))
    wait_until(lambda: origin.dvc("queue", "status").count("Success") == 2)
    assert origin.git("status", "--short") == ""
    table = origin.dvc("exp", "show", "--csv", "--only-changed", "--drop", "^(segpipe|data|results)/")
    assert all(re.search(f"{name},.*,[12]$", table, re.MULTILINE) for name in names), table
    # one of them elsewhere: its files come with it
    origin.dvc("push", "--run-cache")
    origin.dvc("exp", "push", "origin", names[0])
    clone.dvc("exp", "pull", "origin", names[0])
    clone.dvc("pull")
    clone.dvc("exp", "apply", names[0])
    report = clone.folder / "results/report.html"
    assert "id=queued" in report.read_text()
    # or the same settings and code, by hand: found in the run cache, and pulled
    cases = clone.params()["report"]["cases"]
    clone.git("checkout", ".")
    shutil.rmtree(clone.folder / ".dvc/cache")
    clone.dvc("pull", "--run-cache", "--force")
    assert "id=queued" not in report.read_text()
    (clone.folder / "segpipe/report/page.py").write_text(code.replace("<h1>", "<h1 id=queued>"))
    clone.set("report.cases", cases)
    restored = clone.dvc("repro", "--pull")
    assert ran(restored) == []
    assert "Stage 'report' is cached" in restored
    assert "id=queued" in report.read_text()
