"""Each job has its own GPU, or shares one that has room, until it dies: real processes, a driver that is pretended."""

import contextlib
import ctypes
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import REPO, Project, environment, wait_until
from pretended_driver import nvml
from tiny import params

from segpipe import claims, device, digest, gpus, launched, lease
from segpipe.claims import Claim
from segpipe.cli import launch
from segpipe.errors import SegpipeError
from segpipe.gpus import Gpu
from segpipe.ranks import ALONE

TESTS = Path(__file__).parent
GB = 1e9
NOTHING = ("-c", "pass")  # what ranks would do that are refused
JOB = """
import logging, os, sys
from segpipe import lease
logging.basicConfig(level="INFO", format="%(message)s")
lease.take(int(sys.argv[1]), float(sys.argv[2]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
exec(sys.argv[3])
"""


def one(letter, total_gb=24, used_gb=0.3, **more):
    total, used = int(total_gb * GB), int(used_gb * GB)
    return {"uuid": f"GPU-{letter * 8}", "name": "NVIDIA T", "total": total, "used": used, **more}


A, B, C = "GPU-aaaaaaaa", "GPU-bbbbbbbb", "GPU-cccccccc"
DIVIDED = one("b", instances=[{**one("x", 5), "uuid": "MIG-x"}, {**one("y", 10), "uuid": "MIG-y"}])


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Pretend GPUs, in this process and in those that a test starts, with a temporary folder of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read anew
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(TESTS / "pretended_driver"), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("PRETENDED_GPUS", str(tmp_path / "gpus.json"))
    monkeypatch.setattr(ctypes, "CDLL", nvml.Library)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def pretend(*described):
        (tmp_path / "gpus.json").write_text(json.dumps(described if described != (None,) else None))

    return pretend


class Job:
    """A process that takes GPUs and keeps them until its standard input is closed, or does something else then."""

    def __init__(self, folder, n=1, gb=8.0, then="sys.stdin.read()", **env):
        self.messages = folder / f"job-{time.time_ns()}.log"
        with self.messages.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", JOB, str(n), str(gb * GB), then],
                cwd=folder,
                env={**environment(), **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    @property
    def devices(self):
        """Waits until it has them."""
        return self.process.stdout.readline().strip().split(",")

    @property
    def said(self):
        return self.messages.read_text()

    @property
    def waits(self):
        return "waiting for" in self.said and "computes on" not in self.said

    def end(self):
        self.process.communicate(timeout=300)
        assert self.process.returncode == 0, self.said

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path, pretended):
    """Start a job; all are gone after the test."""
    jobs = []

    def started(*arguments, **more):
        jobs.append(Job(tmp_path, *arguments, **more))
        return jobs[-1]

    yield started
    for job in jobs:
        job.kill()


# ---- which devices there are ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [A, "MIG-x", "MIG-y", C]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [A]),
        ("2,0", [C, A]),
        ("0,7,2", [A]),  # CUDA reads no further either
        ("0,0", [A]),
        ("1", ["MIG-x", "MIG-y"]),
        (A, [A]),
        ("GPU-cc, GPU-aa", [C, A]),
        ("MIG-y", ["MIG-y"]),
        (B, ["MIG-x", "MIG-y"]),
    ],
)
def test_visible_are_all_devices_or_those_that_are_named(pretended, monkeypatch, chosen, expected):
    pretended(one("a"), DIVIDED, one("z", forbidden=True), one("c"))
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [gpu.uuid for gpu in gpus.visible()] == expected


def test_a_device_is_described(pretended):
    pretended(one("a", used_gb=2), DIVIDED)
    whole, _, instance = gpus.visible()
    assert whole == Gpu(A, A, 0, "NVIDIA T", int(24 * GB), int(2 * GB))
    assert instance == Gpu("MIG-y", B, 1, "NVIDIA T", int(10 * GB), int(0.3 * GB))
    assert str(whole) == "GPU 0 (NVIDIA T, 24 GB)"


def test_without_a_driver_that_runs_there_are_none(pretended, monkeypatch):
    pretended(None)
    assert gpus.visible() == []
    monkeypatch.delenv("PRETENDED_GPUS")
    assert gpus.visible() == []
    assert not lease.take(1, GB)


@pytest.mark.parametrize(("name", "expected"), [("auto", 2), ("cuda", 2), ("cuda:1", 1), ("cpu", 1), ("mps", 1)])
def test_there_are_as_many_jobs_at_a_time_as_devices(pretended, monkeypatch, name, expected):
    pretended(one("a"), one("b"))
    assert gpus.jobs_at_a_time(name) == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.jobs_at_a_time(name) == 1


# ---- the choice ------------------------------------------------------------------------------------------------------


def gpu(uuid, total_gb=24, used_gb=0.3):
    return Gpu(uuid, uuid, 0, "T", int(total_gb * GB), int(used_gb * GB))


def claim(taken="", gb=8.0, n=1, since=5, wanted="abc"):
    return Claim(1, "job", None, since, n, gb * GB, tuple(wanted), tuple(taken))


@pytest.mark.parametrize(
    ("what", "own", "devices", "others", "expected"),
    [
        ("the first empty one", claim(), [gpu("a"), gpu("b")], [], "a"),
        ("an empty one before one with room", claim(), [gpu("a", 80), gpu("b")], [claim("a")], "b"),
        ("one with room", claim(), [gpu("a"), gpu("b")], [claim("a", gb=20), claim("b")], "b"),
        ("the one with most room", claim(), [gpu("a", 48), gpu("b", 80)], [claim("a"), claim("b")], "b"),
        ("none that is full", claim(), [gpu("a")], [claim("a"), claim("a")], ""),
        ("room for what CUDA takes as well", claim(gb=10.9), [gpu("a")], [claim("a", gb=10.9)], ""),
        ("room for both", claim(gb=10.7), [gpu("a")], [claim("a", gb=10.7)], "a"),
        ("what is used counts where it is more than promised", claim(), [gpu("a", used_gb=16)], [claim("a")], ""),
        ("not where others compute", claim(), [gpu("a", used_gb=20), gpu("b")], [], "b"),
        ("nor beside them if there is a choice", claim(), [gpu("a", 80, 20), gpu("b")], [], "b"),
        ("beside them if there is room", claim(), [gpu("a", 80, 20), gpu("b")], [claim("b", gb=20)], "a"),
        ("rather later than where others compute", claim(), [gpu("a", used_gb=20), gpu("b")], [claim("b", gb=20)], ""),
        ("where they leave most, if nobody is to wait for", claim(), [gpu("a", 24, 22), gpu("b", 24, 18)], [], "b"),
        ("an idle one that is too small", claim(gb=40), [gpu("a")], [], "a"),
        ("two", claim(n=2), [gpu("a"), gpu("b"), gpu("c")], [claim("b", gb=20)], "ac"),
        ("two or none", claim(n=2), [gpu("a"), gpu("b")], [claim("b", gb=20)], ""),
        ("two, one of them shared", claim(n=2), [gpu("a"), gpu("b")], [claim("b")], "ab"),
        ("none that an earlier one waits for", claim(), [gpu("a"), gpu("b")], [claim(since=4, n=3)], ""),
        ("another one than that", claim(), [gpu("a"), gpu("b")], [claim(since=4, wanted="a")], "b"),
        ("before a later one that waits", claim(), [gpu("a")], [claim(since=6)], "a"),
        ("an earlier one that has its own waits for none", claim(), [gpu("a"), gpu("b")], [claim("a", since=4)], "b"),
    ],
)
def test_a_job_gets(what, own, devices, others, expected):
    assert "".join(chosen.uuid for chosen in claims.choose(own, devices, others, claims.LEAVING_S)) == expected, what


def test_what_a_killed_job_may_still_give_back_is_waited_for():
    used = [gpu("a", used_gb=20)]
    assert claims.choose(claim(), used, [], free_s=0) == []
    assert claims.choose(claim(), used, [], free_s=claims.LEAVING_S) == used


EXCLUSIVE, PROHIBITED = 3, 2


def test_an_exclusive_gpu_is_not_shared_and_a_prohibited_one_is_not_taken(pretended, start):
    pretended(one("a", 80, mode=PROHIBITED), one("b", 80, mode=EXCLUSIVE))
    assert gpus.jobs_at_a_time("auto") == 1
    assert start().devices == [B]
    second = start()
    wait_until(lambda: second.waits)
    pretended(one("a", 80, mode=PROHIBITED), one("b", 80))
    assert second.devices == [B]


def test_others_on_an_exclusive_gpu_leave_no_room():
    used = Gpu("a", "a", 0, "T", int(80 * GB), int(20 * GB), mode=EXCLUSIVE)
    assert claims.choose(claim(), [used, gpu("b", 80, 30)], [], free_s=0) == [gpu("b", 80, 30)]


def test_an_exclusive_gpu_with_anybody_on_it_is_the_last_one_and_never_taken_by_force():
    small, full, free = (
        Gpu(name, name, 0, "T", int(80 * GB), int(used * GB), mode=EXCLUSIVE)
        for name, used in (("a", 7), ("b", 40), ("c", 0))
    )
    assert claims.choose(claim(), [small, full, free], [], free_s=0) == [free]
    assert claims.choose(claim(), [full], [], free_s=claims.LEAVING_S) == []


def test_a_gpu_that_nobody_may_use_is_refused_by_name(pretended):
    pretended(one("a"), one("b", mode=PROHIBITED))
    with pytest.raises(SegpipeError, match=r"nobody may compute on this GPU\n.*GPU 1 \(NVIDIA T, 24 GB\)\n"):
        lease.candidates(1, 1)
    assert [found.uuid for found in lease.candidates(1, 0)] == [A]
    with pytest.raises(SegpipeError, match=r"found: +1 for this job\n"):
        lease.candidates(2, None)


def follow_each_other(spans):
    return all(end <= begin for (_, end), (begin, _) in itertools.pairwise(sorted(spans)))


# ---- processes -------------------------------------------------------------------------------------------------------


def test_jobs_have_a_device_each_until_they_end(pretended, start):
    pretended(one("a", 10), one("b", 10))
    first, second = start(), start()
    on_first, on_second = first.devices, second.devices
    assert sorted([*on_first, *on_second]) == [A, B]
    third = start()
    wait_until(lambda: third.waits)
    second.end()
    assert third.devices == on_second


FORKED, STARTED = "os.fork()", "import subprocess; subprocess.Popen(['sleep', '60'])"


@pytest.mark.parametrize(
    ("number", "child"),
    [(signal.SIGKILL, FORKED), (signal.SIGKILL, STARTED), (signal.SIGTERM, FORKED), (signal.SIGSEGV, STARTED)],
)
def test_a_device_is_free_when_its_job_dies_whatever_it_has_started(pretended, start, number, child):
    pretended(one("a", 10))
    first = start(then=f"{child}\nimport time; print(os.getpid(), flush=True); time.sleep(60)")
    assert first.devices == [A]
    first.process.stdout.readline()
    (left,) = psutil.Process(first.process.pid).children()
    second = start()
    wait_until(lambda: second.waits)
    first.process.send_signal(number)
    assert second.devices == [A]
    assert left.is_running()
    assert left.status() != psutil.STATUS_ZOMBIE  # nobody may have waited for it


def test_who_waits_hears_for_whom(pretended, start, tmp_path):
    pretended(one("a", 10))
    first = start()
    assert first.devices == [A]
    second = start(gb=7)
    wait_until(lambda: second.waits)
    third = start()
    wait_until(lambda: third.waits)
    assert "waiting for 1 of 1 GPUs, with 7 GB\n" in second.said
    holder = f"pid {first.process.pid}, -c 1 8000000000.0 sys.stdin.read() in {tmp_path} (8 GB)"
    assert f"GPU 0 (NVIDIA T, 10 GB): {holder}, 0.3 GB are used\n" in second.said
    assert f"before this job comes pid {second.process.pid}, " in third.said
    assert "before this job" not in second.said


def test_jobs_never_overlap_on_a_device(pretended, start, tmp_path):
    pretended(one("a", 10), one("b", 10))
    note = "import time\nbegan = time.time(); time.sleep(0.1)\nprint(began, time.time(), flush=True)"
    jobs = [start(then=note) for _ in range(5)]
    spans = {A: [], B: []}
    for job in jobs:
        (on,) = job.devices
        spans[on].append(tuple(map(float, job.process.stdout.readline().split())))
    assert all(spans.values())
    for on in spans.values():
        assert follow_each_other(on)


def test_small_jobs_share_a_device(pretended, start):
    pretended(one("a", 24))
    first, second = start(gb=10), start(gb=10)
    assert first.devices == second.devices == [A]
    third = start(gb=10)
    wait_until(lambda: third.waits)
    later = next(job for job in (first, second) if "shares with" in job.said)
    assert re.search(
        r"computes on GPU 0 \(NVIDIA T, 24 GB\), which it shares with pid \d+, -c 1 .* \(10 GB\)", later.said
    )
    first.end()
    assert third.devices == [A]


def test_two_that_want_all_devices_do_not_wait_for_each_other(pretended, start):
    pretended(one("a", 10), one("b", 10))
    held = start()
    assert held.devices == [A]
    both, other = start(n=2, then=""), start(n=2, then="")
    wait_until(lambda: both.waits and other.waits)
    held.end()
    assert both.devices == other.devices == [A, B]


def test_who_wants_several_is_not_passed_by_those_who_want_one(pretended, start):
    pretended(one("a", 10), one("b", 10))
    assert start().devices == [A]
    both = start(n=2)
    wait_until(lambda: both.waits)
    single = start()
    wait_until(lambda: single.waits)  # although b is empty
    assert f"before this job comes pid {both.process.pid}" in single.said


@pytest.mark.parametrize("chosen", ["1", B])
def test_a_choice_of_the_user_is_kept(pretended, start, chosen):
    pretended(one("a", 10), one("b", 10))
    first = start(CUDA_VISIBLE_DEVICES=chosen)
    assert first.devices == [B]
    second = start(CUDA_VISIBLE_DEVICES=chosen)
    wait_until(lambda: second.waits)
    assert start().devices == [A]  # waits for nobody who waits for another one
    assert start(CUDA_VISIBLE_DEVICES="").devices == [""]


def test_instances_of_a_divided_gpu_are_devices_of_their_own(pretended, start):
    pretended(DIVIDED)
    assert [start(gb=4).devices, start(gb=4).devices] == [["MIG-x"], ["MIG-y"]]


def test_slurm_separates_its_jobs_and_not_what_runs_in_one(pretended, start):
    pretended(one("a", 10))
    assert start(SLURM_JOB_ID="1").devices == [A]
    assert start(SLURM_JOB_ID="2").devices == [A]
    assert start().devices == [A]
    second = start(SLURM_JOB_ID="1")
    wait_until(lambda: second.waits)


def test_too_many_devices_are_refused(pretended, monkeypatch):
    pretended(one("a"), DIVIDED)
    with pytest.raises(SegpipeError, match=r"runtime\.num_gpus\n.*found: +1 for this job\n.*expected: 2"):
        lease.take(2, GB)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SegpipeError, match=r"1 for this job, CUDA_VISIBLE_DEVICES=0\n"):
        lease.take(2, GB)


def test_a_folder_that_another_one_made_is_refused(pretended, tmp_path):
    pretended(one("a"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"segpipe-gpu-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SegpipeError, match="the folder of the GPU leases is not yours"):
        lease.take(1, GB)


def test_without_a_folder_nothing_is_leased_and_the_job_goes_on(pretended, tmp_path, caplog):
    pretended(one("a"))
    folder = tmp_path / f"segpipe-gpu-{os.getuid()}"
    tmp_path.joinpath("gone").mkdir()
    tempfile.tempdir = str(tmp_path / "gone")
    tmp_path.joinpath("gone").rmdir()
    assert lease.take(1, 8e9) == ()
    assert "no GPU is leased, as no temporary directory can be written to (TMPDIR)" in caplog.text
    assert not folder.exists()


def test_nobody_else_reads_what_runs(pretended, start, tmp_path):
    pretended(one("a"))
    assert start().devices == [A]
    assert (tmp_path / f"segpipe-gpu-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_files_of_dead_jobs_are_removed(pretended, start, tmp_path):
    pretended(one("a"))
    for _ in range(3):
        job = start()
        assert job.devices == [A]
        job.kill()
    assert len(list(tmp_path.glob("segpipe-gpu-*/*.json"))) == 1


def test_a_gpu_that_others_use_is_said(pretended, start):
    pretended(one("a", 10))
    first = start()
    assert first.devices == [A]
    job = start()
    wait_until(lambda: job.waits)
    pretended(one("a", 10, used_gb=9))
    first.kill()
    time.sleep(1)
    assert "computes" not in job.said
    assert job.devices == [A]
    assert "GPU 0 (NVIDIA T, 10 GB): others use 9 GB of it, and no GPU here has more room" in job.said


# ---- a process and its lease -----------------------------------------------------------------------------------------


@pytest.fixture
def held(pretended, monkeypatch, start):
    """Let this process have a lease, as long as the test runs."""
    monkeypatch.setattr(lease, "_held", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    yield
    if lease._held is not None:
        os.close(lease._held.lock)


@pytest.mark.usefixtures("held")
def test_a_process_keeps_what_it_has(pretended):
    pretended(one("a"), one("b"))
    first = lease.take(1, GB, number=1)
    assert [gpu.uuid for gpu in first] == [os.environ["CUDA_VISIBLE_DEVICES"]] == [B]
    assert lease.take(2, 3 * GB) == first
    assert "(3 GB)" in str(lease._held.claim)
    named = {"index": 1, "name": "NVIDIA T", "uuid": B, "bytes": 24 * 10**9}
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": "580.65.06"}
    assert device.facts(torch.device("cuda"), ALONE) == {"device": "cuda", "gpus": [named], **versions}
    assert device.facts(torch.device("cpu"), ALONE) == {"device": "cpu", "gpus": []}


@pytest.mark.usefixtures("held")
def test_others_leave_what_they_do_not_promise_to_take(pretended, start):
    pretended(one("a", 40))
    assert lease.left_bytes() is None
    lease.take(1, 8 * GB)
    assert lease.left_bytes() is None  # alone
    assert start(gb=10).devices == [A]
    assert lease.left_bytes() == pytest.approx((0.95 * 40 - 10.6 - 0.6) * GB)
    lease.promise(30 * GB)
    second = start(gb=1)
    wait_until(lambda: second.waits)
    lease.promise(8 * GB)
    assert second.devices == [A]


@pytest.mark.usefixtures("held")
def test_free_is_what_others_neither_have_nor_may_take(pretended, start, monkeypatch):
    pretended(one("a", 40))
    free = [30 * 10**9]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda on: (free[0], 40 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda on: 2 * 10**9)
    on = torch.device("cuda")
    assert device.free_bytes(on) == free[0]
    lease.take(1, 8 * GB)
    assert device.free_bytes(on) == free[0]
    assert start(gb=10).devices == [A]
    assert device.free_bytes(on) == pytest.approx((0.95 * 40 - 10.6 - 0.6 - 2) * GB)
    free[0] = 10**9
    assert device.free_bytes(on) == free[0]


# ---- the device of a job ---------------------------------------------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """What is asked of the lease, by jobs whose torch has CUDA."""
    asked = []
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(lease, "take", lambda *arguments: asked.append(arguments) or [gpu("a")])
    return asked


def reserve(name):
    return device.reserve(name, 8 * GB)


@pytest.mark.parametrize(
    ("name", "asked", "used"),
    [
        ("auto", [(1, 8 * GB, None)], "auto"),
        ("cuda", [(1, 8 * GB, None)], "cuda"),
        ("cuda:1", [(1, 8 * GB, 1)], "cuda"),  # the only one that CUDA sees then
        ("cpu", [], "cpu"),
        ("mps", [], "mps"),
    ],
)
def test_a_job_leases_what_its_settings_name(taken, name, asked, used):
    assert reserve(name) == used
    assert taken == asked


RANKS = """
import sys
from segpipe import launched
launched.begin()
import logging, os, signal, time
from pathlib import Path
from segpipe import digest
from segpipe.cli import launch
logging.basicConfig(level="INFO", format="%(message)s")
lock = Path("state/.lock")
if launched.is_rank():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it takes long to save what it has
    with digest.exclusive(lock, "a rank that trains"):
        print("sees", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
        while not Path("end").exists():
            time.sleep(0.05)
else:
    launch.ranks(sys.argv, 2, "auto", lock=lock)
"""


def test_ranks_take_the_lock_of_what_they_write_before_their_gpus_and_keep_it(pretended, start, tmp_path, monkeypatch):
    """Else the holder of the lock may wait for a GPU of those who wait for its lock."""
    pretended(one("a"), one("b"))
    (tmp_path / "train.py").write_text(RANKS)
    lock = tmp_path / "state/.lock"
    with Launcher(tmp_path) as launcher:
        with digest.exclusive(lock, "another training"):
            launcher.begin()
            wait_until(lambda: "is being written by" in launcher.said)
            wanting = start(n=2)
            wait_until(lambda: "computes on" in wanting.said)
            wanting.end()
        wait_until(lambda: launcher.said.count("sees") == 2)
        assert sorted(re.findall("sees (GPU-.)", launcher.said)) == [A[:5], B[:5]]
        launcher.kill()  # its ranks outlive it for a moment
        monkeypatch.setenv("SLURM_JOB_ID", "1")  # a lock that is taken raises an error there
        with pytest.raises(digest.Busy, match="a rank that trains"), digest.exclusive(lock, ""):
            pass
    monkeypatch.delenv("SLURM_JOB_ID")
    with digest.exclusive(lock, "the next training"):
        pass


class Launcher:
    """The job of RANKS, in a folder; its ranks end with the block."""

    def __init__(self, folder):
        self.folder, self.messages = folder, folder / "launcher.log"

    def begin(self):
        python_path = os.pathsep.join([str(REPO), str(TESTS), os.environ["PYTHONPATH"]])
        with self.messages.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "train.py"],
                cwd=self.folder,
                env={**environment(), "PYTHONPATH": python_path},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    @property
    def said(self):
        return self.messages.read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        (self.folder / "end").touch()
        self.kill()


@pytest.mark.parametrize(
    ("name", "n", "said"),
    [
        ("auto", 3, r"fewer GPUs.*num_gpus\n.*found: +2 for this job\n.*expected: 3\n"),
        ("cuda:1", 2, r"fewer GPUs.*num_gpus\n.*found: +1 for this job\n.*expected: 2\n"),
        ("cuda:7", 2, r"fewer GPUs.*num_gpus\n.*found: +0 for this job\n.*expected: 2\n"),
    ],
)
def test_more_ranks_than_gpus_are_refused_before_anything_is_taken(pretended, monkeypatch, tmp_path, name, n, said):
    pretended(one("a"), one("b"))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(launch, "_Requests", list)
    with pytest.raises(SegpipeError, match=f"(?s){said}"):
        launch.ranks(NOTHING, n, name, lock=tmp_path / "state/.lock")
    assert [path.name for path in tmp_path.iterdir()] == ["gpus.json"]


def test_more_ranks_than_cuda_finds_without_nvml_are_refused(monkeypatch):
    monkeypatch.setattr(gpus, "installed", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch._require_gpus(2, "cuda", ("num_gpus", "device"))
    for n, name, found in ((3, "auto", 2), (2, "cuda:1", 1)):
        with pytest.raises(SegpipeError, match=rf"fewer GPUs.*\n.*num_gpus\n.*found: +{found} for this job\n"):
            launch._require_gpus(n, name, ("num_gpus", "device"))


def test_ranks_on_a_device_that_is_absent_are_refused_before_anything_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "installed", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch, "_Requests", list)
    with pytest.raises(SegpipeError, match="no such device"):
        launch.ranks(NOTHING, 2, "cuda", lock=tmp_path / "state/.lock")
    assert not list(tmp_path.iterdir())


def test_mps_is_one_device(taken, monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "_Requests", list)
    with pytest.raises(SegpipeError, match="one such device"):
        launch.ranks(NOTHING, 2, "mps", lock=tmp_path / ".lock")


@pytest.fixture
def rank_one(monkeypatch):
    """This process is the second of two ranks."""
    told = {launched.LAUNCHER: str(os.getppid()), "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    for of_a_real_rank in ("_end_with_launcher", "_keep_lock"):
        monkeypatch.setattr(launched, of_a_real_rank, lambda: None)


@pytest.mark.parametrize("name", ["auto", "cuda", "cpu"])
def test_a_rank_leases_nothing(taken, rank_one, name):
    assert reserve(name) == name
    assert taken == []


def test_a_rank_whose_cuda_runs_has_its_device(taken, rank_one, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert reserve("cuda:1") == "cuda"
    assert taken == []


@pytest.mark.usefixtures("held")
def test_a_later_trial_of_a_process_has_its_device_and_says_what_it_keeps_within(pretended, monkeypatch):
    pretended(one("a"), one("b"))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for runs, gb in ((False, 8), (True, 20)):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda runs=runs: runs)
        assert device.reserve("cuda:1", gb * GB) == "cuda"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == B
        assert lease._held.claim.n_bytes == gb * GB


@pytest.fixture
def cuda(monkeypatch):
    """Let CUDA show this process the device of a UUID."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def show(uuid):
        seen = SimpleNamespace(uuid=uuid.removeprefix("GPU-"))  # as torch has it
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: seen)

    return show


def started(name="auto"):
    return device.start(params(runtime__device=name, runtime__threads=1).runtime, 8 * GB)


@pytest.mark.usefixtures("held")
def test_cuda_that_began_before_the_lease_is_noticed(pretended, cuda):
    """It sees all devices then, and would compute on the first one. torch does not know if a module asked for them."""
    pretended(one("a"), one("b"))
    cuda(B)
    assert started("cuda:1") == torch.device("cuda")
    cuda(A)
    with pytest.raises(SegpipeError, match=rf"CUDA was started before.*\n.*\n.*computes on {A}\n.*{B}, GPU 1"):
        started("cuda:1")


def test_a_rank_whose_cuda_began_too_early_is_noticed(pretended, cuda, rank_one, monkeypatch):
    pretended(one("a"), one("b"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", B)
    cuda(B)
    assert started() == torch.device("cuda")
    cuda(A)
    with pytest.raises(SegpipeError, match="CUDA was started before"):
        started()


@pytest.mark.usefixtures("held")
def test_of_an_instance_cuda_may_say_its_gpu(pretended, cuda, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    pretended(DIVIDED)
    cuda(B)
    assert started() == torch.device("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-x"


@pytest.mark.parametrize(
    ("visible", "seen"), [("GPU-a,GPU-b", "GPU-b"), (None, "1"), ("GPU-a", "GPU-a"), ("3,5,1,0", "5")]
)
def test_a_rank_sees_its_own_device(rank_one, monkeypatch, visible, seen):
    monkeypatch.setenv(launched.VISIBLE, visible or "")  # which is taken back after the test
    if visible is None:
        del os.environ[launched.VISIBLE]
    launched.begin()
    assert os.environ[launched.VISIBLE] == seen


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda:", "auto1"])
def test_nothing_is_leased_under_a_malformed_name(taken, name):
    assert reserve(name) == name
    assert taken == []


def test_nothing_is_leased_without_cuda_or_where_it_runs_already(taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert reserve("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert reserve("cuda:1") == "cuda:1"
    assert taken == []


def test_a_notebook_leases_nothing(taken):
    device.use("cpu")
    assert taken == []


# ---- the workflow ----------------------------------------------------------------------------------------------------

NOTE = """
import os
def note(training, row):
    with open("noted", "a") as file:
        file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\\n")
"""


def test_folds_train_side_by_side_each_on_its_gpu(copy: Project, pretended):
    """With nothing set. One after the other they would both take the first GPU."""
    pretended(one("a", 10), one("b", 10))
    (copy.folder / "own.py").write_text(NOTE)
    copy.set("train.callbacks", ["own:note"])
    copy.set("runtime.device", "auto")
    models = [f"results/3d_fullres/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)]
    output = copy.snakemake(*models, "--set-threads", "train=1")
    noted = {*(copy.folder / "noted").read_text().splitlines()}  # of a training the same line in each epoch
    assert sorted(line.split()[0] for line in noted) == [A, B]
    assert 'Provided resources: gpu=Resource("gpu", 2)' in output
    assert "computes on GPU 1 (NVIDIA T, 10 GB)" in output
    assert "waiting for" not in output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--resources", "gpu=5"], ["5"]), (["--jobs", "9"], [])],  # with --jobs it may be a cluster
)
def test_the_number_of_gpus_may_be_said_and_is_not_known_of_a_cluster(fresh: Project, pretended, arguments, expected):
    pretended(one("a"), one("b"))
    fresh.snakefile = fresh.folder / "Snakefile"
    fresh.snakefile.write_text(f'include: "{REPO}/workflow/rules/common.smk"\nrule all:\n    shell: "true"\n')
    fresh.set("runtime.device", "auto")
    assert re.findall(r'Provided resources: gpu=Resource\("gpu", (\d+)\)', fresh.snakemake(*arguments)) == expected
