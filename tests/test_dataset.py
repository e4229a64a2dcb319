"""The two layouts of raw datasets, dataset.json, and the list of cases that the check leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volumes import describe, image_array, label_array, nifti, nnunet_dataset

from segpipe.data import check, dataset
from segpipe.data.dataset import CaseFiles, Cases
from segpipe.errors import SegpipeError
from segpipe.params import Check


def refusal(root: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        dataset.describe(root)
    assert str(root / "dataset.json") in str(error.value)
    return str(error.value)


# nnU-Net's layout


def test_nnunet_layout(tmp_path: Path) -> None:
    found = dataset.describe(nnunet_dataset(tmp_path, channels=["T1", "T2"]))
    assert found.channel_names == ("T1", "T2")
    assert found.labels == {"background": 0, "liver": 1, "kidney": 2}
    assert found.n_training == 3
    assert list(found.training) == ["a", "b", "c"]
    images = ("imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz")
    assert found.training["b"] == CaseFiles(images, "labelsTr/b.nii.gz")
    assert found.test == {"t0": CaseFiles(("imagesTs/t0_0000.nii.gz", "imagesTs/t0_0001.nii.gz"), None)}


def test_channels_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = {str(number): f"channel {number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    describe(tmp_path, channel_names=names)
    assert dataset.describe(tmp_path).channel_names == tuple(f"channel {number}" for number in range(11))


def test_labels_come_in_the_order_of_their_values(tmp_path: Path) -> None:
    describe(tmp_path, labels={"a tumour": 2, "background": 0, "liver": 1})
    assert list(dataset.describe(tmp_path).labels) == ["background", "liver", "a tumour"]


def test_hidden_files_and_folders_are_no_cases(tmp_path: Path) -> None:
    nnunet_dataset(tmp_path)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / folder / "._a_0000.nii.gz").touch()
        (tmp_path / folder / ".DS_Store").touch()
        (tmp_path / folder / "old").mkdir()
    found = dataset.describe(tmp_path)
    assert (list(found.training), list(found.test)) == (["a", "b", "c"], ["t0"])


def test_underscores_and_digits_in_case_names(tmp_path: Path) -> None:
    describe(tmp_path)
    nifti(tmp_path / "imagesTr/site_2_0001_0000.nii.gz", image_array())
    nifti(tmp_path / "labelsTr/site_2_0001.nii.gz", label_array())
    files = CaseFiles(("imagesTr/site_2_0001_0000.nii.gz",), "labelsTr/site_2_0001.nii.gz")
    assert dataset.describe(tmp_path).training == {"site_2_0001": files}


def test_a_label_without_image_is_a_case_too(tmp_path: Path) -> None:
    nnunet_dataset(tmp_path)
    nifti(tmp_path / "labelsTr/z.nii.gz", label_array())
    assert dataset.describe(tmp_path).training["z"] == CaseFiles((), "labelsTr/z.nii.gz")


# Decathlon's layout


def decathlon(root: Path, **changes: Any) -> Path:
    """A task as the Decathlon's archives unpack: 4D images, listed files, a macOS copy beside each."""
    for case in ("BRATS_002", "BRATS_010"):
        nifti(root / f"imagesTr/{case}.nii.gz", image_array(shape=(6, 5, 4, 2)))
        nifti(root / f"labelsTr/{case}.nii.gz", label_array((6, 5, 4)))
        (root / f"imagesTr/._{case}.nii.gz").write_bytes(b"Mac OS X")
        (root / f"labelsTr/._{case}.nii.gz").write_bytes(b"Mac OS X")
    nifti(root / "imagesTs/BRATS_100.nii.gz", image_array(shape=(6, 5, 4, 2)))
    content = {
        "name": "BRATS",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "numTraining": 2,
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in ("BRATS_010", "BRATS_002")
        ],
        "test": ["./imagesTs/BRATS_100.nii.gz"],
    } | changes
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_layout(tmp_path: Path) -> None:
    found = dataset.describe(decathlon(tmp_path))
    assert found.channel_names == ("FLAIR", "T1w")
    assert found.labels == {"background": 0, "edema": 1, "tumour": 2}
    assert list(found.training) == ["BRATS_002", "BRATS_010"]
    assert found.training["BRATS_002"] == CaseFiles(("imagesTr/BRATS_002.nii.gz",), "labelsTr/BRATS_002.nii.gz")
    assert found.test == {"BRATS_100": CaseFiles(("imagesTs/BRATS_100.nii.gz",), None)}
    assert found.file_ending == ".nii.gz"


def test_a_decathlon_task_passes_the_check_and_is_read(tmp_path: Path) -> None:
    check.check(decathlon(tmp_path / "Task01_BRATS"), tmp_path / "cases.json", Check(geometry_tolerance_mm=0.1), 2)
    cases = Cases.read(tmp_path / "cases.json", tmp_path / "Task01_BRATS")
    assert cases.name == "Task01_BRATS"
    image = cases.read_image("BRATS_002")
    assert image.array.shape == (2, 4, 5, 6)
    np.testing.assert_array_equal(image.array[1], image_array(shape=(6, 5, 4, 2))[..., 1].T)
    assert cases.read_label("BRATS_002").shape == (4, 5, 6)


def test_a_decathlon_case_may_be_named_like_a_channel(tmp_path: Path) -> None:
    case = {"image": "imagesTr/la_0000.nii.gz", "label": "labelsTr/la_0000.nii.gz"}
    nifti(tmp_path / case["image"], image_array(shape=(6, 5, 4, 2)))
    nifti(tmp_path / case["label"], label_array((6, 5, 4)))
    decathlon(tmp_path, training=[case], test=[], numTraining=1)
    check.check(tmp_path, tmp_path / "cases.json", Check(geometry_tolerance_mm=0.1), 1)
    assert Cases.read(tmp_path / "cases.json", tmp_path).training == ["la_0000"]


@pytest.mark.parametrize(
    "changes",
    [
        {"training": [{"image": "./imagesTr/a.nii.gz"}]},
        {"training": ["./imagesTr/a.nii.gz"]},
        {"training": 3},
        {"training": None},
        {"training": [{"image": 1, "label": 2}]},
        {"test": [{"image": "./imagesTs/a.nii.gz"}]},
        {"test": 7},
    ],
)
def test_malformed_lists_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert "the lists of files are malformed" in refusal(decathlon(tmp_path, **changes))


# dataset.json


def test_a_missing_description_is_refused(tmp_path: Path) -> None:
    assert "no dataset.json" in refusal(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"{", b"{'labels': 1}", b"\xff\xfe\x00"])
def test_a_description_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    assert "dataset.json is not JSON" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null", '{"labels": [], "channel_names": "MRI"}'])
def test_all_missing_keys_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    text = refusal(tmp_path)
    assert "dataset.json is incomplete: 2 problems" in text
    assert "channel_names or modality: {...}" in text
    assert "labels: {...}" in text


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 2},
        {"liver": 1, "kidney": 2},
        {"background": 0},
        {"background": 0, "liver": "one"},
        {"background": 0, "liver": None},
        {"background": 0, "liver": 1.5},
        {"background": 0, "liver": -1},
        {"background": 0, "liver": 1, "kidney": 1},
        {"0": "background", "1": "tumour", "2": "tumour"},
        {},
    ],
)
def test_label_values_are_consecutive(tmp_path: Path, labels: dict[str, Any]) -> None:
    describe(tmp_path, labels=labels)
    assert "label values are not consecutive" in refusal(tmp_path)


@pytest.mark.parametrize(
    "labels", [{"background": 0, "whole": [1, 2], "core": 2}, {"background": 0, "a": 1, "ignore": 2}]
)
def test_regions_and_ignored_voxels_are_refused(tmp_path: Path, labels: dict[str, Any]) -> None:
    describe(tmp_path, labels=labels)
    text = refusal(tmp_path)
    assert "regions and the ignore label are not supported" in text
    assert "found:    whole" in text or "found:    ignore" in text


@pytest.mark.parametrize("names", [{}, {"1": "T1"}, {"zero": "T1"}, {"0": "T1", "2": "T2"}])
def test_channels_are_numbered_from_0(tmp_path: Path, names: dict[str, str]) -> None:
    describe(tmp_path, channel_names=names)
    assert "channels are not numbered" in refusal(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".mha", "nii.gz", None])
def test_other_file_formats_are_refused(tmp_path: Path, ending: str | None) -> None:
    describe(tmp_path, file_ending=ending)
    text = refusal(tmp_path)
    assert "unsupported file ending" in text
    assert f"found:    {ending or 'nothing'}" in text


# the checked cases


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    check.check(root, tmp_path / "cases.json", Check(geometry_tolerance_mm=0.1), 2)
    return Cases.read(tmp_path / "cases.json", root)


def test_channels_of_several_files_are_joined(cases: Cases) -> None:
    image = cases.read_image("b")
    np.testing.assert_array_equal(image.array, [image_array(10).T, image_array(11).T])
    label = cases.read_label("b")
    assert label.dtype == np.int16
    np.testing.assert_array_equal(label, label_array().T)


def test_what_the_list_of_cases_says(cases: Cases) -> None:
    assert (cases.name, cases.file_ending) == ("Dataset001_Small", ".nii.gz")
    assert (cases.training, cases.test) == (["a", "b", "c"], ["t0"])
    assert cases.channel_names == ["T1", "T2"]
    assert cases.image_path("a") == cases.root / "imagesTr/a_0000.nii.gz"
    assert cases.label_path("a") == cases.root / "labelsTr/a.nii.gz"
    assert cases.entry("t0")["label"] is None


def test_the_identity_of_a_case_is_its_content(cases: Cases, tmp_path: Path) -> None:
    before = {case: cases.identity(case) for case in [*cases.training, *cases.test]}
    assert len(set(before.values())) == 4
    (cases.root / "imagesTr/b_0001.nii.gz").write_bytes((cases.root / "imagesTr/c_0001.nii.gz").read_bytes())
    nifti(cases.root / "labelsTr/c.nii.gz", label_array() * 0)
    check.check(cases.root, tmp_path / "again.json", Check(geometry_tolerance_mm=0.1), 2)
    again = Cases.read(tmp_path / "again.json", cases.root)
    changed = {case for case, identity in before.items() if again.identity(case) != identity}
    assert changed == {"b", "c"}
