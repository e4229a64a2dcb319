"""Preprocessed cases that other configurations and experiments have alike."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segpipe import digest
from segpipe.prepare import twins

CASES = "data/preprocessed/Dataset001_Own/3d_fullres/cases"
WANTED = "0123456789abcdef"


def stored(folder: Path, content: str = "voxels", wanted: str = WANTED) -> Path:
    """The folder, with the files of a case."""
    folder.mkdir(parents=True)
    for part in twins.ARRAYS:
        (folder / f"case.{part}").write_text(content)
    digest.write_json(folder / "case.json", {"digest": wanted, "grid": content})
    return folder


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cases of an experiment go, seen from its folder."""
    (tmp_path / "experiments/own" / CASES).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "experiments/own")
    return Path(CASES)


def test_where_cases_are_looked_for(own: Path, tmp_path: Path) -> None:
    beside = stored(own.parents[1] / "2d/cases")
    project = stored(tmp_path / CASES)
    other = stored(tmp_path / "experiments/other/data/preprocessed/Dataset002_Copy/2d/cases")
    stored(tmp_path / "experiments/other/results/2d/cases")
    stored(tmp_path / "elsewhere" / CASES)
    found = twins.folders(own, ["../..", "../*", str(tmp_path / "experiments/own")])
    assert [folder.resolve() for folder in found] == [
        folder.resolve() for folder in (beside, project, other, beside, beside)
    ]
    assert twins.folders(own, []) == [beside]


def test_a_case_has_two_names_and_outlives_the_first(own: Path, tmp_path: Path) -> None:
    stored(tmp_path / "experiments/a" / CASES, "of others", "another digest")
    good = stored(tmp_path / "experiments/b" / CASES)
    assert twins.link(own, "case", WANTED, twins.folders(own, ["../*"]))
    for part in twins.ARRAYS:
        assert (own / f"case.{part}").samefile(good / f"case.{part}")
    shutil.rmtree(tmp_path / "experiments/b")
    assert (own / "case.image.npy").read_text() == "voxels"
    assert twins.record_of(own, "case", WANTED) == {"digest": WANTED, "grid": "voxels"}


def remove(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / f"case.{part}").unlink()


@pytest.mark.parametrize("damage", [remove("json"), remove("label.npy"), shutil.rmtree], ids=["record", "array", "all"])
def test_what_is_not_whole_is_not_taken(own: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    other = stored(tmp_path / "experiments/a" / CASES)
    folders = twins.folders(own, ["../*"])
    damage(other)
    assert not twins.link(own, "case", WANTED, folders)
    assert not (own / "case.json").exists()


def test_what_is_replaced_meanwhile_is_not_taken(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = stored(tmp_path / "experiments/a" / CASES)
    link = digest.link

    def replaced(source: Path, target: Path) -> None:
        digest.write_json(other / "case.json", {"digest": "of other settings"})
        link(source, target)

    monkeypatch.setattr(digest, "link", replaced)
    assert not twins.link(own, "case", WANTED, twins.folders(own, ["../*"]))
    assert not (own / "case.json").exists()


@pytest.mark.parametrize("locked", ["case.json", "case.image.npy"])
def test_what_must_not_be_read_is_not_taken(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """Of another user, on a file system without hard links."""
    stored(tmp_path / "experiments/a" / CASES)

    def refused(*_: object) -> None:
        raise PermissionError("not yours")

    if locked == "case.json":
        monkeypatch.setattr(digest, "read_json", refused)
    else:
        monkeypatch.setattr(os, "link", refused)
        monkeypatch.setattr(shutil, "copyfile", refused)
    assert not twins.link(own, "case", WANTED, twins.folders(own, ["../*"]))
