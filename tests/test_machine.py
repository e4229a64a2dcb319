"""What of the machine is this process's, with pretended control groups."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from segpipe import machine
from segpipe.data.cases import COPIES, Cases
from segpipe.evaluation import files
from segpipe.params import Evaluate

UNLIMITED = 9223372036854771712  # in version 1


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    """Writes /proc/self/cgroup and /sys/fs/cgroup of a machine with 1000 bytes free and 16 processors."""

    def write(own, **groups):
        (tmp_path / "own").write_text(own)
        for folder, contents in groups.items():
            group = tmp_path / "fs" / folder.replace("__", "/")
            group.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (group / name).write_text(f"{content}\n")

    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(machine, "MOUNTED", tmp_path / "fs")
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return write


def memory(limit, taken, version=2):
    if version == 2:
        return {"memory.max": limit, "memory.stat": f"anon {taken}\nfile 390"}
    return {"memory.limit_in_bytes": limit, "memory.stat": f"cache 90\nrss 20\ntotal_cache 300\ntotal_rss {taken}"}


def test_without_control_groups_nothing_limits():
    assert machine.available_bytes() == 1000
    assert machine.n_threads(None) == 16


@pytest.mark.parametrize(
    ("of_user", "of_job", "left"),
    [
        ((700, 400), (500, 100), 300),  # the nearest limit need not be the lowest
        (("max", 400), (500, 100), 400),
        (("max", 400), ("max", 100), 1000),
        ((10**6, 400), (10**6, 100), 1000),
        ((700, 400), (500, 600), 0),
    ],
)
def test_memory_of_a_job_within_a_slice(tree, of_user, of_job, left):
    """Version 2 of the control groups."""
    tree("0::/user/job\n", user=memory(*of_user), user__job=memory(*of_job))
    assert machine.available_bytes() == left


def test_files_in_memory_are_taken_and_caches_are_not(tree):
    tree("0::/job\n", job={"memory.max": 900, "memory.stat": "anon 100\nfile 500\nshmem 50"})
    assert machine.available_bytes() == 750
    tree("4:memory:/\n", memory={"memory.limit_in_bytes": 900, "memory.stat": "shmem 1\ntotal_rss 90\ntotal_shmem 10"})
    assert machine.available_bytes() == 800


OLDER = "9:name=systemd:/x\n4:memory:/docker/abc\n3:cpuacct,cpu:/docker/abc\n0::/\n"


def test_memory_in_an_older_container(tree):
    """Version 1 has a tree per controller; in a container only the own part of it is there."""
    tree(OLDER, memory=memory(500, 120, version=1))
    assert machine.available_bytes() == 380
    tree(OLDER, memory=memory(UNLIMITED, 120, version=1))
    assert machine.available_bytes() == 1000


def test_ranks_share_the_memory(tree, monkeypatch):
    tree("0::/job\n", job=memory(500, 100))
    monkeypatch.setattr(machine.launched, "n_ranks", lambda: 4)
    assert machine.available_bytes() == 100


@pytest.mark.parametrize(
    ("of_user", "of_job", "expected"),
    [
        ("max 100000", "400000 100000", 4),
        ("200000 100000", "400000 100000", 2),
        ("max 100000", "250000 100000", 2),
        ("max 100000", "5000 100000", 1),
        ("max 100000", "max 100000", 16),
        ("max 100000", "6400000 100000", 16),
    ],
)
def test_processors_of_a_job_within_a_slice(tree, of_user, of_job, expected):
    tree("0::/user/job\n", user={"cpu.max": of_user}, user__job={"cpu.max": of_job})
    assert machine.n_threads(None) == expected


@pytest.mark.parametrize(("quota", "expected"), [(300000, 3), (-1, 16)])
def test_processors_in_an_older_container(tree, quota, expected):
    tree(OLDER, cpu={"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": 100000})
    assert machine.n_threads(None) == expected


def test_processors_that_the_process_is_bound_to(tree, monkeypatch):
    tree("0::/job\n", job={"cpu.max": "400000 100000"})
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3, 7})
    assert machine.n_threads(None) == 2


def test_what_is_wanted_comes_before_what_the_starter_says_and_that_before_processors(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.n_threads(None) == 5
    assert machine.n_threads(24) == 24
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # by level of nesting
    assert machine.n_threads(None) == 16


@pytest.mark.parametrize(("threads", "bytes_each", "expected"), [(8, 100, 2), (1, 100, 1), (None, 1, 16), (8, 900, 1)])
def test_as_much_at_once_as_half_of_the_memory_holds(tree, threads, bytes_each, expected):
    tree("0::/job\n", job=memory(500, 100))
    assert machine.at_once(threads, bytes_each) == expected


def test_cases_of_a_small_job_on_a_large_machine(tree, tmp_path, monkeypatch):
    """A job with 4 GB on a node with 512 GB, cases of 0.18 GB when they are read, 0.24 GB scored."""
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=512 * 10**9))
    shape = [100, 250, 300]
    content = {"channel_names": ["CT"], "labels": {}, "training": {"a": {"shape": [1, 1, 1]}, "b": {"shape": shape}}}
    cases, voxels = Cases(tmp_path, content), math.prod(shape)
    scored = [files._Facts(frozenset(), 1, ()), files._Facts(frozenset(), voxels, ())]
    way = files.Way(None, Evaluate.model_construct(), 1e-3)
    assert (cases.at_once(None), files._at_once(scored, way)) == (16, 16)
    tree("0::/job\n", job=memory(4 * 10**9, 10**8))
    at_once = 195 * 10**7 // (voxels * 6 * COPIES), 195 * 10**7 // (voxels * files.BYTES_PER_VOXEL)
    assert (cases.at_once(None), files._at_once(scored, way)) == at_once == (10, 8)
    assert cases.at_once(4) == 4


def test_no_torch():
    code = "import sys; from segpipe import machine; from segpipe.data import cases; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
