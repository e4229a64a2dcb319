"""The integrity check: every kind of bad input is refused with its file, and all of them at once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from volumes import CHECK, OBLIQUE, REPO, describe, image_array, label_array, nifti, nnunet_dataset, numbered, turn

from segpipe import digest
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nnunet_dataset(tmp_path / "Dataset001_Small")


def run(root: Path, n_folds: int = 3) -> dict[str, object]:
    out = root.parent / "cases.json"
    check.check(root, out, CHECK, n_folds)
    content: dict[str, object] = digest.read_json(out)
    return content


def problems(root: Path, n_folds: int = 3) -> list[str]:
    """What the check finds; it must find something, and must not write cases.json."""
    with pytest.raises(SegpipeError) as error:
        check.check(root, root.parent / "cases.json", CHECK, n_folds)
    assert not any((root.parent / name).exists() for name in ("cases.json", check.PAGE))
    title, *found = str(error.value).split("\n\n")
    assert title.startswith(f"{root} cannot be used: {len(found)} problem")
    return found


def only_problem(root: Path, n_folds: int = 3) -> str:
    (found,) = problems(root, n_folds)
    return found


def field(found: str, name: str) -> str:
    (value,) = [line.split(":", 1)[1].strip() for line in found.splitlines() if line.startswith(f"  {name}:")]
    return value


def test_a_good_dataset_is_listed_with_digests(root: Path) -> None:
    content = run(root)
    assert content["dataset"] == "Dataset001_Small"
    assert content["labels"]["names"] == {"background": [0], "liver": [1], "kidney": [2]}
    assert content["training"]["b"] == {
        "images": {"imagesTr/b_0000.nii.gz": digest.of_file(root / "imagesTr/b_0000.nii.gz")},
        "label": {"labelsTr/b.nii.gz": digest.of_file(root / "labelsTr/b.nii.gz")},
        "shape": [7, 8, 9],
        "spacing_mm": [1, 1, 1],
        "annotated": None,
        "attributes": {},
    }
    assert content["test"]["t0"]["label"] is None


# each kind of problem on its own


def test_a_missing_channel(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    (root / "imagesTr/b_0001.nii.gz").unlink()
    found = only_problem(root)
    assert found.startswith("wrong image files")
    assert field(found, "where") == f"{root}, case b"
    assert field(found, "found") == "missing imagesTr/b_0001.nii.gz"


def test_an_image_without_any_file(root: Path) -> None:
    (root / "imagesTr/b_0000.nii.gz").unlink()
    found = only_problem(root)
    assert field(found, "where") == f"{root}, case b"
    assert field(found, "found") == "missing imagesTr/b_0000.nii.gz"


@pytest.mark.parametrize(("folder", "case"), [("imagesTr", "b"), ("imagesTs", "t0")])
def test_an_extra_channel(root: Path, folder: str, case: str) -> None:
    nifti(root / f"{folder}/{case}_0001.nii.gz", image_array())
    found = only_problem(root)
    assert found.startswith("wrong image files")
    assert field(found, "found") == f"extra {folder}/{case}_0001.nii.gz"


def test_an_image_without_channel_number_is_one_problem(root: Path) -> None:
    (root / "imagesTr/b_0000.nii.gz").rename(root / "imagesTr/b.nii.gz")
    found = only_problem(root)
    assert field(found, "where") == f"{root}, case b"
    assert field(found, "found") == "missing imagesTr/b_0000.nii.gz; extra imagesTr/b.nii.gz"


@pytest.mark.parametrize(("folder", "case"), [("imagesTr", "b"), ("imagesTs", "t0")])
@pytest.mark.parametrize("wrong", ["{}.nii.gz", "{}_0001.nii.gz", "{}_00.nii.gz"])
def test_a_misnamed_channel(root: Path, folder: str, case: str, wrong: str) -> None:
    (root / f"{folder}/{case}_0000.nii.gz").rename(root / folder / wrong.format(case))
    text = "\n".join(problems(root))
    assert "missing " in text
    assert f"extra {folder}/{wrong.format(case)}" in text


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr", "imagesTs"])
def test_a_file_that_does_not_belong_there(root: Path, folder: str) -> None:
    (root / folder / "notes.txt").write_text("a note")
    assert any("notes.txt" in found for found in problems(root))


def test_a_missing_label(root: Path) -> None:
    (root / "labelsTr/b.nii.gz").unlink()
    found = only_problem(root)
    assert field(found, "where") == str(root / "labelsTr/b.nii.gz")
    assert field(found, "found") == "no such file"


def test_a_listed_file_that_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "Task01"
    case = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    describe(root, training=[case], test=["./imagesTs/t.nii.gz"], numTraining=1, file_ending=None)
    nifti(root / "imagesTr/a.nii.gz", image_array())
    missing = [field(found, "where") for found in problems(root, n_folds=1)]
    assert missing == [str(root / "labelsTr/a.nii.gz"), str(root / "imagesTs/t.nii.gz")]


def test_a_wrong_shape(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", label_array((9, 8, 6)))
    found = only_problem(root)
    assert found.startswith("shapes differ")
    assert field(found, "where") == str(root / "labelsTr/b.nii.gz")
    assert field(found, "found") == "(6, 8, 9) voxels (Z, Y, X)"
    assert field(found, "expected") == "(7, 8, 9) as imagesTr/b_0000.nii.gz"


def test_a_wrong_spacing(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", label_array(), (1, 1, 1.5))
    found = only_problem(root)
    assert found.startswith("spacings differ")
    assert field(found, "found") == "1.5 x 1 x 1 mm (Z, Y, X)"


def test_a_wrong_direction(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", label_array(), rotation=OBLIQUE)
    found = only_problem(root)
    assert found.startswith("geometries differ")
    assert field(found, "where") == str(root / "labelsTr/b.nii.gz")


def test_a_label_whose_axes_lead_elsewhere_needs_another_setting(root: Path) -> None:
    turn(root / "labelsTr/b.nii.gz", "LAS")
    assert field(only_problem(root), "cure") == "set check.orientation: RAS; its axes lead to LAS and not to RAS"
    assert not check.inspect(root, CHECK.model_copy(update={"orientation": "RAS"}), 2).problems


@pytest.mark.parametrize(("shift_mm", "fits"), [(0.05, True), (0.2, False)])
def test_a_shift_within_the_tolerance_is_accepted(root: Path, shift_mm: float, fits: bool) -> None:
    label = nibabel.load(root / "labelsTr/b.nii.gz")
    moved = label.affine.copy()
    moved[1, 3] += shift_mm
    nibabel.save(nibabel.Nifti1Image(label_array(), moved), root / "labelsTr/b.nii.gz")
    if fits:
        assert "b" in run(root)["training"]
    else:
        assert "a corner lies 0.2 mm off imagesTr/b_0000.nii.gz" in only_problem(root)


def test_channels_on_different_grids(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    nifti(root / "imagesTs/t0_0001.nii.gz", image_array(shape=(9, 8, 6)))
    assert field(only_problem(root), "where") == str(root / "imagesTs/t0_0001.nii.gz")


def test_the_right_file_is_named_where_the_first_cannot_be_read(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Small", channels=["T1", "T2"])
    (root / "imagesTr/b_0000.nii.gz").write_bytes(b"")
    nifti(root / "labelsTr/b.nii.gz", label_array((9, 8, 6)))
    unreadable, shapes = problems(root)
    assert field(unreadable, "where") == str(root / "imagesTr/b_0000.nii.gz")
    assert field(shapes, "where") == str(root / "labelsTr/b.nii.gz")
    assert field(shapes, "expected") == "(7, 8, 9) as imagesTr/b_0001.nii.gz"


def test_unknown_label_values(root: Path) -> None:
    label = label_array().astype(np.int16)
    label[0, 0, 0], label[0, 0, 1] = 7, -1
    nifti(root / "labelsTr/b.nii.gz", label)
    found = only_problem(root)
    assert found.startswith("unknown label values")
    assert field(found, "where") == str(root / "labelsTr/b.nii.gz")
    assert field(found, "found") == "-1, 7"
    assert field(found, "expected") == "0 (background); 1 (liver); 2 (kidney)"


def test_label_values_with_gaps_are_accepted_with_a_mapping(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 5, "kidney": 500})
    for case in "abc":
        label = label_array().astype(np.int16)
        nifti(root / f"labelsTr/{case}.nii.gz", np.array([0, 5, 500], np.int16)[label])
    assert run(root)["labels"]["file_values"] == [0, 5, 500]
    np.testing.assert_array_equal(Cases.read(root.parent / "cases.json", root).read_label("b"), label_array().T)
    nifti(root / "labelsTr/b.nii.gz", label_array())
    (root.parent / "cases.json").unlink()
    (root.parent / check.PAGE).unlink()
    assert field(only_problem(root), "expected") == "0 (background); 5 (liver); 500 (kidney)"


def test_labels_that_lack_a_class_are_accepted(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", np.zeros_like(label_array()))
    assert "b" in run(root)["training"]


def test_a_label_with_channels(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", np.stack([label_array()] * 2, axis=-1))
    assert only_problem(root).startswith("label with several channels")


@pytest.mark.parametrize("path", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz", "imagesTs/t0_0000.nii.gz"])
def test_nan(root: Path, path: str) -> None:
    array = image_array() if "images" in path else label_array().astype(np.float32)
    array[1, 2, 3] = np.nan
    nifti(root / path, array)
    found = only_problem(root)
    assert field(found, "where") == str(root / path)
    assert "nan" in field(found, "found").lower()


@pytest.mark.parametrize("path", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz", "imagesTs/t0_0000.nii.gz"])
def test_an_unreadable_file(root: Path, path: str) -> None:
    content = (root / path).read_bytes()
    (root / path).write_bytes(content[: len(content) // 2])
    found = only_problem(root)
    assert found.startswith("unreadable file")
    assert field(found, "where") == str(root / path)


@pytest.mark.parametrize("names", [["T1"], ["T1", "T2", "T3"]])
def test_a_wrong_number_of_channels_in_one_file(tmp_path: Path, names: list[str]) -> None:
    root = tmp_path / "Task01"
    case = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    describe(root, channel_names=numbered(names), training=[case], numTraining=1, file_ending=None)
    nifti(root / case["image"], image_array(shape=(9, 8, 7, 2)))
    nifti(root / case["label"], label_array())
    found = only_problem(root, n_folds=1)
    assert found.startswith("wrong number of channels")
    assert field(found, "found") == "2"
    assert field(found, "expected") == f"{len(names)}: {', '.join(names)}"


def test_channels_in_one_file_where_each_has_its_own(root: Path) -> None:
    nifti(root / "imagesTr/b_0000.nii.gz", image_array(shape=(9, 8, 7, 2)))
    assert only_problem(root).startswith("wrong number of channels")


def test_fewer_cases_than_folds(root: Path) -> None:
    found = only_problem(root, n_folds=4)
    assert found.startswith("fewer cases than folds")
    assert (field(found, "found"), field(found, "expected")) == ("3 training cases", "at least 4")


def test_a_wrong_count_in_the_description(root: Path) -> None:
    describe(root, numTraining=5)
    found = only_problem(root)
    assert field(found, "where") == f"{root / 'dataset.json'}: numTraining"
    assert (field(found, "found"), field(found, "expected")) == ("3 training cases", "5")


def test_one_id_for_a_training_and_a_test_case(root: Path) -> None:
    shutil.copy(root / "imagesTr/a_0000.nii.gz", root / "imagesTs/a_0000.nii.gz")
    found = only_problem(root)
    assert found.startswith("the same id in imagesTr and imagesTs")
    assert field(found, "found") == "a"


def test_an_empty_dataset(tmp_path: Path) -> None:
    describe(tmp_path / "Dataset001_Empty", numTraining=0)
    assert only_problem(tmp_path / "Dataset001_Empty").startswith("fewer cases than folds")


# all at once


def spoil(root: Path) -> Path:
    """One problem of every kind, in eight training cases and a test case."""
    nnunet_dataset(root, n_train=8, channels=["T1", "T2"])
    describe(root, numTraining=9, channel_names=numbered(["T1", "T2"]))
    (root / "imagesTr/a_0001.nii.gz").unlink()
    nifti(root / "imagesTr/b_0002.nii.gz", image_array())
    (root / "labelsTr/c.nii.gz").unlink()
    nifti(root / "labelsTr/d.nii.gz", label_array((9, 8, 6)))
    nifti(root / "labelsTr/e.nii.gz", label_array() * 2, rotation=OBLIQUE)  # two problems in one file
    nifti(root / "imagesTr/f_0000.nii.gz", image_array() * np.nan)
    (root / "imagesTr/g_0001.nii.gz").write_bytes(b"no NIfTI")
    nifti(root / "labelsTr/g.nii.gz", label_array() * 3)  # and another beside the unreadable image
    nifti(root / "imagesTr/h_0000.nii.gz", image_array(shape=(9, 8, 7, 2)))
    shutil.copy(root / "imagesTr/a_0000.nii.gz", root / "imagesTs/a_0000.nii.gz")
    return root


WHAT = sorted(
    [
        "wrong number of cases",
        "fewer cases than folds",
        "the same id in imagesTr and imagesTs",
        "wrong image files",  # a of imagesTr
        "wrong image files",  # b
        "wrong image files",  # a of imagesTs
        "missing file",
        "shapes differ",
        "geometries differ",
        "unknown label values",  # e
        "not a number",
        "unreadable file",
        "unknown label values",  # g
        "wrong number of channels",
    ]
)


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    found = problems(spoil(tmp_path / "Dataset001_Bad"), n_folds=9)
    assert sorted(text.splitlines()[0] for text in found) == WHAT
    for text in found:
        for name in ("where", "found", "expected", "cure"):
            assert field(text, name)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """The script that the rule calls, in a project of its own."""

    def call(root: Path) -> subprocess.CompletedProcess[str]:
        settings = yaml.safe_load((REPO / "params.yaml").read_text()) | {"dataset": str(root), "folds": [0]}
        settings["splits"]["n_folds"] = 2
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
        arguments = ["--dataset", str(root), "--out", "cases.json", "--log", "check.log"]
        return subprocess.run(
            [sys.executable, REPO / "workflow/scripts/check.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_the_script_exits_with_2_and_one_message(
    tmp_path: Path, script: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    done = script(spoil(tmp_path / "Dataset001_Bad"))
    assert done.returncode == 2
    assert "13 problems" in done.stderr  # two folds are not too many
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cases.json").exists()
    assert (tmp_path / "check.log").read_text() == done.stderr


def test_the_script_lists_a_good_dataset(
    root: Path, script: Callable[[Path], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert script(root).returncode == 0
    assert len(digest.read_json(tmp_path / "cases.json")["training"]) == 3
