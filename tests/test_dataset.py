"""The two layouts of raw datasets, dataset.json, and the list of cases that the check leaves behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from volumes import CHECK, describe, image_array, label_array, nifti, nnunet_dataset

from segpipe.data import check, dataset
from segpipe.data.cases import Cases
from segpipe.data.dataset import CaseFiles
from segpipe.errors import SegpipeError


def refusal(root: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        dataset.describe(root)
    assert str(root / "dataset.json") in str(error.value)
    return str(error.value)


# nnU-Net's layout


def test_nnunet_layout(tmp_path: Path) -> None:
    found = dataset.describe(nnunet_dataset(tmp_path, channels=["T1", "T2"]))
    assert found.channel_names == ("T1", "T2")
    assert found.labels.names == {"background": (0,), "liver": (1,), "kidney": (2,)}
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
    assert list(dataset.describe(tmp_path).labels.heads) == ["background", "liver", "a tumour"]


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
    assert found.labels.names == {"background": (0,), "edema": (1,), "tumour": (2,)}
    assert list(found.training) == ["BRATS_002", "BRATS_010"]
    assert found.training["BRATS_002"] == CaseFiles(("imagesTr/BRATS_002.nii.gz",), "labelsTr/BRATS_002.nii.gz")
    assert found.test == {"BRATS_100": CaseFiles(("imagesTs/BRATS_100.nii.gz",), None)}
    assert found.file_ending == ".nii.gz"


def test_a_decathlon_task_passes_the_check_and_is_read(tmp_path: Path) -> None:
    check.check(decathlon(tmp_path / "Task01_BRATS"), tmp_path / "cases.json", CHECK, 2)
    cases = Cases.read(tmp_path / "cases.json", tmp_path / "Task01_BRATS")
    assert cases.name == "Task01_BRATS"
    image = cases.read_image("BRATS_002")
    assert image.array.shape == (2, 4, 5, 6)
    np.testing.assert_array_equal(image.array[1], image_array(shape=(6, 5, 4, 2))[..., 1].T)
    assert cases.read_label("BRATS_002").shape == (4, 5, 6)


def test_nnunets_layout_may_still_list_the_files_of_a_task(tmp_path: Path) -> None:
    """nnU-Net reads its folders and leaves `training` alone."""
    root = nnunet_dataset(tmp_path)
    content = json.loads((root / "dataset.json").read_text())
    content["training"] = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    (root / "dataset.json").write_text(json.dumps(content))
    found = dataset.describe(root).training
    assert list(found) == ["a", "b", "c"]
    assert found["a"].images == ("imagesTr/a_0000.nii.gz",)


def test_a_link_that_leads_nowhere_is_a_case(tmp_path: Path) -> None:
    """As git-annex leaves them: the check misses its files, where it would otherwise train on fewer cases."""
    root = nnunet_dataset(tmp_path)
    for name in ("imagesTr/z_0000.nii.gz", "labelsTr/z.nii.gz"):
        (root / name).symlink_to("nowhere")
    assert dataset.describe(root).training["z"] == CaseFiles(("imagesTr/z_0000.nii.gz",), "labelsTr/z.nii.gz")


def test_a_decathlon_case_may_be_named_like_a_channel(tmp_path: Path) -> None:
    case = {"image": "imagesTr/la_0000.nii.gz", "label": "labelsTr/la_0000.nii.gz"}
    nifti(tmp_path / case["image"], image_array(shape=(6, 5, 4, 2)))
    nifti(tmp_path / case["label"], label_array((6, 5, 4)))
    decathlon(tmp_path, training=[case], test=[], numTraining=1)
    check.check(tmp_path, tmp_path / "cases.json", CHECK, 1)
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


@pytest.mark.parametrize("where", ["training", "test"])
def test_an_id_that_is_listed_twice_is_refused(tmp_path: Path, where: str) -> None:
    decathlon(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    content[where].append(content[where][0])
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    text = refusal(tmp_path)
    assert "the same name twice" in text
    assert f"dataset.json: {where}\n" in text
    assert ("BRATS_010" if where == "training" else "BRATS_100") in text


# the lists of nnU-Net: the key `dataset`


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with files beside it and elsewhere, and a test case in its folder."""
    monkeypatch.setenv("SCANS", str(tmp_path / "scans"))
    for name in ("one.nii.gz", "two.nii.gz"):
        nifti(tmp_path / "scans" / name, image_array(len(name)))
    nifti(tmp_path / "scans/mask.nii.gz", label_array())
    root = tmp_path / "Dataset001_Listed"
    nifti(root / "near/image.nii.gz", image_array(3))
    nifti(root / "near/mask.nii.gz", label_array())
    nifti(root / "imagesTs/t0_0000.nii.gz", image_array(4))
    nifti(root / "imagesTs/t0_0001.nii.gz", image_array(5))
    cases = {
        "far": {"images": ["$SCANS/one.nii.gz", "${SCANS}/two.nii.gz"], "label": "../scans/mask.nii.gz"},
        "close": {"images": ["near/image.nii.gz", str(tmp_path / "scans/one.nii.gz")], "label": "./near/mask.nii.gz"},
    }
    describe(root, dataset=cases, channel_names={"0": "T1", "1": "T2"}, numTraining=2)
    return root


def test_files_may_lie_anywhere(listed: Path, tmp_path: Path) -> None:
    found = dataset.describe(listed)
    assert list(found.training) == ["close", "far"]
    far = (str(tmp_path / "scans/one.nii.gz"), str(tmp_path / "scans/two.nii.gz"))
    assert found.training["far"] == CaseFiles(far, "../scans/mask.nii.gz")
    assert found.training["close"] == CaseFiles(("near/image.nii.gz", far[0]), "near/mask.nii.gz")
    assert list(found.test) == ["t0"]


def test_listed_files_pass_the_check_and_are_read(listed: Path, tmp_path: Path) -> None:
    check.check(listed, tmp_path / "out/cases.json", CHECK, 2)
    cases = Cases.read(tmp_path / "out/cases.json", listed)
    np.testing.assert_array_equal(cases.read_image("far").array[0], image_array(len("one.nii.gz")).T)
    assert cases.read_label("close").shape == cases.read_image("t0").shape


@pytest.mark.parametrize(
    "cases",
    [
        {"a": {"images": ["a.nii.gz"]}},
        {"a": ["a.nii.gz"]},
        {"a": {"images": [1], "label": "b.nii.gz"}},
        {"a": {"images": [], "label": "b.nii.gz"}},
    ],
)
def test_malformed_lists_of_nnunet_are_refused(tmp_path: Path, cases: dict[str, Any]) -> None:
    describe(tmp_path, dataset=cases)
    assert "the lists of files are malformed" in refusal(tmp_path)


def test_a_list_of_letters_is_no_list_of_files(tmp_path: Path) -> None:
    describe(tmp_path, dataset={"a": {"images": "a.nii.gz", "label": "b.nii.gz"}})
    assert "the lists of files are malformed" in refusal(tmp_path)


def test_test_cases_in_both_layouts(tmp_path: Path) -> None:
    assert dataset.has_test_cases(nnunet_dataset(tmp_path / "with"))
    assert not dataset.has_test_cases(nnunet_dataset(tmp_path / "without", n_test=0))
    assert dataset.has_test_cases(decathlon(tmp_path / "Task01"))
    assert not dataset.has_test_cases(decathlon(tmp_path / "Task02", test=[]))
    (tmp_path / "with/dataset.json").write_text("{")
    assert not dataset.has_test_cases(tmp_path / "with")  # the check explains it


def test_files_that_belong_to_an_image_are_no_cases(tmp_path: Path) -> None:
    describe(tmp_path, file_ending=".tif")
    for name in ("imagesTr/a_0000.tif", "imagesTr/a.json", "labelsTr/a.tif", "labelsTr/a.json", "labelsTr/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"spacing": [2, 1, 1]}')
    found = dataset.describe(tmp_path).training
    assert found["a"] == CaseFiles(("imagesTr/a_0000.tif",), "labelsTr/a.tif")
    assert list(found) == ["a", "b.json"]  # to which no image belongs


def test_a_series_of_slices_is_a_folder(tmp_path: Path) -> None:
    describe(tmp_path, file_ending=".dcm")
    (tmp_path / "imagesTr/a_0000.dcm").mkdir(parents=True)
    (tmp_path / "imagesTr/a_0000.dcm/slice1").touch()
    nifti(tmp_path / "labelsTr/a.nii.gz", label_array())
    assert dataset.describe(tmp_path).training == {"a": CaseFiles(("imagesTr/a_0000.dcm",), "labelsTr/a.nii.gz")}


# dataset.json


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    describe(tmp_path)
    text = (tmp_path / "dataset.json").read_text().replace('"liver": 1', '"liver": 1, "liver": 2')
    (tmp_path / "dataset.json").write_text(text)
    assert "found:    liver" in refusal(tmp_path)


@pytest.mark.parametrize(("given", "reader"), [(None, None), ("None", None), ("SimpleITKIO", "SimpleITKIO")])
def test_the_reader_that_is_asked_for(tmp_path: Path, given: str | None, reader: str | None) -> None:
    describe(tmp_path, overwrite_image_reader_writer=given)
    assert dataset.describe(tmp_path).reader == reader


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
def test_labels_that_make_no_sense_are_refused(tmp_path: Path, labels: dict[str, Any]) -> None:
    describe(tmp_path, labels=labels)
    assert f"where:    {tmp_path / 'dataset.json'}: labels" in refusal(tmp_path)


def test_regions_and_the_ignore_label(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    describe(tmp_path, labels=labels, regions_class_order=[1, 2])
    found = dataset.describe(tmp_path).labels
    assert (found.foreground, found.regions_order, found.ignore) == ({"whole": (1, 2), "core": (2,)}, (1, 2), 3)


@pytest.mark.parametrize("names", [{}, {"1": "T1"}, {"zero": "T1"}, {"0": "T1", "2": "T2"}])
def test_channels_are_numbered_from_0(tmp_path: Path, names: dict[str, str]) -> None:
    describe(tmp_path, channel_names=names)
    assert "channels are not numbered" in refusal(tmp_path)


@pytest.mark.parametrize("ending", [".mgz", "nii.gz", None])
def test_other_file_formats_are_refused(tmp_path: Path, ending: str | None) -> None:
    describe(tmp_path, file_ending=ending)
    text = refusal(tmp_path)
    assert "unsupported file ending" in text
    assert f"found:    {ending or 'nothing'}" in text


# the checked cases


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    check.check(root, tmp_path / "cases.json", CHECK, 2)
    return Cases.read(tmp_path / "cases.json", root)


def test_channels_of_several_files_are_joined(cases: Cases) -> None:
    image = cases.read_image("b")
    np.testing.assert_array_equal(image.array, [image_array(10).T, image_array(11).T])
    label = cases.read_label("b")
    assert label.dtype == np.int16
    np.testing.assert_array_equal(label, label_array().T)


def test_what_the_list_of_cases_says(cases: Cases) -> None:
    assert (cases.name, cases.label_ending) == ("Dataset001_Small", ".nii.gz")
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
    check.check(cases.root, tmp_path / "again.json", CHECK, 2)
    again = Cases.read(tmp_path / "again.json", cases.root)
    changed = {case for case, identity in before.items() if again.identity(case) != identity}
    assert changed == {"b", "c"}
