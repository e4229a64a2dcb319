"""Code named by an import path: where it is found, what is said when it is not, when an edit counts."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from segpipe import digest, plugins
from segpipe.errors import SegpipeError

SOURCE = '''"""Losses."""

LIMIT = 3


def focal(logits, label):
    """A loss."""
    return 2.0  # a comment


def focus(logits, label):
    return 3.0
'''
SETTING = "train.loss.custom"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the test's own to work in; modules that the test imports are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within the second would be missed
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str, source: str = SOURCE) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return file


def refused(path: str, function: Callable[[str, str], object] = plugins.load) -> str:
    with pytest.raises(SegpipeError) as error:
        function(path, SETTING)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:5]] == ["where", "found", "expected", "cure"]
    assert f"params.yaml: {SETTING}" in lines[1]
    return str(error.value)


# found


@pytest.mark.parametrize("module", ["mylosses", "mycode.losses", "mycode.more.losses"])
def test_a_name_is_found_from_the_working_directory(module):
    write(module.replace(".", "/") + ".py")
    assert plugins.load(f"{module}:focal", SETTING)(None, None) == 2.0


def test_a_name_is_found_in_an_installed_package(tmp_path, monkeypatch):
    write("installed/site_losses.py")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert plugins.load("site_losses:focus", SETTING)(None, None) == 3.0


def test_the_working_directory_comes_first(tmp_path, monkeypatch):
    write("installed/both_losses.py", SOURCE.replace("2.0", "7.0"))
    write("both_losses.py")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert plugins.load("both_losses:focal", SETTING)(None, None) == 2.0


def test_a_module_may_import_its_neighbour(tmp_path):
    write("neighbour_code.py", "VALUE = 5")
    write("importing_code.py", "from neighbour_code import VALUE\n\ndef value():\n    return VALUE")
    assert plugins.load("importing_code:value", SETTING)() == 5


def test_the_path_is_as_before_afterwards(tmp_path):
    write("some_losses.py")
    before = list(sys.path)
    plugins.load("some_losses:focal", SETTING)
    refused("absent_losses:focal")
    assert sys.path == before


def test_a_file_written_after_the_last_look_is_found(tmp_path):
    write("early_losses.py")
    plugins.load("early_losses:focal", SETTING)
    looked = tmp_path.stat().st_mtime_ns
    write("late_losses.py")
    os.utime(tmp_path, ns=(looked, looked))  # within the resolution of the file system's clock
    assert plugins.load("late_losses:focal", SETTING)(None, None) == 2.0


# not found


def test_a_missing_module_is_told_with_the_nearest():
    write("mylosses.py")
    text = refused("mylosse:focal")
    assert "no such module" in text
    assert "no 'mylosse' in the working directory" in text
    assert "did you mean 'mylosses'?" in text


def test_a_missing_module_of_a_package_is_told_with_the_nearest():
    write("mycode/losses.py")
    text = refused("mycode.lossses:focal")
    assert "no 'lossses' in mycode" in text
    assert "did you mean 'losses'?" in text


def test_a_missing_package_is_told_instead_of_its_module():
    write("mycode/losses.py")
    text = refused("mycodes.losses:focal")
    assert "no 'mycodes' in the working directory" in text
    assert "did you mean 'mycode'?" in text


def test_a_module_is_no_package():
    write("mylosses.py")
    assert "no 'more' in mylosses" in refused("mylosses.more:focal")


def test_a_missing_name_is_told_with_the_nearest():
    file = write("mylosses.py")
    text = refused("mylosses:focall")
    assert "no such name" in text
    assert f"no 'focall' in {file.resolve()}" in text
    assert "did you mean 'focal' or 'focus'?" in text
    assert "one of focal, focus" in text


def test_a_name_far_from_all_has_no_hint():
    write("mylosses.py")
    text = refused("mylosses:xyz")
    assert "did you mean" not in text
    assert "name a function or class of that module" in text


def test_a_constant_cannot_be_called():
    write("mylosses.py")
    assert "of type int" in refused("mylosses:LIMIT")


# the module's own errors


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
        ("from json import absent_name", "ImportError: cannot import name 'absent_name' from 'json'"),
        ("VALUE = 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_inside_the_module_is_told_in_its_own_words(source, says):
    file = write("mycode/broken.py", f"import json\n{source}\n")
    text = refused("mycode.broken:focal")
    assert "cannot be imported" in text
    assert "no such module" not in text
    assert says in text
    assert f"({file.resolve()}, line 2)" in text


def test_a_missing_import_of_a_similar_name_is_the_modules_own():
    write("mycode_losses.py", "import mycode")
    text = refused("mycode_losses:focal")
    assert "cannot be imported" in text
    assert "No module named 'mycode'" in text


def test_an_error_in_what_the_module_imports_says_where():
    write("inner_code.py", "\n\nraise RuntimeError('no licence')")
    write("outer_code.py", "import inner_code")
    text = refused("outer_code:focal")
    assert "RuntimeError: no licence" in text
    assert "inner_code.py, line 3" in text


def test_a_syntax_error_is_told_in_its_own_words():
    write("mylosses.py", "def focal(:\n")
    text = refused("mylosses:focal")
    assert "SyntaxError" in text
    assert "mylosses.py, line 1" in text


# identity


def identity(source: str) -> str:
    """The digest of a module with this source, in a process that has not imported it yet."""
    write("digested_losses.py", source)
    sys.modules.pop("digested_losses", None)
    return plugins.source_digest("digested_losses:focal", SETTING)


@pytest.mark.parametrize(("old", "new"), [("2.0", "2.5"), ("LIMIT = 3", "LIMIT = 4"), ("focus", "focused")])
def test_an_edit_of_the_module_is_another_identity(old, new):
    assert identity(SOURCE.replace(old, new)) != identity(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("# a comment", "# another"), ('    """A loss."""\n', ""), ('"""Losses."""', '"""L."""')]
)
def test_comments_and_docstrings_are_no_part_of_the_identity(old, new):
    assert old in SOURCE
    assert identity(SOURCE.replace(old, new)) == identity(SOURCE)


def test_the_identity_does_not_depend_on_where_the_module_lies(tmp_path, monkeypatch):
    first = identity(SOURCE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert identity(SOURCE) == first


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mine", "mine.py"),
        ("mine", "mine/__init__.py"),
        ("my_code.more.losses", "my_code/more/losses.py"),
        ("my_code.more.losses", "my_code/more/losses/__init__.py"),
        ("my_code.more.losses", "installed/my_code/more/losses.py"),
    ],
)
@pytest.mark.parametrize("is_package", [False, True])
def test_nothing_is_executed_for_the_identity(tmp_path, monkeypatch, name, file, is_package):
    """Who asks for it has no GPU yet, and the module may start CUDA."""
    expected = identity(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    for folder in Path(file).parents if is_package else ():
        if folder not in (Path(), Path("installed")):
            write(str(folder / "__init__.py"), "raise AssertionError('it was imported')\n")
    write(file, SOURCE)
    assert plugins.source_digest(f"{name}:focal", SETTING) == expected
    assert name not in sys.modules
    write(file, "raise AssertionError('it was imported')\n" + SOURCE)
    assert plugins.source_digest(f"{name}:focal", SETTING) != expected


def test_a_name_that_the_file_does_not_say_is_looked_for_in_the_module():
    write("named_code.py", "globals().update({'fo' + 'cal': print})")
    write("starred_code.py", "from named_code import *")
    for module in ("named_code", "starred_code"):
        assert plugins.source_digest(f"{module}:focal", SETTING)
        assert "no such name" in refused(f"{module}:vocal", plugins.source_digest)


def test_a_module_that_only_its_package_finds_has_an_identity():
    write("hidden/inner/losses.py")
    write("hidden/__init__.py", "__path__.append(__path__[0] + '/inner')")
    write("losses.py")
    assert plugins.source_digest("hidden.losses:focal", SETTING) == plugins.source_digest("losses:focal", SETTING)


def test_an_extension_module_counts_by_its_bytes():
    file = write(f"mine{EXTENSION_SUFFIXES[0]}", "focal")
    assert plugins.source_digest("mine:focal", SETTING) == digest.of_file(file)


@pytest.mark.parametrize("source", ["def focal(:\n", "focal = '\0'"])
def test_a_module_with_a_syntax_error_has_no_identity(source):
    write("mylosses.py", source)
    assert "cannot be imported" in refused("mylosses:focal", plugins.source_digest)


def test_what_the_module_imports_does_not_count():
    write("helper_code.py", "VALUE = 5")
    source = "from helper_code import VALUE\n\ndef focal():\n    return VALUE"
    first = identity(source)
    write("helper_code.py", "VALUE = 6")
    assert identity(source) == first


def test_a_missing_module_has_no_identity():
    assert "no such module" in refused("absent_losses:focal", plugins.source_digest)
    write("mylosses.py")
    assert "no such name" in refused("mylosses:absent", plugins.source_digest)


def test_a_module_without_a_file_has_no_identity():
    assert "has no file" in refused("builtins:sum", plugins.source_digest)


# the file of a module, found without importing it


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("mine:loss", "mine.py"),
        ("mine:loss", "mine/__init__.py"),
        ("my_code.losses:focal", "my_code/losses.py"),
        ("my_code.losses:focal", "my_code/losses/__init__.py"),
        ("mine:loss", f"mine{EXTENSION_SUFFIXES[0]}"),
    ],
)
def test_the_file_of_a_module_of_the_working_directory(path: str, file: str) -> None:
    assert plugins.file_of(path) is None
    write(file, "raise AssertionError('it was imported')\n")
    assert plugins.file_of(path) == Path(file)


def test_the_file_is_the_one_that_would_be_imported() -> None:
    write("mine.py", "def loss():\n    return 'file'\n")
    write("mine/__init__.py", "def loss():\n    return 'package'\n")
    assert plugins.load("mine:loss", "here")() == "package"
    assert plugins.file_of("mine:loss") == Path("mine/__init__.py")


def test_an_installed_module_has_no_file_here() -> None:
    assert plugins.file_of("torch.optim:SGD") is None
