"""What a rank has of the process that started it: the lock, on Linux whatever its standard input was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from segpipe import launched

LAUNCHER = """
import os, subprocess, sys
from pathlib import Path
from segpipe import digest, launched
with digest.locked(Path(".lock"), "launcher") as lock:
    if sys.argv[1] == "hands it down":
        launched.hand_down(lock)
    told = {launched.LAUNCHER: str(os.getpid()), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = subprocess.run([sys.executable, "-c", sys.argv[2]], env=os.environ | told)
sys.exit(done.returncode)
"""
RANK = """
import subprocess, sys
from segpipe import launched
launched.begin()
from pathlib import Path
print("holds", launched.holds(Path(".lock")), launched.holds(Path("other")), flush=True)
print("read", len(sys.stdin.read()) if sys.stdin else 0, flush=True)
subprocess.run([sys.executable, "-c", "import glob, os; print(*map(os.path.realpath, glob.glob('/proc/self/fd/*')))"])
"""


@pytest.mark.parametrize("wanted", [None, "FASTEST_FIRST"])
def test_gpus_are_numbered_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    """In every process, before CUDA starts; unless the user wants it otherwise."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", wanted or "")  # so that it comes back
    if wanted is None:
        del os.environ["CUDA_DEVICE_ORDER"]
    launched.begin()
    assert os.environ["CUDA_DEVICE_ORDER"] == (wanted or "PCI_BUS_ID")


LOGGING = """
from pathlib import Path
from segpipe import digest, launched
launched.begin()
log = open("log", "w")  # the first file that is opened has the lowest number
with digest.locked(Path(".lock"), "a launcher") as lock:
    launched.hand_down(lock)
    print("went to the log", file=log, flush=True)
"""


def test_a_log_is_not_closed_for_the_lock_where_there_is_no_input(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", LOGGING], cwd=tmp_path, env=env, preexec_fn=lambda: os.close(0), check=True)
    assert (tmp_path / "log").read_text() == "went to the log\n"
    assert "a launcher" in (tmp_path / ".lock").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("does", ["hands it down", "keeps it"])
def test_a_rank_holds_the_lock_that_its_launcher_hands_down_and_passes_it_to_nobody(
    tmp_path: Path, does: str, closed: bool
) -> None:
    (tmp_path / "other").touch()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, does, RANK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        preexec_fn=(lambda: os.close(0)) if closed else None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    holds, read, inherits = done.stdout.splitlines()
    assert holds == f"holds {does == 'hands it down'} False"
    assert read == "read 0"
    assert ".lock" not in inherits
