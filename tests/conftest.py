"""A pipeline small enough to be run many times: five phantoms, a network of a few channels, three epochs."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from interop import imported
from warm import Warm

REPO = Path(__file__).resolve().parents[1]
INTERPRETER = Path(sys.executable).parent
PYTHON_PATH = os.environ.get("PYTHONPATH")
# These start Snakemake, DVC or many trainings. They come first: else one worker ends with a long file, alone.
LONG = [
    f"test_{name}.py"
    for name in (
        *("pipeline", "dvc", "ranks", "dvc_remote", "while_training", "cascade", "search_pipeline", "lease", "job"),
        *("pretended_cuda", "predict_ranks", "interrupt", "compare", "download", "cli", "init", "extend", "loop"),
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def environment() -> dict[str, str]:
    """That of an activated environment: the interpreter of the tests comes first. No trace of the caller's own job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DVC_", "OMP_"))}
    path = f"{INTERPRETER}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "DVC_NO_ANALYTICS": "1"}


def tiny_params() -> dict[str, Any]:
    """params.yaml of the project with small numbers, on the CPU so that weights can be compared bit by bit."""
    params: dict[str, Any] = yaml.safe_load((REPO / "params.yaml").read_text())
    params["dataset"], params["configurations"], params["folds"] = (
        "data/raw/Dataset000_Phantoms",
        ["3d_fullres"],
        [0, 1],
    )
    params["phantoms"].update(n_train=5, n_test=1)
    params["splits"].update(n_folds=2)
    patches = {"2d": [16] * 2, "3d_fullres": [16] * 3}
    params["plan"]["overrides"].update(spacing_mm=[3.0] * 3, patch_size=patches, batch_size=2, features_base=4)
    params["train"].update(epochs=3, iterations_per_epoch=2, val_iterations_per_epoch=1)
    params["validate"].update(step_size=1.0, mirroring=False)
    params["runtime"].update(device="cpu", threads=1)
    return params


class Project:
    """A folder with a params.yaml of its own, in which the project's Snakefile works."""

    def __init__(self, folder: Path, snakefile: Path = REPO / "Snakefile") -> None:
        self.folder, self.snakefile = folder, snakefile

    def write(self, params: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def params(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return content

    def set(self, key: str, value: object) -> None:
        """Change one setting: `train.epochs`."""
        params = self.params()
        *sections, name = key.split(".")
        block = params
        for section in sections:
            block = block[section]
        block[name] = value
        self.write(params)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", *arguments, "--snakefile", str(self.snakefile), "--cores", "2"]

    def snakemake(self, *arguments: str, ok: bool = True) -> str:
        """What a call of snakemake says; it must succeed, or must fail."""
        command = self.command(*arguments)
        if self.snakefile.is_relative_to(REPO):
            return run_warm(command, self.folder, ok)
        return run(command, self.folder, ok)  # a copy of the project imports its own code

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, so that it can be killed with all its children."""
        with self.said.open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> Path:
        """What the started command says."""
        return self.folder / "started.log"

    def planned(self, *targets: str) -> Counter[str]:
        """How many jobs of each rule a call would run."""
        lines = iter(self.snakemake("--dry-run", *targets).splitlines())
        for line in lines:
            if line.startswith("----"):
                break
        counts: Counter[str] = Counter()
        for line in lines:
            if not line.strip():
                break
            rule, count = line.split()
            counts[rule] = int(count)
        for goal in ("total", "all", "everything"):
            del counts[goal]
        return counts

    def state(self, fold: int) -> Path:
        """The folder of the one training that a fold has been through."""
        (state,) = (self.folder / f"results/3d_fullres/fold_{fold}/state").glob("*/")
        return state


def run(command: list[str], folder: Path, ok: bool = True) -> str:
    """Output and messages of a command, in order."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return checked(command, done.returncode, done.stdout, ok)


def checked(command: list[str], status: int, said: str, ok: bool) -> str:
    assert (status == 0) == ok, f"{' '.join(command)} exited with {status}\n{said}"
    return said


@cache
def warm(module: str) -> Warm:
    """The process that has imported the module."""
    return Warm(module, environment())


def run_warm(command: list[str], folder: Path, ok: bool = True) -> str:
    """`python -m module ...` by a fork of a process that has imported the module, unless a test chose what it finds."""
    if os.environ.get("PYTHONPATH") != PYTHON_PATH:
        return run(command, folder, ok)
    _, _, module, *arguments = command
    with tempfile.NamedTemporaryFile() as said:
        status = warm(module).call(arguments, folder, environment(), Path(said.name))
        return checked(command, status, Path(said.name).read_text(), ok)


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after one call of snakemake without a target. Only for tests that change nothing."""
    worker = tmp_path_factory.getbasetemp()
    made = (worker.parent if "PYTEST_XDIST_WORKER" in os.environ else worker) / "finished_by_the_first_worker"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            project = Project(tmp_path_factory.mktemp("finishing"))
            project.write(tiny_params())
            run(project.command(), project.folder)
            project.folder.rename(made)
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(made, folder, symlinks=True, dirs_exist_ok=True)
    return Project(folder)


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to be changed."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """A project in which nothing has run."""
    project = Project(tmp_path)
    project.write(tiny_params())
    return project


@pytest.fixture
def killed() -> Iterator[list[int]]:
    """Process groups that a test must not leave behind."""
    groups: list[int] = []
    yield groups
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _no_module_of_another_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test writes and imports are gone after it: another one may give its own the same name."""
    before = set(sys.modules)
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2d MODEL of nnU-Net with two folds; nobody changes it."""
    return imported("resenc", tmp_path_factory.mktemp("flat"))


@pytest.fixture(scope="session")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MODEL of nnU-Net with regions: 3d_lowres and 3d_cascade_fullres; nobody changes it."""
    return imported("regions", tmp_path_factory.mktemp("cascade"))
