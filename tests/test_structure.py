"""The shape of the code: rooms in one direction, light early steps, small functions."""

import ast
import math
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from volumes import REPO

# A room imports only from itself and from those before it.
ROOMS = [
    "errors",
    "params",
    "deciding",
    "launched",
    "machine",
    "digest",
    "plugins",
    "ranks",
    "gpus",
    "claims",
    "lease",
    "device",
    "data",
    "prepare",
    "training",
    "evaluation",
    "experiments",
    "inference",
    "search",
    "report",
    "interop",
    "cli",
]
PACKAGE = REPO / "segpipe"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPO / "workflow/scripts").glob("*.py"))
LONGEST_FUNCTION, LONGEST_FILE = 60, 300
MEDIAN_FUNCTION, P95_FUNCTION = 8, 35
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


# the order of the rooms


def room(module: str) -> str | None:
    """`segpipe.data.image` lies in data; None for what is not ours and for `segpipe` itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "segpipe" and len(parts) > 1 else None


def imported(source: str) -> set[str]:
    """The rooms that a module's imports name, wherever in the module they stand."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {found for module in modules if (found := room(module))}


def upwards(own: str, source: str) -> set[str]:
    """The rooms that a module of the room `own` must not import from."""
    return {other for other in imported(source) if ROOMS.index(other) > ROOMS.index(own)}


def test_every_room_has_its_place() -> None:
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE or path.stem in ROOMS], ids=name)
def test_rooms_import_only_from_those_before_them(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert not upwards(own, path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import segpipe.training.loop",
        "from segpipe import evaluation",
        "from segpipe.inference.window import tiles",
        "def late():\n    from segpipe import cli",
    ],
)
def test_an_import_against_the_order_would_be_seen(source: str) -> None:
    assert upwards("prepare", source)
    assert not upwards("prepare", "import torch\nfrom segpipe import digest\nfrom segpipe.data import image")


# who speaks with the terminal


def speaks(source: str) -> bool:
    """Whether a module parses arguments or prints."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name == "argparse" for alias in node.names):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            return True
    return False


def test_only_the_command_line_prints_and_parses_arguments() -> None:
    elsewhere = [path for path in FILES if path.relative_to(PACKAGE).parts[0] != "cli"]
    assert [name(path) for path in elsewhere if speaks(path.read_text())] == []
    assert speaks((PACKAGE / "cli/check.py").read_text())


# what is loaded, and when

OF_NIBABEL = {"nibabel", "pydicom", "PIL", "scipy"}  # what its import brings along, of scipy next to nothing
OF_FORMATS = {"SimpleITK", "imageio", "tifffile", *OF_NIBABEL}  # loaded when such a file is met
HEAVY = {"torch", "pandas", "matplotlib", "sklearn", "skimage", "tensorboard", *OF_FORMATS}
LIGHT: dict[str, set[str]] = dict.fromkeys(("check", "phantoms", "download"), OF_NIBABEL)
LIGHT |= {script: set() for script in ("fingerprint", "plan", "splits", "preprocess")}


@pytest.mark.parametrize("script", LIGHT)
def test_early_steps_load_what_they_use(script: str) -> None:
    loaded = loaded_by(imports(script))
    assert loaded >= {"segpipe", "pydantic"}
    assert loaded & HEAVY == LIGHT[script]


def test_torch_would_be_seen() -> None:
    assert "torch" in loaded_by(imports("train"))


def test_wrong_arguments_of_a_script_are_refused_before_anything_heavy_is_loaded() -> None:
    given = [str(path) for path in SCRIPTS if path.stem != "make_dvc_yaml"]
    code = f"""
        import runpy, sys
        for path in {given}:
            sys.argv = [path, "--nonsense"]
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as ended:
                assert ended.code == 2, path
    """
    loaded = loaded_by(textwrap.dedent(code))
    assert "segpipe" in loaded
    assert not loaded & (HEAVY | {"numpy"})


def imports(script: str) -> str:
    """Every import of a script, those in its functions as well."""
    tree = ast.parse((REPO / f"workflow/scripts/{script}.py").read_text())
    return "\n".join(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a process has after some code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return {module.split(".")[0] for module in done.stdout.split()}


# sizes


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines without docstring) of every function and method."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            yield f"{name(path)}: {node.name}", node.end_lineno - node.lineno + 1 - docstring_lines(node)


def docstring_lines(node: Function) -> int:
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


LINES = [item for path in [*FILES, *SCRIPTS] for item in functions(path)]


def test_no_function_is_long() -> None:
    assert [function for function, lines in LINES if lines > LONGEST_FUNCTION] == []


def test_functions_are_short_as_a_rule() -> None:
    lines = sorted(lines for _, lines in LINES)
    assert statistics.median(lines) <= MEDIAN_FUNCTION
    assert lines[math.ceil(0.95 * len(lines)) - 1] <= P95_FUNCTION


def test_no_file_is_long() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in [*FILES, *SCRIPTS]}
    assert [path for path, lines in lengths.items() if lines > LONGEST_FILE] == []


def test_lines_are_counted_without_docstring() -> None:
    source = (
        'def area(width):\n    """One.\n\n    Two.\n    """\n    def inner():\n        return 1\n    return inner\n'
    )
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    assert docstring_lines(tree) == 4
