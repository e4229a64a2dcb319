"""Snakemake and DVC that have been imported already: each call is a fork. python tests/warm.py MODULE, calls on stdin.

To import Snakemake and what the Snakefile imports, and to read the code of all rules, takes ten times as long as a plan
of a tiny project. A call finds the arguments, folder, environment and streams that a process of its own would have.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

IMPORTED = {
    "snakemake": ["snakemake.cli", "segpipe.gpus", "segpipe.training.check"]
    + [f"segpipe.data.{name}" for name in ("dataset", "download", "given_splits", "phantoms")],
    "dvc": ["dvc.cli", "dvc.repo", "dvc.repo.reproduce", "dvc.repo.experiments.queue.celery"]
    + [f"dvc.commands.{name}" for name in ("checkout", "metrics", "params", "remote", "repro", "status")],
}


class Warm:
    """The process that forks. It ends when its input does, with this one."""

    def __init__(self, module: str, environment: dict[str, str]) -> None:
        command, pipe = [sys.executable, str(Path(__file__)), module], subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def call(self, arguments: list[str], folder: Path, environment: dict[str, str], said: Path) -> int:
        """The exit status of `python -m module` in a folder; what it says goes to a file."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([arguments, str(folder), environment, str(said)]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


def main(module: str) -> None:
    """Fork for each line of stdin, wait, and say the status."""
    warm_up(module)
    for line in sys.stdin:
        assert threading.active_count() == 1, "a fork has no other threads"
        pid = os.fork()
        if pid == 0:
            become(module, *json.loads(line))
            return
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def warm_up(module: str) -> None:
    """Import what calls import, and read the code of the rules, which no test changes."""
    for name in IMPORTED[module]:
        importlib.import_module(name)
    if module == "snakemake":
        from snakemake import cli

        from segpipe import deciding, digest

        cli.get_argument_parser()  # imports the plugins
        for rule in deciding.DECIDING_MODULES:
            digest.of_code(rule)


def become(module: str, arguments: list[str], folder: str, environment: dict[str, str], said: str) -> None:
    """Be `python -m module`, to the end of the process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0], sys.argv[1:] = folder, arguments
    for name, mode, descriptors in ((os.devnull, os.O_RDONLY, [0]), (said, os.O_WRONLY, [1, 2])):
        opened = os.open(name, mode)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
        os.close(opened)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
