"""A git repository with the project's files, in which DVC records tiny experiments."""

import re
import shutil
import sys
from pathlib import Path

from conftest import REPO, Project, run, run_warm, tiny_params

MAKE = [sys.executable, "workflow/scripts/make_dvc_yaml.py"]


class Repository(Project):
    """A git repository of its own with the project's files and tiny settings."""

    def git(self, *arguments: str) -> str:
        return run(["git", *arguments], self.folder)

    def dvc(self, *arguments: str, ok: bool = True) -> str:
        return run_warm([sys.executable, "-m", "dvc", *arguments], self.folder, ok)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")


def repository(folder: Path, **changes: object) -> Repository:
    """The files that git knows or would add, in a new repository."""
    for name in run(["git", "ls-files", "-co", "--exclude-standard"], REPO).splitlines():
        if (REPO / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)
    project = Repository(folder, folder / "Snakefile")
    project.write({**tiny_params(), **changes})
    run(MAKE, folder)
    project.git("init", "--quiet")
    project.git("config", "user.name", "Test")
    project.git("config", "user.email", "test@example.org")
    project.commit()
    return project


def ran(output: str) -> list[str]:
    """The stages that a call of DVC ran."""
    return [name.split("@")[0] for name in re.findall(r"Running stage '(.+)':", output)]
