"""What only a CUDA device can show: the same batches from every tier, no waiting, the same bits again, memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Project, environment, tiny_params
from memory import feed_of, run, store, training, weights
from tiny import params, planned

from segpipe import gpus
from segpipe.training import tiers
from segpipe.training.feed import ahead, arriving
from segpipe.training.loop import train_step
from segpipe.training.setup import Setup

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
TIERS = ("device", "host", "file")


@pytest.fixture(autouse=True)
def _as_before():
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.use_deterministic_algorithms(False)


def feed_on_cuda(**changes):
    return replace(
        feed_of(store(planned([24, 32, 28]), 6, (40, 36, 44)), on="cuda", **changes), stream=torch.cuda.Stream()
    )


def batches(one, numbers, threads=1):
    return list(arriving(ahead(one.training, numbers, 3, threads), CUDA, 3))


def same(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.sources == other.sources


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_every_tier_gives_the_same_batches(threads):
    expected = batches(feed_on_cuda(runtime__feeding="file", runtime__pin_memory=False), range(20), 0)
    for tier in TIERS:
        one = feed_on_cuda(runtime__feeding=tier)
        assert one.held.choice.tier == tier
        found = batches(one, range(20), threads)
        assert all(batch.image.is_cuda and batch.label.is_cuda for batch in found)
        assert all(map(same, found, expected))


def test_validation_batches_are_those_of_the_cpu():
    one = feed_on_cuda()
    cpu = feed_of(one.store)
    for number in range(4):
        batch, expected = one.validation(number).on(CUDA), cpu.validation(number)
        assert torch.equal(batch.image.cpu(), expected.image)
        assert torch.equal(batch.label.cpu(), expected.label)


@pytest.mark.parametrize("tier", TIERS)
def test_a_device_that_is_behind_still_sees_each_batch_whole(tier):
    """While the training's stream is busy, the next batches are made: neither may have the other's memory."""
    one = feed_on_cuda(runtime__feeding=tier)
    expected = [batch.image.sum(dtype=torch.float64).item() for batch in batches(one, range(30), 0)]
    found = []
    for batch in arriving(ahead(one.training, range(30), 4, 2), CUDA, 4):
        torch.cuda._sleep(20_000_000)  # cycles, about 10 ms
        found.append(batch.image.sum(dtype=torch.float64))
        del batch
    assert torch.stack(found).tolist() == expected


@pytest.mark.parametrize("tier", TIERS)
def test_neither_feeding_nor_a_step_waits_for_the_device(tier):
    one = training(
        planned([16, 16, 16]),
        runtime__device="cuda",
        runtime__feeding=tier,
        runtime__feed_threads=0,
        runtime__compile="never",
        train__precision="bf16",
        train__iterations_per_epoch=45,  # its end is looked at, and each 50th step
    )
    source = arriving(ahead(one.feed.training, range(45), 4, 0), CUDA, 4)
    for step, batch in enumerate(source):
        torch.cuda.set_sync_debug_mode("default" if step < 20 else "error")  # drawn is what comes next, too
        if step < 40:
            one.losses.append(train_step(one, step, [batch]))
    torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(one.losses).isfinite().all()


def test_the_same_bits_again_and_after_a_resume():
    changes = {
        "runtime__device": "cuda",
        "runtime__compile": "never",
        "train__deterministic": True,
        "train__epochs": 2,
        "train__iterations_per_epoch": 10,
    }
    whole, half = run(training(**changes)), run(training(**{**changes, "runtime__feeding": "file"}))
    assert whole.rows == half.rows
    assert torch.equal(weights(whole.network), weights(half.network))
    begun = training(**changes)

    def between():
        if len(begun.rows) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(begun, between)
    resumed = training(**changes)
    resumed.network.load_state_dict(begun.network.state_dict())
    resumed.optimiser.load_state_dict(begun.optimiser.state_dict())
    resumed.rows = begun.rows
    assert run(resumed).rows == whole.rows
    assert torch.equal(weights(resumed.network), weights(whole.network))


def test_memory_holds_the_cases_once_and_does_not_grow():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    one = training(
        planned([16, 16, 16]),
        runtime__device="cuda",
        runtime__compile="never",
        train__iterations_per_epoch=60,
        train__precision="bf16",
    )
    held = one.feed.held
    assert held.choice.tier == "device"
    assert torch.cuda.memory_allocated() - before >= held.room.dataset
    allocated = []
    for step, batch in enumerate(arriving(ahead(one.feed.training, range(60), 4, 1), CUDA, 4)):
        one.losses.append(train_step(one, step, [batch]))
        allocated.append(torch.cuda.memory_reserved())
    assert allocated[-1] <= 1.5 * allocated[19]
    assert torch.cuda.max_memory_allocated() < 2**30


def test_a_tier_without_room_is_refused_or_left(monkeypatch):
    monkeypatch.setattr(tiers.device, "free_bytes", lambda on: 1000)
    held = tiers.hold(store(), ["c0"], params(runtime__device="cuda"), CUDA)
    assert held.choice.tier == "host"
    assert not held.cases["c0"].image.is_cuda


def test_the_training_of_params_starts_on_the_device():
    one = Setup.of(store(), {"train": ["c0", "c1"], "val": ["c3"]}, params(runtime__device="auto"))
    feed = one.training(None, lambda: None).feed
    assert feed.held.choice.tier == "device"
    assert all(case.image.is_cuda for case in feed.held.cases.values())
    assert isinstance(feed.stream, torch.cuda.Stream)


LEASED = """
import sys, torch
from tiny import params
from segpipe import device, gpus
before = len(gpus.visible())
on = device.start(params(runtime__device=sys.argv[1]).runtime, 1e9)
block = torch.zeros(2**28, dtype=torch.uint8, device=on)
uuid = torch.cuda.get_device_properties(on).uuid
(gpu,) = gpus.visible()
assert torch.cuda.device_count() == 1
assert gpu.uuid.removeprefix("GPU-") == str(uuid), (gpu, uuid)
assert abs(gpu.total_bytes - torch.cuda.mem_get_info(on)[1]) < 0.05 * gpu.total_bytes
assert gpu.used_bytes >= 2**28
print(before, gpu.uuid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not gpus.visible(), reason="needs a driver that tells of its devices")
def test_a_job_computes_on_the_device_that_it_has_leased(tmp_path):
    """Jobs find devices of their own as far as there are any, then share one; NVML and CUDA agree on them."""
    env = {**environment(), "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    n_visible = len(gpus.visible())
    names = ["auto", *["cuda"] * (n_visible - 1), "cuda:0"]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", LEASED, name], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    said = [job.stdout.readline().split() for job in jobs]
    for job in jobs:
        job.communicate()
        assert job.returncode == 0
    assert {int(n) for n, _ in said} == {n_visible}
    assert len({uuid for _, uuid in said}) == n_visible


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_what_one_trains(tmp_path):
    """Through snakemake and torchrun; the same samples, so weights that differ by rounding."""
    made = []
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        project = Project(tmp_path / str(n))
        settings = tiny_params()
        settings["train"].update(precision="off")
        settings["runtime"].update(device="cuda", num_gpus=n)
        project.write(settings)
        project.snakemake("results/3d_fullres/fold_0/checkpoint_final.pth")
        found = torch.load(project.folder / "results/3d_fullres/fold_0/checkpoint_final.pth", weights_only=True)
        made.append(found["network"])
    for name in made[0]:
        torch.testing.assert_close(made[1][name], made[0][name], rtol=1e-2, atol=1e-3)
