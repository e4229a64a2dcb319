"""Which device and which precision."""

import os

import pytest
import torch
from tiny import params

from segpipe import device
from segpipe.errors import SegpipeError


def start(**changes):
    return device.start(params(**changes).runtime)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it comes back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
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


def test_auto_prefers_cuda_and_a_number_must_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert start(runtime__device="auto") == torch.device("cuda")
    assert start(runtime__device="cuda:1") == torch.device("cuda:1")
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
    with pytest.raises(SegpipeError, match="fp16 needs CUDA"):
        device.precision("fp16", torch.device("cpu"))


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False, True])
def test_deterministic_means_the_same_algorithms_twice_else_the_fastest_ones(wanted):
    device.set_deterministic(wanted)
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # what cannot be deterministic is an error
    assert torch.backends.cudnn.deterministic == wanted
    assert torch.backends.cudnn.benchmark != wanted


def test_cublas_gets_the_workspace_that_determinism_needs(monkeypatch):
    device.set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    device.set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's choice


def test_determinism_fills_no_memory_that_is_written_anyway():
    device.set_deterministic(True)
    assert not torch.utils.deterministic.fill_uninitialized_memory
