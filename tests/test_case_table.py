"""cases.tsv: attributes for the folds, and the classes of partly labelled cases."""

from pathlib import Path
from typing import Any

import pytest
from volumes import CHECK, describe, label_array, nifti, nnunet_dataset

from segpipe import digest
from segpipe.data import case_table, check
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Training cases a, b, c and a test case t0; classes liver (1) and kidney (2)."""
    return nnunet_dataset(tmp_path / "Dataset001_Small")


def entries(root: Path, table: str) -> dict[str, Any]:
    """What cases.json says of all cases."""
    (root / case_table.NAME).write_text(table)
    out = root.parent / "cases.json"
    check.check(root, out, CHECK, 3)
    content = digest.read_json(out)
    return {**content["training"], **content["test"]}


def refusal(root: Path, table: str | bytes) -> str:
    (root / case_table.NAME).write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(SegpipeError) as error:
        check.check(root, root.parent / "cases.json", CHECK, 3)
    assert not (root.parent / "cases.json").exists()
    assert str(root / case_table.NAME) in str(error.value)
    return str(error.value)


def columns(root: Path, table: str, name: str) -> dict[str, Any]:
    return {case: entry[name] for case, entry in entries(root, table).items()}


def test_columns_become_attributes(root: Path) -> None:
    """Lines in any order, also of test cases; a case without a line; empty fields that end a line are left out."""
    table = "case\tpatient\tsite\nc\t7\tnorth side\na\t7\n\nt0\t9\tsouth\n"
    assert columns(root, table, "attributes") == {
        "a": {"patient": "7", "site": ""},
        "b": {},
        "c": {"patient": "7", "site": "north side"},
        "t0": {"patient": "9", "site": "south"},
    }


def test_as_spreadsheets_write_it(root: Path) -> None:
    """A byte order mark, Windows' line ends, blanks around values."""
    found = columns(root, "\ufeffcase\t patient\r\na\t1 \r\n", "attributes")
    assert found["a"] == {"patient": "1"}


def test_without_the_table(root: Path) -> None:
    assert case_table.read(root, None, [], []) == {}


def test_annotated_classes_in_the_order_of_the_labels(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "spleen": 3})
    table = "case\tannotated\na\tkidney; liver\nb\t\nc\tspleen;kidney;liver\nt0\tliver\n"
    assert columns(root, table, "annotated") == {"a": ["liver", "kidney"], "b": None, "c": None, "t0": None}
    assert Cases.read(root.parent / "cases.json", root).annotated("a") == ["liver", "kidney"]


def test_what_is_annotated_is_part_of_a_case_but_its_attributes_are_not(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "spleen": 3})

    def identity(table: str) -> str:
        entries(root, table)
        return Cases.read(root.parent / "cases.json", root).identity("a")

    whole = identity("case\tpatient\na\t1\n")
    assert identity("case\tpatient\na\t2\n") == whole
    assert identity("case\tannotated\na\tliver;kidney\n") != whole


def label_refusal(root: Path, annotated: str) -> str:
    """What is said where only these classes of case b are annotated; its label map has every class."""
    (root / case_table.NAME).write_text(f"case\tannotated\nb\t{annotated}\n")
    with pytest.raises(SegpipeError) as error:
        check.check(root, root.parent / "cases.json", CHECK, 3)
    text = str(error.value)
    assert f"voxels of classes that are not annotated\n  where:    {root / 'labelsTr/b.nii.gz'}" in text
    return text


def test_voxels_of_a_class_that_is_not_annotated_are_refused(root: Path) -> None:
    assert "found:    kidney\n" in label_refusal(root, "liver")


def test_voxels_in_the_values_of_the_files(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 7, "kidney": 4})
    for case in "abc":
        nifti(root / f"labelsTr/{case}.nii.gz", label_array().choose([0, 7, 4]).astype("uint8"))
    assert "found:    kidney\n" in label_refusal(root, "liver")


def test_voxels_that_regions_share(root: Path) -> None:
    """The core lies in the whole: its voxels are annotated with it; the rim is of the whole alone."""
    describe(root, labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2])
    assert columns(root, "case\tannotated\nb\twhole\n", "annotated")["b"] == ["whole"]
    (root.parent / "cases.json").unlink()
    assert "found:    whole\n" in label_refusal(root, "core")


# what is no such table


def test_all_that_is_wrong_is_said_at_once(root: Path) -> None:
    text = refusal(root, "case\tannotated\na\tliver;spleen\nx\t\nb\t\nb\t\n")
    assert f"unknown cases\n  where:    {root / 'cases.tsv'}\n  found:    x\n" in text
    assert f"cases with several lines\n  where:    {root / 'cases.tsv'}\n  found:    b\n" in text
    assert f"unknown classes\n  where:    {root / 'cases.tsv'}, line 2: annotated\n  found:    spleen\n" in text
    assert "expected: some of liver; kidney, or nothing" in text


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("", "line 1"),
        ("case,patient\na,1\n", "line 1"),
        ("patient\tcase\n1\ta\n", "line 1"),
        ("case\tpatient\tpatient\na\t1\t2\n", "line 1"),
        ("case\t\na\t1\n", "line 1"),
        ("case\tpatient\na\t1\t2\n", "line 2"),
        ("case\tpatient\n\n\t2\n", "line 3"),
        (b"case\tpatient\na\t\xff\n", "cases.tsv"),
    ],
)
def test_what_is_no_table_is_refused(root: Path, table: str | bytes, where: str) -> None:
    text = refusal(root, table)
    assert "cases.tsv is no table" in text
    assert where in text
