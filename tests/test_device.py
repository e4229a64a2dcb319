"""Which device and which precision."""

import os
import resource
import subprocess
import sys

import pytest
import torch
from tiny import params

from segpipe import device
from segpipe.errors import SegpipeError


def start(**changes):
    return device.start(params(**changes).runtime, 8e9)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it comes back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(device.lease, "take", lambda *arguments: ())  # tests/test_lease.py
    yield
    torch.set_num_threads(before)
    device.set_deterministic(False)


@pytest.fixture
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert start(runtime__device="auto") == torch.device("cpu")


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", "mps"])
def test_a_device_that_is_absent_stops_with_its_name(name):
    with pytest.raises(SegpipeError, match=rf"runtime\.device\n.*{name}\n.*auto, cpu\n"):
        start(runtime__device=name)


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("name", ["foo", "meta", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_what_is_no_device_is_told_to_who_named_it(name):
    with pytest.raises(SegpipeError, match=rf"no such device\n.*where:    device\n.*{name}\n.*auto, cpu\n"):
        device.use(name)


def test_auto_prefers_cuda_and_a_number_must_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert start(runtime__device="auto") == torch.device("cuda")
    assert chosen == []  # the first, or what CUDA_VISIBLE_DEVICES says
    assert start(runtime__device="cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]  # or streams and allocations of the first one would be used
    with pytest.raises(SegpipeError, match="cuda:0, cuda:1"):
        start(runtime__device="cuda:2")


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert start(runtime__device="auto") == torch.device("mps")


def test_threads_are_set():
    start(runtime__device="cpu", runtime__threads=3)
    assert torch.get_num_threads() == 3
    start(runtime__device="cpu", runtime__threads=1)
    assert torch.get_num_threads() == 1
    start(runtime__device="cpu", runtime__threads=None)
    assert torch.get_num_threads() == 1  # left as it is


def test_no_more_threads_than_the_job_is_granted_processors(monkeypatch):
    monkeypatch.setattr(device.machine, "n_threads", lambda wanted: 2)
    torch.set_num_threads(5)
    start(runtime__device="cpu", runtime__threads=None)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("soft", "hard", "asked"),
    [
        (256, 4096, 4096),
        (1024, 524288, device.MOST_FILES),
        (1024, resource.RLIM_INFINITY, device.MOST_FILES),
        (4096, 4096, None),
        (524288, 1048576, None),  # never lowered
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_as_many_files_may_be_open_as_the_system_allows(monkeypatch, soft, hard, asked):
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (soft, hard) if what == resource.RLIMIT_NOFILE else None)
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: calls.append((what, *limits)))
    device.raise_file_limit()
    assert calls == ([] if asked is None else [(resource.RLIMIT_NOFILE, asked, hard)])


def test_the_file_limit_is_raised_at_the_start():
    """In a process of its own: it holds for all of one."""
    code = (
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))\n"
        "from tiny import params\n"
        "from segpipe import device\n"
        "device.start(params().runtime, 8e9)\n"
        "soft, after = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "assert after == hard\n"
        "assert soft == (device.MOST_FILES if hard < 0 else min(hard, device.MOST_FILES)) > 200\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    )


def test_precision(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert device.precision("off", cpu) == torch.float32
    assert device.precision("bf16", cpu) == torch.bfloat16
    assert device.precision("fp16", cuda) == torch.float16
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda on, capability=capability: capability)
        assert device.precision("auto", cuda) == expected
    assert device.precision("auto", cpu) in (torch.float32, torch.bfloat16)


def test_fp16_needs_cuda():
    with pytest.raises(SegpipeError, match=r"fp16 needs CUDA\n.*precision; in params\.yaml: train\.precision"):
        device.precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("version", "hip", "warns"),
    [(91002, None, True), (91501, None, False), (None, None, False), (30200, "6.4", False)],
)
def test_an_old_cudnn_is_warned_of(monkeypatch, caplog, version, hip, warns):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(torch.version, "hip", hip)
    device.use("cuda")
    assert ("cuDNN 91002 is older than 91501" in caplog.text) == warns
    caplog.clear()
    device.use("cpu")
    assert caplog.text == ""


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False, True])
def test_deterministic_means_the_same_algorithms_twice_else_the_fastest_ones(wanted):
    device.set_deterministic(wanted)
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # what cannot be deterministic is an error
    assert torch.backends.cudnn.deterministic == wanted
    assert torch.backends.cudnn.benchmark != wanted


@pytest.mark.parametrize("first", [True, False])
def test_cublas_gets_the_workspace_that_determinism_needs(monkeypatch, first):
    """In any case: it is read when CUDA starts, and a later training of the process may want it."""
    device.set_deterministic(first)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's choice


def test_determinism_fills_no_memory_that_is_written_anyway():
    device.set_deterministic(True)
    assert not torch.utils.deterministic.fill_uninitialized_memory
