"""A raw file that is replaced, whatever its dates, is told from one that is only dated anew."""

import os
from pathlib import Path

import pytest
from volumes import CHECK, describe, image_array, nifti, nnunet_dataset

from segpipe import digest
from segpipe.data import check, raw_files
from segpipe.errors import SegpipeError

IMAGE = "imagesTr/b_0000.nii.gz"
A_DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """cases.json of a dataset that has been checked."""
    nnunet_dataset(tmp_path / "raw")
    out = tmp_path / "preprocessed/cases.json"
    check.check(tmp_path / "raw", out, CHECK, 3)
    return out


@pytest.fixture
def root(cases: Path) -> Path:
    return cases.parents[1] / "raw"


def changed(root: Path, cases: Path) -> tuple[list[str], list[str]]:
    """What is not as it was, and what is said meanwhile."""
    said: list[str] = []
    return raw_files.changed(root, cases, said.append), said


def reading(n: int, of: int = 8) -> list[str]:
    return [f"{n} of {of} raw files have other dates than when they were read: reading them"]


def date_back(path: Path, days: int = 1) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - days * A_DAY_NS))


def test_what_was_checked_is_not_read_again(root: Path, cases: Path) -> None:
    assert changed(root, cases) == ([], [])


def test_nothing_is_said_before_the_first_check(tmp_path: Path) -> None:
    assert changed(nnunet_dataset(tmp_path / "raw"), tmp_path / "cases.json") == ([], [])


def test_a_file_that_is_replaced_by_an_older_one(root: Path, cases: Path) -> None:
    nifti(root / IMAGE, image_array(77))
    date_back(root / IMAGE)
    assert changed(root, cases) == ([IMAGE], reading(1))
    assert changed(root, cases) == ([IMAGE], [])  # until the check runs, without reading it each time
    check.check(root, cases, CHECK, 3)
    assert changed(root, cases) == ([], [])


def test_a_file_of_equal_size_and_date(root: Path, cases: Path) -> None:
    before, content = (root / IMAGE).stat(), bytearray((root / IMAGE).read_bytes())
    content[-1] ^= 1
    (root / IMAGE).write_bytes(content)
    os.utime(root / IMAGE, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = (root / IMAGE).stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert changed(root, cases)[0] == [IMAGE]


def test_other_dates_of_the_same_contents_are_read_once(root: Path, cases: Path) -> None:
    for path in root.rglob("*.nii.gz"):
        path.touch()
    assert changed(root, cases) == ([], reading(7))
    assert changed(root, cases) == ([], [])


def test_files_that_come_go_and_are_renamed(root: Path, cases: Path) -> None:
    (root / IMAGE).rename(root / "imagesTr/z_0000.nii.gz")
    assert changed(root, cases)[0] == [IMAGE, "imagesTr/z_0000.nii.gz", "labelsTr/z.nii.gz"]
    (root / "imagesTr/z_0000.nii.gz").rename(root / IMAGE)
    assert changed(root, cases)[0] == []
    (root / "imagesTs/t0_0000.nii.gz").unlink()
    assert changed(root, cases) == (["imagesTs/t0_0000.nii.gz"], [])
    (root / "labelsTr/notes.txt").touch()  # what does not belong there is the label of a case to the check
    (root / "imagesTr/.hidden_0000.nii.gz").touch()
    assert changed(root, cases)[0] == ["imagesTs/t0_0000.nii.gz", "labelsTr/notes.txt.nii.gz"]


@pytest.mark.parametrize("name", raw_files.TABLES)
def test_the_tables_count_as_well(root: Path, cases: Path, name: str) -> None:
    if name == "cases.tsv":
        (root / name).write_text("case\tpatient\na\t1\nb\t1\nc\t2\n")
    else:
        describe(root, description="another one")
    date_back(root / name)
    assert changed(root, cases)[0] == [name]


def test_a_file_that_belongs_to_another_one(tmp_path: Path) -> None:
    import tifffile

    root = tmp_path / "raw"
    describe(root, file_ending=".tif")
    for name in [f"{folder}/{case}.tif" for case in "abc" for folder in ("imagesTr", "labelsTr")]:
        path = root / (name.replace(".tif", "_0000.tif") if "images" in name else name)
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, (image_array(ord(name[-5])) > 0).astype("uint8"), photometric="minisblack")
        path.with_name(f"{name[-5]}.json").write_text('{"spacing": [2, 1, 1]}')
    out = tmp_path / "cases.json"
    check.check(root, out, CHECK, 3)
    assert changed(root, out) == ([], [])
    sidecar = root / "imagesTr/a.json"
    sidecar.write_text('{"spacing": [3, 1, 1]}')
    date_back(sidecar)
    assert changed(root, out)[0] == ["imagesTr/a_0000.tif"]


def test_files_that_are_listed_and_lie_elsewhere(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "raw", n_train=3, n_test=0)
    listed = {}
    for case in "abc":
        (tmp_path / f"{case}.nii.gz").write_bytes((root / f"imagesTr/{case}_0000.nii.gz").read_bytes())
        listed[case] = {"images": [str(tmp_path / f"{case}.nii.gz")], "label": f"labelsTr/{case}.nii.gz"}
    describe(root, dataset=listed)
    out = tmp_path / "cases.json"
    check.check(root, out, CHECK, 3)
    nifti(root / "imagesTr/not_listed_0000.nii.gz", image_array())
    assert changed(root, out) == ([], [])
    nifti(tmp_path / "a.nii.gz", image_array(77))
    date_back(tmp_path / "a.nii.gz")
    assert changed(root, out)[0] == [str(tmp_path / "a.nii.gz")]


def test_a_check_that_was_killed_has_taken_cases_json_along(root: Path, cases: Path) -> None:
    content = (root / IMAGE).read_bytes()
    nifti(root / IMAGE, image_array(77))
    cases.unlink()
    assert changed(root, cases)[0] == [IMAGE]
    assert changed(root, cases)[0] == [IMAGE]
    (root / IMAGE).write_bytes(content)
    assert changed(root, cases)[0] == []


def test_a_list_that_was_made_elsewhere_counts_by_the_date(root: Path, cases: Path) -> None:
    """Without the record, as where DVC or a copy brought cases.json: only what is newer is read."""
    (cases.parent / "state/raw_files.json").unlink()
    assert changed(root, cases) == ([], [])
    assert changed(root, cases) == ([], [])
    (cases.parent / "state/raw_files.json").unlink()
    nifti(root / IMAGE, image_array(77))
    now = cases.stat().st_mtime_ns + A_DAY_NS
    os.utime(root / IMAGE, ns=(now, now))
    assert changed(root, cases) == ([IMAGE], reading(1))


def test_the_list_counts_and_not_what_was_recorded_with_another_one(root: Path, cases: Path) -> None:
    content = digest.read_json(cases)
    content["training"]["b"]["images"][IMAGE] = "0" * 16
    digest.write_json(cases, content)
    assert changed(root, cases) == (["dataset.json", IMAGE], [])


def test_a_list_that_is_brought_back_is_no_word_on_the_tables(root: Path, cases: Path) -> None:
    """As `dvc checkout` does; cases.json of one check beside the record of another."""
    first = cases.read_bytes()
    describe(root, description="another one", labels={"background": 0, "x": 1, "y": 2})
    check.check(root, cases, CHECK, 3)
    second = cases.read_bytes()
    assert changed(root, cases) == ([], [])
    cases.write_bytes(first)
    assert changed(root, cases) == (["dataset.json"], [])
    assert changed(root, cases) == (["dataset.json"], [])  # until the check runs
    cases.write_bytes(second)
    assert changed(root, cases) == ([], [])


def test_a_table_that_is_edited_during_the_check_is_not_the_one_that_was_read(
    root: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(*_: object) -> None:
        describe(root, description="another one")

    monkeypatch.setattr(check, "raise_problems", edit)
    check.check(root, cases, CHECK, 3)
    assert changed(root, cases)[0] == ["dataset.json"]


@pytest.mark.parametrize("content", [b"", b'{"contents": {', b"[]", b"{}", b"\xff"])
def test_a_record_that_is_damaged_is_none(root: Path, cases: Path, content: bytes) -> None:
    (cases.parent / "state/raw_files.json").write_bytes(content)
    assert changed(root, cases) == ([], [])
    nifti(root / IMAGE, image_array(77))
    date_back(root / IMAGE)
    assert changed(root, cases) == ([IMAGE], reading(1))


@pytest.mark.parametrize(
    "content", [b"", b'{"training": {', b"[]", b"{}", b'{"training": {"a": 1}, "test": {}}', b"\xff"]
)
def test_a_list_that_is_damaged_is_named(root: Path, cases: Path, content: bytes) -> None:
    cases.write_bytes(content)
    with pytest.raises(SegpipeError, match=f"delete {cases}"):
        changed(root, cases)


def test_who_may_only_look_is_told_all_the_same(root: Path, cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(digest, "write_text", refuse)
    (root / IMAGE).touch()
    assert changed(root, cases) == ([], reading(1))
    assert changed(root, cases) == ([], reading(1))


def test_a_malformed_dataset_json_is_left_to_the_check(root: Path, cases: Path) -> None:
    content = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text("{")
    assert "dataset.json" in changed(root, cases)[0]
    (root / "dataset.json").write_text(content)
    assert changed(root, cases) == ([], reading(1))  # the images had been read
