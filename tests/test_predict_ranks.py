"""`segpipe predict --num-gpus 2` on the CPU: two processes make what one makes, and end together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import torch
from conftest import environment, wait_until
from interop import IMAGES, segpipe
from volumes import REPO

from segpipe import digest, gpus, launched, machine
from segpipe.cli import launch
from segpipe.cli.main import main
from segpipe.gpus import Gpu
from segpipe.inference.predict_cases import lock

TESTS = Path(__file__).parent
CASES = "abcdefg"
QUICK = ("--no-mirroring", "--device", "cpu")
IN_TWO = (*QUICK, "--num-gpus", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Seven cases, each with an image of its own."""
    folder = tmp_path_factory.mktemp("images")
    for number, case in enumerate(CASES):
        for channel in (0, 1):
            image = nibabel.load(IMAGES / f"case_004_000{channel}.nii.gz")
            rolled = nibabel.Nifti1Image(np.roll(np.asanyarray(image.dataobj), number, 0), image.affine)
            nibabel.save(rolled, folder / f"{case}_000{channel}.nii.gz")
    return folder


class Call:
    """A running `segpipe predict`, in a session of its own."""

    def __init__(self, model, images, out, *options, **env):
        code = "import sys; from segpipe.cli.main import main; main(sys.argv[1:])"
        words = ["predict", "--model", model, "-i", images, "-o", out, *options]
        self.out, self.log = out, out.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, words)],
                cwd=out.parent,
                env={**environment(), "OMP_NUM_THREADS": "2", "PYTHONPATH": str(REPO), **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ended(self):
        """Its exit code, and what it said."""
        return self.process.wait(300), self.log.read_text()

    def says(self, text):
        """Wait until it does."""
        wait_until(lambda: text in self.log.read_text() or self.process.poll() is not None)
        assert text in self.log.read_text()

    def ranks(self):
        return sorted(psutil.Process(self.process.pid).children(), key=lambda one: int(one.environ()["LOCAL_RANK"]))


def files(out):
    return {
        path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"
    }


def records(out):
    """When the record of each finished case was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (out / ".segpipe").glob("*.json")}


def test_two_processes_make_what_one_makes_and_say_what_it_says(flat, images, tmp_path, capsys):
    """Also of cases that fail."""
    shutil.copytree(images, tmp_path / "images")
    for case in "bc":
        (tmp_path / f"images/{case}_0001.nii.gz").write_bytes(b"damaged")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    with pytest.raises(SystemExit):
        segpipe("predict", "--model", flat, "-i", tmp_path / "images", "-o", alone, *QUICK)
    summary = re.search(r"cases that could not be predicted: 2 problems\n(.+)", capsys.readouterr().err, re.S)
    code, said = Call(flat, tmp_path / "images", shared, *IN_TWO).ended()
    assert code == 2, said
    assert said.endswith(summary[0])
    assert re.findall(r"\w_0001\.nii\.gz", summary[0]) == ["b_0001.nii.gz", "c_0001.nii.gz"]
    assert files(shared) == files(alone)
    assert sorted(records(shared)) == [*"adefg"]
    lines = said.splitlines()
    assert lines[0] == "2 ranks of 1 threads each"
    assert lines.count("7 cases, 0 of them predicted before") == 1
    of_cases = [line for line in lines if line.endswith(" predicted") or "is left out" in line]
    expected = [*(f"{case} predicted" for case in "aeg"), "c is left out: unreadable file"]
    expected += ["rank 1: b is left out: unreadable file", "rank 1: d predicted", "rank 1: f predicted"]
    assert sorted(of_cases) == sorted(expected)
    assert "Traceback" not in said
    assert "another rank" not in said


def test_one_that_is_killed_or_interrupted_ends_all_and_the_next_call_goes_on(flat, images, tmp_path, killed):
    out = tmp_path / "out"

    def stopped(how, n_before):
        call = Call(flat, images, out, *IN_TWO)
        killed.append(call.process.pid)
        wait_until(lambda: len(records(out)) > n_before)
        ranks = call.ranks()
        how(call, ranks)
        code, said = call.ended()
        assert not any(rank.is_running() for rank in ranks)
        assert "Traceback" not in said
        assert "another rank" not in said
        return code, said, ranks

    code, said, ranks = stopped(lambda call, ranks: ranks[1].kill(), 0)
    assert code == 128 + signal.SIGKILL
    assert f"rank 1 of 2, pid {ranks[1].pid}\n  found:    SIGKILL" in said
    done = records(out)
    assert 1 <= len(done) < 6

    code, said, _ = stopped(lambda call, _: os.killpg(call.process.pid, signal.SIGINT), len(done))
    assert code == 128 + signal.SIGINT
    assert f"7 cases, {len(done)} of them predicted before" in said
    interrupted = records(out)
    assert interrupted.items() > done.items()

    segpipe("predict", "--model", flat, "-i", images, "-o", out, *QUICK)
    assert records(out).items() >= interrupted.items()
    segpipe("predict", "--model", flat, "-i", images, "-o", tmp_path / "alone", *QUICK)
    assert {name: content for name, content in files(out).items() if ".tmp." not in name.name} == files(
        tmp_path / "alone"
    )


@pytest.fixture
def pretended(tmp_path):
    """Environment of a process that has two GPUs, which are not there, and a temporary folder of its own."""
    described = [
        {"uuid": f"GPU-{letter * 8}", "name": "NVIDIA T", "total": 24 * 10**9, "used": 3 * 10**8} for letter in "ab"
    ]
    (tmp_path / "gpus.json").write_text(json.dumps(described))
    paths = os.pathsep.join([str(TESTS / "pretended_driver"), str(REPO)])
    return {"PYTHONPATH": paths, "PRETENDED_GPUS": str(tmp_path / "gpus.json"), "TMPDIR": str(tmp_path)}


def test_gpus_are_leased_for_all_and_a_wrong_call_is_told_once_and_leaves_nothing(tmp_path, pretended):
    out = tmp_path / "out"
    code, said = Call(tmp_path / "nowhere", IMAGES, out, "--num-gpus", 2, **pretended).ended()
    assert code == 2
    assert [line.split(" (")[0] for line in said.splitlines()[:2]] == ["computes on GPU 0", "computes on GPU 1"]
    assert said.count("no model\n") == 1
    assert "Traceback" not in said
    assert not out.exists()


def claims(folder):
    """What the jobs of a temporary folder claim."""
    return [json.loads(path.read_text()) for path in folder.glob("segpipe-gpu-*/*.json")]


def test_one_process_leases_a_gpu_and_waits_for_its_turn(tmp_path, flat, pretended):
    """For the writer of the same folder first: that one may wait for the GPU."""
    out = tmp_path / "out"
    model = {path.relative_to(flat): path.stat().st_mtime_ns for path in flat.rglob("*")}
    with digest.exclusive(lock(out), "another prediction"):
        call = Call(flat, IMAGES, out, "--device", "cuda:1", **pretended)
        call.says("another prediction; waiting")
        assert claims(tmp_path) == []
    code, said = call.ended()
    assert "computes on GPU 1 (NVIDIA T, 24 GB)" in said
    assert code == 2  # CUDA itself is not there
    assert "no such device\n  where:    --device\n  found:    cuda\n" in said
    assert {path.relative_to(flat): path.stat().st_mtime_ns for path in flat.rglob("*")} == model
    whole = "import sys; from segpipe import lease; print(lease.take(2, float('inf')), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", whole]
    with subprocess.Popen(
        command, env={**environment(), **pretended}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        call = Call(flat, IMAGES, out, "--no-mirroring", **pretended)
        call.says("waiting for 1 of 2 GPUs, with 4 GB")
        other.stdin.close()
    assert call.ended()[0] == 0
    assert "computes on GPU" in call.log.read_text()
    assert (out / "case_004.nii.gz").exists()


def test_a_wrong_call_of_one_process_leaves_nothing(tmp_path, pretended):
    code, said = Call(tmp_path / "nowhere", IMAGES, tmp_path / "out", **pretended).ended()
    assert (code, said.count("no model\n")) == (2, 1)
    assert "computes on" not in said  # what is wrong is told without a GPU
    assert not (tmp_path / "out").exists()


def test_one_process_keeps_to_the_processors_that_it_is_granted(tmp_path, flat, monkeypatch):
    monkeypatch.setattr(machine, "n_threads", lambda wanted: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    main(["predict", "--model", str(flat), "-i", str(IMAGES), "-o", str(tmp_path / "out"), *QUICK])
    assert threads[0] == 3
    with digest.exclusive(lock(tmp_path / "out"), "the next one"):  # it is free again
        pass


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--num-gpus", 0), "argument --num-gpus: at least 1"),
        (("--num-gpus", 1.5), "argument --num-gpus: invalid"),
        (("--num-gpus", 3), "fewer GPUs than asked for\n  where:    --num-gpus\n  found:    2 for this job\n"),
        (("--num-gpus", 2, "--device", "cuda:1"), "where:    --num-gpus\n  found:    1 for this job\n  expected: 2"),
        (("--num-gpus", 2, "--device", "mps"), "where:    --num-gpus\n  found:    2, with --device mps"),
        (("--num-gpus", 2, "--device", "gpu"), "where:    --device\n  found:    gpu"),
    ],
)
def test_what_cannot_be_shared_is_a_wrong_call(tmp_path, capsys, monkeypatch, options, match):
    """Where there are two GPUs."""
    two = [Gpu(f"GPU-{letter}", f"GPU-{letter}", index, "NVIDIA T", 24, 0) for index, letter in enumerate("ab")]
    monkeypatch.setattr(gpus, "installed", lambda: two)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(launch, "_Requests", list)  # signals stay pytest's
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SystemExit) as stopped:
        segpipe("predict", "--model", tmp_path, "-i", IMAGES, "-o", tmp_path / "out", *options)
    assert stopped.value.code == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_call_that_waits_for_another_one_has_no_gpu_yet(tmp_path, monkeypatch):
    """The first one into a folder too, or two calls could have what the other waits for."""
    asked = []
    monkeypatch.setattr(launch, "ranks", lambda command, n, device, lock, named: asked.append(lock))
    for _ in range(2):
        segpipe("predict", "--model", tmp_path, "-i", IMAGES, "-o", tmp_path / "out", "--num-gpus", 2)
        (tmp_path / "out/.segpipe").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/.segpipe/.lock").touch()
    assert asked == [tmp_path / "out/.segpipe/.lock"] * 2


def test_a_rank_is_told_so_before_anything_else(monkeypatch):
    begun = []
    monkeypatch.setattr(launched, "begin", lambda: begun.append(1))
    with pytest.raises(SystemExit):
        segpipe("--version")
    assert begun == [1]
