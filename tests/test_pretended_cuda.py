"""What runs on a CUDA device, on one that is pretended (pretended_cuda/): machines without a GPU run the same code.

It shows devices that are mixed, work of the host on memory of the device, what makes the host wait, and results. It
cannot show what a real device alone has: an order between streams, kernels of its own, compiling.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from conftest import REPO, Project, environment, tiny_params
from pretended_cuda import pretended

pytestmark = [
    pytest.mark.skipif(pretended.compiler() is None, reason="compiling the device needs a C++ compiler"),
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has a CUDA of its own (test_cuda.py)"),
]

SEGPIPE = Path(sys.executable).with_name("segpipe")

Call = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def call() -> Call:
    """Run Python where there is the device, of `n_bytes`."""
    pretended.library()

    def run(*arguments: str, n_bytes: int = 8 * 2**30, cwd: Path = REPO) -> "CompletedProcess[str]":
        env = {**environment(), **pretended.environment(n_bytes)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=False, env=env, cwd=cwd, capture_output=True, text=True)

    return run


DEVICE = """
import torch
from pretended_cuda import pretended
x = torch.arange(6.0, device="cuda").reshape(2, 3)
assert x.is_cuda and x.device == torch.device("cuda:0") and type(x) is torch.Tensor

def refused(act, words):
    try:
        act()
    except (RuntimeError, TypeError) as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

def waiting(act):
    before = pretended.waits()
    act()
    return pretended.waits() - before

refused(lambda: x + torch.ones(3), "same device")
refused(lambda: torch.cat([x, torch.ones(2, 3)]), "same device")
refused(lambda: torch.randn(2, device="cuda", generator=torch.Generator()), "generator")
refused(x.numpy, "numpy")
refused(lambda: torch.empty(2**40, dtype=torch.uint8, device="cuda"), "out of memory")
assert (x + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]  # a number may come from the host
host = torch.ones(3)
assert waiting(lambda: x.sum().item()) == waiting(lambda: x.cpu()) == waiting(lambda: host.to("cuda")) == 1
assert waiting(lambda: x[x > 2]) and waiting(lambda: x.nonzero())
pinned = host.pin_memory()
assert waiting(lambda: pinned.to("cuda")) == 1
assert waiting(lambda: pinned.to("cuda", non_blocking=True)) == 0
assert waiting(lambda: (x @ x.T).softmax(0).add_(1)[0].sum(0, keepdim=True)) == 0
torch.cuda.set_sync_debug_mode("error")
refused(lambda: x.sum().item(), "synchronizing")
torch.cuda.set_sync_debug_mode("default")
before = torch.cuda.memory_allocated()
y = torch.zeros(1000, device="cuda") + 1
assert torch.cuda.memory_allocated() == before + 4000
del y
assert torch.cuda.memory_allocated() == before
"""


def test_the_device_refuses_what_a_real_one_refuses(call: Call) -> None:
    ran = call("-c", DEVICE, cwd=REPO / "tests")
    assert ran.returncode == 0, ran.stderr


def test_the_tests_of_cuda_pass_on_it(call: Call) -> None:
    ran = call("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests/test_cuda.py")
    assert ran.returncode == 0, ran.stdout
    assert "14 passed" in ran.stdout, ran.stdout


TRAININGS = """
from dataclasses import replace
import torch
from memory import run, training, weights
from tiny import planned

cube = planned([16, 16, 16])
channels = {"normalisation": ["zscore"] * 2, "use_mask_for_norm": [False, True]}
for plan, changes in (
    (cube, {"runtime__feeding": "host", "train__ema__decay": 0.9}),
    (cube, {"runtime__feeding": "file", "runtime__pin_memory": False, "runtime__channels_last": True}),
    (cube, {"train__accumulate": 2, "train__loss__voxel": "topk", "train__loss__boundary_weight": 1.0}),
    (cube, {"train__optimiser__name": "adamw", "train__deterministic": True}),
    (replace(cube, **channels), {"train__loss__voxel": "focal", "runtime__feed_threads": 3}),
    (replace(cube, architecture="resenc", batch_dice=True), {}),
    (planned([16, 16]), {}),
):
    made = []
    for device in ("cpu", "cuda"):
        changes |= {"runtime__device": device, "runtime__compile": "never", "train__epochs": 2}
        one = run(training(plan, **changes))
        made.append((one.rows, weights(one.network).cpu()))
        assert {p.device.type for p in one.network.parameters()} == {device}
    assert made[0][0] == made[1][0], changes
    assert torch.equal(made[0][1], made[1][1]), changes
assert run(training(cube, runtime__device="cuda", train__precision="fp16")).scaler.is_enabled()
"""


def test_trainings_come_to_the_weights_of_the_cpu(call: Call) -> None:
    """Other feeding, layouts, losses, networks: where there is another way for CUDA it leads to the same bits."""
    ran = call("-c", TRAININGS, cwd=REPO / "tests")
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def on_both(finished: Project, tmp_path_factory: pytest.TempPathFactory, call: Call) -> dict[str, Project]:
    """One fold of the phantoms, trained and validated on the CPU and on the device."""
    projects = {}
    for device in ("cpu", "cuda"):
        project = projects[device] = Project(tmp_path_factory.mktemp(device))
        for name in ("data", ".snakemake"):
            shutil.copytree(finished.folder / name, project.folder / name)
        settings = tiny_params()
        settings["runtime"]["device"] = device
        settings["train"].update(precision="off", iterations_per_epoch=4)
        settings["validate"]["mirroring"] = True
        project.write(settings)
        ran = call(*project.command("results/fold_0/summary.json")[1:], cwd=project.folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return projects


def published(project: Project) -> dict[str, bytes]:
    """What must not depend on the device."""
    fold = project.folder / "results/3d_fullres/fold_0"
    files = [fold / "metrics.csv", *(fold / "validation_final/segmentations").iterdir()]
    return {file.name: file.read_bytes() for file in files}


def test_the_pipeline_makes_there_what_it_makes_on_the_cpu(on_both: dict[str, Project]) -> None:
    """The same kernels compute, so where the code takes another way for CUDA it takes it to the same values."""
    cpu, cuda = on_both["cpu"], on_both["cuda"]
    (log,) = (cuda.folder / "results/3d_fullres/fold_0/state").glob("*/train.log")
    assert "feeding from tier device" in log.read_text()
    assert published(cuda) == published(cpu)
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        weights = [
            torch.load(one.folder / "results/3d_fullres/fold_0" / name, weights_only=True)["network"]
            for one in (cpu, cuda)
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        assert {str(weight.device) for weight in weights[1].values()} == {"cpu"}
    for file in (cpu.folder / "results/3d_fullres/fold_0/validation_final/softmax").glob("*.npz"):
        softmax = [np.load(one.folder / file.relative_to(cpu.folder))["probabilities"] for one in (cpu, cuda)]
        np.testing.assert_allclose(softmax[1], softmax[0], atol=1e-6)


@pytest.mark.parametrize("n_bytes", [2**33, 3 * 2**20], ids=["in its memory", "beside it"])
def test_a_device_predicts_what_the_cpu_predicts(
    on_both: dict[str, Project], call: Call, tmp_path: Path, n_bytes: int
) -> None:
    """In little memory as well."""
    project = on_both["cuda"]
    images = project.folder / "data/raw/Dataset000_Phantoms/imagesTs"
    options = ["--model", "results", "-i", str(images)]
    for device, memory in (("cpu", 2**33), ("cuda", n_bytes)):
        to = ["-o", str(tmp_path / device), "--device", device]
        ran = call(str(SEGPIPE), "predict", *options, *to, n_bytes=memory, cwd=project.folder)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    made = sorted(one.relative_to(tmp_path / "cpu") for one in (tmp_path / "cpu").glob("*.nii.gz"))
    assert made
    for one in made:
        assert (tmp_path / "cuda" / one).read_bytes() == (tmp_path / "cpu" / one).read_bytes()
