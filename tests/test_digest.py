"""Identity of artifacts, files that appear at once, locks that die with their process."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from segpipe import digest
from segpipe.errors import SegpipeError

SOURCE = '''"""A module."""
# a comment
def area(width: float, height: float) -> float:
    """Width times height."""
    return width * height


class Box:
    """A box."""

    edges = 12
'''


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run Python code in a process of its own; it is killed at the end at the latest."""
    processes = []

    def run(code: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**{name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}, **environment},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# identity


def test_equal_data_has_an_equal_digest_whatever_the_order_of_its_keys() -> None:
    assert digest.of({"a": 1, "b": [1.5, "x", None]}) == digest.of({"b": [1.5, "x", None], "a": 1})
    assert len(digest.of({})) == 16


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, [["a", 1]], {"a": 1, "b": None}])
def test_other_data_has_another_digest(other: object) -> None:
    assert digest.of({"a": 1}) != digest.of(other)


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest.of({"a": float("nan")})


def test_a_file_is_identified_by_its_content(tmp_path: Path) -> None:
    for name, content in (("a", b"voxels"), ("b", b"voxels"), ("c", b"voxelz")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest.of_file(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The digest of a rule whose one module has the given source."""
    monkeypatch.setattr(digest, "PACKAGE", tmp_path)
    monkeypatch.setattr(digest, "DECIDING_MODULES", {"rule": ("module.py",)})

    def of_code(source: str) -> str:
        (tmp_path / "module.py").write_text(source)
        digest.of_code.cache_clear()
        return digest.of_code("rule")

    yield of_code
    digest.of_code.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another comment"),
        ("# a comment\n", ""),
        ('"""A module."""', '"""A module, explained."""'),
        ('"""Width times height."""', '"""Square metres."""'),
        ('    """Width times height."""\n', ""),
        ('    """A box."""\n\n', ""),
        ("return width * height", "return (width\n            * height)"),
        ("\n\nclass", "\n\n\n\nclass"),
    ],
)
def test_comments_docstrings_and_layout_are_no_code(code: Callable[[str], str], old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert code(changed) == code(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("width * height", "width + height"),
        ("edges = 12", "edges = 11"),
        ("area", "volume"),
        ("height: float)", "height: float = 1.0)"),
        ("return width * height", 'note = "text"\n    return width * height'),
    ],
)
def test_code_is(code: Callable[[str], str], old: str, new: str) -> None:
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert code(changed) != code(SOURCE)


def test_code_has_the_same_identity_for_each_version_of_python(code: Callable[[str], str]) -> None:
    """Results are taken to other machines; this value was seen with 3.11, later versions show trees differently."""
    assert code(SOURCE) == "97a9a736ebda013a"


def test_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a syntax tree, Python 3.11 lets go of its lock where garbage is collected."""
    modules = sorted(digest.PACKAGE.rglob("*.py"))
    expected = [digest.of_source(module) for module in modules]
    gc.callbacks.append(let_others := lambda *_: time.sleep(1e-6))
    before = gc.get_threshold()
    try:
        gc.set_threshold(20)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(digest.of_source, modules)) == expected
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_others)


def test_the_format_version_counts(code: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = code(SOURCE)
    monkeypatch.setattr(digest, "FORMAT_VERSION", digest.FORMAT_VERSION + 1)
    assert code(SOURCE) != before


def test_every_rule_names_modules_that_exist() -> None:
    for rule, modules in digest.DECIDING_MODULES.items():
        for module in modules:
            assert (digest.PACKAGE / module).is_file(), f"{rule}: {module}"
        assert len(digest.of_code(rule)) == 16


# files and folders that appear at once


def test_a_new_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file.npy"
    with digest.new_file(path) as temporary:
        np.save(temporary, np.arange(3))
        assert not path.exists()
        assert temporary.parent == path.parent
    assert np.load(path).tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_as_before_when_the_block_raises(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "file"
    if old:
        path.write_text(old)
    with pytest.raises(RuntimeError), digest.new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with digest.new_folder(path) as temporary:
            (temporary / name).touch()
    assert visible(path) == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_as_before_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with digest.new_folder(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), digest.new_folder(path) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert visible(path) == ["old"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_half_written_survives_a_kill(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], kind: str, exists: bool
) -> None:
    path = tmp_path / "result"
    if exists:
        with getattr(digest, kind)(path) as temporary:
            (temporary / "file" if kind == "new_folder" else temporary).write_text("old")
    process = start(
        """
        import sys, time
        from pathlib import Path
        from segpipe import digest
        with getattr(digest, sys.argv[2])(Path(sys.argv[1])) as temporary:
            (temporary / "file" if sys.argv[2] == "new_folder" else temporary).write_text("half")
            print("written", flush=True)
            time.sleep(60)
        """,
        path,
        kind,
    )
    assert said(process) == "written"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert visible(tmp_path) == (["result"] if exists else [])
    if exists:
        assert (path / "file" if kind == "new_folder" else path).read_text() == "old"


def test_a_kill_while_the_old_folder_goes_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    with digest.new_folder(path) as temporary:
        for name in "ab":
            (temporary / name).write_text("old")

    def killed(folder: Path, **options: object) -> None:
        if folder.exists():
            next(folder.iterdir()).unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), digest.new_folder(path) as temporary:
        for name in "ab":
            (temporary / name).write_text("new")
        monkeypatch.setattr(shutil, "rmtree", killed)
    texts = [(path / name).read_text() for name in visible(path)] if path.exists() else []
    assert texts in ([], ["old", "old"], ["new", "new"])


@pytest.mark.parametrize("name", [".123-456.tmp.file", ".replaced.123-456.tmp.file"])
@pytest.mark.parametrize(("age_s", "stays"), [(60, True), (2 * digest.LEFTOVER_AFTER_S, False)])
def test_what_a_killed_process_left_is_swept_up_when_it_is_old(
    tmp_path: Path, name: str, age_s: float, stays: bool
) -> None:
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    digest.write_text(tmp_path / "file", "content")
    assert (tmp_path / name).exists() == stays


def test_a_folder_is_looked_through_once_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each file would take hours where there are the files of thousands of cases."""
    listed, now_s = [], [0.0]
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    for name in "abc":
        digest.write_text(tmp_path / name, "content")
    assert listed == [tmp_path]
    leftover = tmp_path / ".1-2.tmp.b"
    leftover.touch()
    os.utime(leftover, (0, 0))
    now_s[0] += digest.LEFTOVER_AFTER_S
    digest.write_text(tmp_path / "b", "new")
    assert listed == [tmp_path] * 2
    assert not leftover.exists()


def test_a_relative_folder_is_another_one_in_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, place in enumerate(("here", "there")):
        leftover = tmp_path / place / f"cases/.{number}-2.tmp.file"
        leftover.parent.mkdir(parents=True)
        leftover.touch()
        os.utime(leftover, (0, 0))
        monkeypatch.chdir(tmp_path / place)
        digest.write_text(Path("cases/file"), "content")
        assert not leftover.exists()


def test_json_is_valid_and_appears_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    digest.write_json(path, {"dice": 0.5, "none": None})
    assert digest.read_json(path) == json.loads(path.read_text()) == {"dice": 0.5, "none": None}
    with pytest.raises(ValueError, match="JSON"):
        digest.write_json(path, {"dice": float("nan")})
    assert digest.read_json(path)["dice"] == 0.5


def test_a_copy_has_the_content_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    digest.copy(tmp_path / "source", tmp_path / "deep/target")
    assert (tmp_path / "deep/target").read_bytes() == b"weights"


# locks

HOLD = """
import sys, time
from pathlib import Path
from segpipe import digest
with digest.exclusive(Path(sys.argv[1]), "training fold 0") as report:
    report("epoch 3")
    print("holding", flush=True)
    time.sleep(60)
"""

WAIT = """
import logging, sys
from pathlib import Path
from segpipe import digest
from segpipe.errors import SegpipeError
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
try:
    with digest.exclusive(Path(sys.argv[1]), "waiting"):
        print("mine", flush=True)
except SegpipeError as error:
    print("refused:", error, flush=True)
"""


def test_a_second_process_waits_and_names_the_first(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    lock = tmp_path / "state/.lock"
    holder = start(HOLD, lock)
    assert said(holder) == "holding"
    waiting = start(WAIT, lock)
    message = said(waiting)
    assert f"{lock.parent} is being written by pid {holder.pid}: epoch 3" in message
    assert waiting.poll() is None
    holder.kill()  # SIGKILL: the lock dies with its process
    assert said(waiting) == "mine"
    assert waiting.wait() == 0


def test_under_slurm_a_second_process_stops(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    lock = tmp_path / ".lock"
    holder = start(HOLD, lock)
    assert said(holder) == "holding"
    message = said(start(WAIT, lock, SLURM_JOB_ID="4711"))
    assert message.startswith("refused:")
    assert f"pid {holder.pid}: epoch 3" in message


def test_a_lock_is_free_after_its_block_and_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # a lock that were still taken would raise SegpipeError
    with pytest.raises(RuntimeError), digest.exclusive(tmp_path / ".lock", "working"):
        raise RuntimeError
    with digest.exclusive(tmp_path / ".lock", "working"):
        with pytest.raises(SegpipeError, match=f"pid {os.getpid()}: working"), digest.exclusive(tmp_path / ".lock", ""):
            pass
        assert (tmp_path / ".lock").read_text().rstrip() == f"pid {os.getpid()}: working"
    with digest.exclusive(tmp_path / ".lock", "again"):
        pass


def test_a_lock_says_at_every_moment_who_holds_it(tmp_path: Path) -> None:
    """A holder that is stopped between two system calls must not leave an empty or half a line."""
    lock = tmp_path / ".lock"
    said = set()
    with digest.exclusive(lock, "epoch 0") as report:
        reading = threading.Event()

        def read() -> None:
            while not reading.is_set():
                said.add(lock.read_text().strip())

        reader = threading.Thread(target=read)
        reader.start()
        epoch, end = 0, time.monotonic() + 30
        while (epoch < 20_000 or len(said) <= 10) and time.monotonic() < end:  # the reader may get little time
            report(f"epoch {epoch}" + " done" * (epoch % 3))
            epoch += 1
        reading.set()
        reader.join()
    assert len(said) > 10
    assert all(re.fullmatch(rf"pid {os.getpid()}: epoch \d+( done)*", line) for line in said), said
