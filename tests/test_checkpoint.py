"""Files that hold what a training was: written at once, in order, on a thread of their own, and never executed."""

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from segpipe.errors import SegpipeError
from segpipe.training import checkpoint


def equal(one, two):
    return torch.equal(one["weight"], two["weight"])


def test_what_is_saved_is_loaded(tmp_path):
    content = {"weight": torch.arange(4.0), "rows": [{"epoch": 1, "dice": 0.1 + 0.2, "none": None}], "pair": (1, "a")}
    checkpoint.save(tmp_path / "a.pth", checkpoint.snapshot(content))
    loaded = checkpoint.load(tmp_path / "a.pth")
    assert equal(loaded, content)
    assert loaded["rows"] == content["rows"]  # floats to their last bit
    assert loaded["pair"] == [1, "a"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_equal_contents_are_equal_files_wherever_and_from_whatever_objects(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shared = "".join(["dice", "_liver"])
    other = "".join(["dice_", "liver"])
    assert shared is not other
    one = {"rows": [{shared: 1.0}, {shared: 2.0}], "name": shared, "weight": torch.arange(3.0)}
    two = {"rows": [{shared: 1.0}, {other: 2.0}], "name": other, "weight": torch.arange(6.0)[:3].clone()}
    checkpoint.save(tmp_path / "one.pth", checkpoint.snapshot(one))
    checkpoint.save(tmp_path / "elsewhere/another_name.pth", checkpoint.snapshot(two))
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "elsewhere/another_name.pth").read_bytes()


def test_a_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"network": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(SegpipeError, match="could run code"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.peek])
def test_a_damaged_checkpoint_is_named(tmp_path, read):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"weight": torch.arange(4000.0)})
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"weights"):
        path.write_bytes(damaged)
        with pytest.raises(SegpipeError, match=r"(?s)the checkpoint cannot be used.*a\.pth.*cut off"):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.pth")


def test_a_flipped_bit_in_the_weights_is_found(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"weight": torch.arange(4000.0)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegpipeError, match="checksum"):
        checkpoint.load(path)
    with pytest.raises(Exception, match="checksum"):
        checkpoint.load_foreign(path)


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), Path("a"), {1, 2}, torch.float32],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("where", [lambda value: value, lambda value: [{"a": (value,)}], lambda value: {"a": [value]}])
def test_what_could_not_be_loaded_again_is_refused_when_it_is_saved(tmp_path, value, where):
    writer = checkpoint.Writer()
    with pytest.raises(SegpipeError, match=r"(?s)could not be read again.*of type .*convert it: float"):
        writer.save(tmp_path / "a.pth", {"row": where(value)})
    writer.finish()
    assert not list(tmp_path.iterdir())


def test_sizes_name_the_checkpoints_of_a_folder_and_nothing_else(tmp_path):
    for name, size in (("final.pth", 2_340_000), ("best.pth", 100_000), (".1-2.tmp.latest.pth", 10), ("log.txt", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    assert checkpoint.sizes(tmp_path) == "best.pth 0.1 MB, final.pth 2.3 MB"


# ---- the writer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch):
    """Saves wait until the gate is open; the paths in the order in which they were saved, with their threads."""
    save, opened, saved = checkpoint.save, threading.Event(), []

    def wait(path, content):
        assert opened.wait(20)
        if path.name == "broken.pth":
            raise OSError("the disk is full")
        save(path, content)
        saved.append((path.name, threading.current_thread()))

    monkeypatch.setattr(checkpoint, "save", wait)
    opened.saved = saved
    yield opened
    opened.set()


def test_a_save_does_not_wait_for_the_disk_and_another_thread_does_it(tmp_path, gate):
    writer = checkpoint.Writer()
    writer.save(tmp_path / "best.pth", {"weight": torch.ones(2)})
    writer.save(tmp_path / "latest.pth", {"weight": torch.ones(2)})
    assert not list(tmp_path.iterdir())  # both were accepted while nothing could be written
    gate.set()
    writer.finish()
    assert [name for name, _ in gate.saved] == ["best.pth", "latest.pth"]
    assert threading.main_thread() not in {thread for _, thread in gate.saved}


def test_files_are_saved_in_the_order_given(tmp_path, gate):
    gate.set()
    writer = checkpoint.Writer()
    names = [f"{i}.pth" for i in range(20)]
    for i, name in enumerate(names):
        # the first ones are the largest, and would come last if two were written at a time
        writer.save(tmp_path / name, {"weight": torch.zeros(200_000 // (i + 1))})
    writer.finish()
    assert [name for name, _ in gate.saved] == names


def test_a_file_is_renamed_after_what_was_given_before_and_where_it_is_absent_nothing_happens(tmp_path, gate):
    writer = checkpoint.Writer()
    writer.save(tmp_path / "new.pth", {"weight": torch.ones(2)})
    writer.rename(tmp_path / "new.pth", tmp_path / "best.pth")
    assert not list(tmp_path.iterdir())
    gate.set()
    writer.rename(tmp_path / "new.pth", tmp_path / "best.pth")
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]


def test_nothing_is_renamed_after_a_failed_save(tmp_path, gate):
    gate.set()
    (tmp_path / "new.pth").touch()
    writer = checkpoint.Writer()
    writer.save(tmp_path / "broken.pth", {"weight": torch.ones(2)})
    writer.rename(tmp_path / "new.pth", tmp_path / "best.pth")
    with pytest.raises(OSError, match="the disk is full"):
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["new.pth"]


def test_at_most_one_checkpoint_waits_while_another_is_written(tmp_path, gate):
    writer, third = checkpoint.Writer(), threading.Event()

    def save_three():
        for i in range(3):
            writer.save(tmp_path / f"{i}.pth", {"weight": torch.zeros(1)})
        third.set()

    thread = threading.Thread(target=save_three)
    thread.start()
    assert not third.wait(0.2)
    gate.set()
    assert third.wait(20)
    thread.join()
    writer.finish()
    assert len(gate.saved) == 3


def test_what_changes_after_a_save_is_not_in_the_file(tmp_path, gate):
    weight, rows = torch.arange(4.0), [{"epoch": 1}]
    content = {"weight": weight, "view": weight[:2], "rows": rows, "nested": {"tuple": (weight,)}}
    writer = checkpoint.Writer()
    writer.save(tmp_path / "a.pth", content)
    weight.zero_()
    rows.append({"epoch": 2})
    rows[0]["epoch"] = 7
    content["late"] = 1
    gate.set()
    writer.finish()
    loaded = checkpoint.load(tmp_path / "a.pth")
    assert torch.equal(loaded["weight"], torch.arange(4.0))
    assert torch.equal(loaded["view"], torch.arange(2.0))
    assert torch.equal(loaded["nested"]["tuple"][0], torch.arange(4.0))
    assert loaded["rows"] == [{"epoch": 1}]
    assert "late" not in loaded


def test_a_parameter_is_saved_without_its_graph(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not checkpoint.snapshot(parameter).requires_grad
    checkpoint.save(tmp_path / "a.pth", checkpoint.snapshot({"weight": parameter * 2}))
    assert not checkpoint.load(tmp_path / "a.pth")["weight"].requires_grad


@pytest.mark.parametrize("n_after", [0, 1, 2])
def test_the_error_of_a_failed_save_is_raised_and_nothing_is_written_after_it(tmp_path, gate, n_after):
    """A `latest` beside a `best` that could not be written would lose the best model of the training."""
    gate.set()
    writer = checkpoint.Writer()
    writer.save(tmp_path / "before.pth", {"weight": torch.zeros(1)})
    writer.save(tmp_path / "broken.pth", {"weight": torch.zeros(1)})
    with pytest.raises(OSError, match="the disk is full"):
        for i in range(n_after):
            writer.save(tmp_path / f"after_{i}.pth", {"weight": torch.zeros(1)})
        writer.finish()
    with pytest.raises(OSError, match="the disk is full") if n_after else contextlib.nullcontext():
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["before.pth"]


def test_saving_now_waits_for_the_copies_from_a_device(tmp_path, monkeypatch):
    happened = []

    class Stream:
        def record_event(self):
            happened.append("recorded")
            return self

        def synchronize(self):
            happened.append("waited")

    snapshot, save = checkpoint.snapshot, checkpoint.save
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(checkpoint, "snapshot", lambda content: happened.append("copied") or snapshot(content))
    monkeypatch.setattr(checkpoint, "save", lambda path, content: happened.append("saved") or save(path, content))
    checkpoint.save_now(tmp_path / "final.pth", {"a": torch.ones(3)})
    assert happened[0] == "copied"  # each value in turn
    assert [one for one in happened if one != "copied"] == ["recorded", "waited", "saved"]
    assert happened.index("recorded") == happened.count("copied")
    assert torch.equal(checkpoint.load(tmp_path / "final.pth")["a"], torch.ones(3))
