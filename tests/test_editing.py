"""Settings changed in the text of a params.yaml."""

import difflib
from pathlib import Path
from typing import Any

import pytest
import yaml
from volumes import REPO

from segpipe import params
from segpipe.errors import SegpipeError

TEXT = (REPO / "params.yaml").read_text()


def differences(new: str) -> list[str]:
    """Lines that left (-) and came (+)."""
    lines = list(difflib.unified_diff(TEXT.splitlines(), new.splitlines(), n=0))[2:]
    return [line for line in lines if not line.startswith("@@")]


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("dataset", "/data/a: b", "dataset: data/raw/Dataset000_Phantoms", "dataset: '/data/a: b'"),
        ("train.epochs", 7, "  epochs: 50 # nnU-Net: 1000; ", "  epochs: 7 # nnU-Net: 1000; "),
        ("train.optimiser.learning_rate", 1e-5, "    learning_rate: 0.01 # the", "    learning_rate: 1.0e-05 # the"),
        ("train.mirror_axes", [0, 1], "  mirror_axes: null # mirrored", "  mirror_axes: [0, 1] # mirrored"),
        ("runtime.threads", 1, "  threads: null # CPU", "  threads: 1 # CPU"),
        ("plan.overrides.batch_size.2d", 12, "    batch_size: 2 # patches", "    batch_size: {2d: 12} # patches"),
    ],
)
def test_one_line_changes_and_keeps_its_comment(key: str, value: Any, before: str, after: str) -> None:
    removed, added = differences(params.changed(TEXT, {key: value}, "text"))
    assert removed.startswith(f"-{before}")
    assert added == f"+{after}{removed.removeprefix(f'-{before}')}"


def test_a_list_of_several_lines_becomes_one() -> None:
    new = params.changed(TEXT, {"configurations": ["2d", "3d_fullres"]}, "text")
    assert differences(new) == ["-configurations:", "-  - 3d_fullres", "+configurations: [2d, 3d_fullres]"]


def test_a_block_is_replaced_with_its_comments_and_nothing_below_it() -> None:
    new = params.changed(TEXT, {"train.ema": {"decay": 0.9, "ramp_steps": 3}}, "text")
    (added,) = [line for line in differences(new) if line[0] == "+"]
    assert added == "+  ema: {decay: 0.9, ramp_steps: 3}"
    assert yaml.safe_load(new)["train"]["best"] == yaml.safe_load(TEXT)["train"]["best"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1", "a: 1\nb: {c: 2}\n"),
        ("b:\n", "b: {c: 2}\n"),
        ("b: # one\n", "b: {c: 2} # one\n"),
        ("b: {d: 1}\n", "b: {d: 1, c: 2}\n"),
        ("b:\n  d: 1 # one\n# two\na: 1\n", "b: {d: 1, c: 2}\n# two\na: 1\n"),
        ("b:\n  c:\n    - 1\n    - 2", "b:\n  c: 2"),
    ],
)
def test_a_key_that_is_not_there_is_added(text: str, expected: str) -> None:
    assert params.changed(text, {"b.c": 2}, "text") == expected


def test_several_changes_of_one_value() -> None:
    changes = {"b": {"c": 1}, "b.d": 2, "b.c": 3}
    assert yaml.safe_load(params.changed("b: null\na: 1\n", changes, "text")) == {"b": {"c": 3, "d": 2}, "a": 1}


def test_what_would_say_something_else_is_refused() -> None:
    with pytest.raises(SegpipeError, match="cannot be changed"):
        params.changed("a: &one {c: 1}\nb: *one\n", {"b.c": 2}, "text")


def test_no_yaml_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SegpipeError, match=r"is not YAML\n  where:    some text"):
        params.changed("a: [1", {"a": 2}, "some text")
