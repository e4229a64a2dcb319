"""`segpipe evaluate`: any two label maps or folders of them, all problems at once, nnU-Net's numbers."""

import csv
import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from segpipe.cli.main import main

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
LABELS = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
PLAIN = {"background": 0, "one": 1, "two": 2}


def volume(seed, values=(0, 1, 2)):
    return np.kron(np.random.default_rng(seed).choice(values, (3, 4, 5)), np.ones((2, 3, 2), int)).astype(np.uint8)


def nifti(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T, affine), path)


def nrrd(path, array):
    """On the grid of AFFINE: ITK counts to the left and to the back."""
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 1.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))


def described(path, labels, **more):
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": labels, **more}))
    return path


@pytest.fixture
def folders(tmp_path):
    """Three cases; the references are NRRD files, and other files lie about."""
    for case in range(3):
        nifti(tmp_path / f"pred/case_{case}.nii.gz", volume(case))
        nrrd(tmp_path / f"ref/case_{case}.nrrd", volume(case + 10))
    (tmp_path / "pred/summary.json").write_text("{}")
    (tmp_path / "pred/._case_0.nii.gz").write_text("")
    return tmp_path / "pred", tmp_path / "ref"


def evaluate(*args):
    main(["evaluate", *map(str, args)])


def refused(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        evaluate(*args)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_folders_of_different_formats(folders, tmp_path, capsys):
    evaluate(*folders, "--out", tmp_path / "out.json", "--csv", tmp_path / "out.csv")
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert [row["prediction_file"] for row in content["metric_per_case"]] == [
        str(folders[0] / f"case_{case}.nii.gz") for case in range(3)
    ]
    expected = []
    for case, row in enumerate(content["metric_per_case"]):
        a, b = volume(case), volume(case + 10)
        assert list(row["metrics"]) == ["1", "2"]
        for value in (1, 2):
            dice = 2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum())
            assert row["metrics"][str(value)]["Dice"] == pytest.approx(dice)
            assert row["metrics"][str(value)]["volume_ref_ml"] == pytest.approx((b == value).sum() * 1.5e-3)
            expected.append(dice)
    assert content["foreground_mean"]["Dice"] == pytest.approx(np.mean(expected))
    assert content["confidence"]["foreground_mean"]["nsd"]["low"] <= content["foreground_mean"]["nsd"]
    assert f"{np.mean(expected):.4f}" in capsys.readouterr().out
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["reference_file"].split("/")[-1], row["class"]) for row in rows][:3] == [
        ("case_0.nrrd", "1"),
        ("case_0.nrrd", "2"),
        ("case_1.nrrd", "1"),
    ]
    assert float(rows[0]["Dice"]) == content["metric_per_case"][0]["metrics"]["1"]["Dice"]


def test_regions_and_the_ignore_label(tmp_path):
    nifti(tmp_path / "p/a.nii.gz", volume(0))
    nifti(tmp_path / "r/a.nii.gz", volume(1, (0, 1, 2, 3)))
    labels = described(tmp_path / "dataset.json", LABELS, regions_class_order=[1, 2])
    evaluate(tmp_path / "p", tmp_path / "r", "--labels", labels, "--out", tmp_path / "out.json")
    metrics = json.loads((tmp_path / "out.json").read_text())["metric_per_case"][0]["metrics"]
    assert list(metrics) == ["(1, 2)", "2"]
    predicted, reference = volume(0), volume(1, (0, 1, 2, 3))
    inside = reference != 3
    for key, values in (("(1, 2)", (1, 2)), ("2", (2,))):
        a, b = (np.isin(array, values)[inside] for array in (predicted, reference))
        counts = {"TP": a & b, "FP": a & ~b, "FN": ~a & b, "TN": ~a & ~b}
        assert {name: metrics[key][name] for name in counts} == {name: mask.sum() for name, mask in counts.items()}


def test_two_files_of_other_names(tmp_path, capsys):
    Image.fromarray(volume(0)[0]).save(tmp_path / "mine.png")
    Image.fromarray(volume(0)[0]).save(tmp_path / "theirs.bmp")
    evaluate(tmp_path / "mine.png", tmp_path / "theirs.bmp")
    assert "1.0000" in capsys.readouterr().out


def test_a_class_that_no_file_has_and_one_case(tmp_path):
    """nnU-Net's foreground mean is not a number here, and so are its classes' means."""
    nifti(tmp_path / "a.nii.gz", volume(0, (0, 1)))
    labels = described(tmp_path / "dataset.json", PLAIN)
    evaluate(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", "--labels", labels, "--out", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert content["mean"]["2"]["Dice"] is None
    assert content["foreground_mean"]["Dice"] == 1
    assert content["confidence"]["foreground_mean"]["Dice"] is None


def test_all_problems_in_one_message(folders, tmp_path, capsys):
    predicted, references = folders
    nifti(predicted / "case_0.nii.gz", volume(0)[:, 1:])
    nifti(predicted / "case_1.nii.gz", volume(1), AFFINE + np.eye(4)[:, [3, 0, 1, 2]] * 0.3)
    nifti(predicted / "case_2.nii.gz", volume(2, (0, 1, 7)))
    nifti(predicted / "extra.nii.gz", volume(3))
    (references / "absent.nrrd").write_text("NRRD0004 of nothing")
    nifti(predicted / "broken.nii.gz", volume(4))
    (references / "broken.nrrd").write_text("NRRD0004")
    labels = described(tmp_path / "dataset.json", PLAIN)
    text = refused(capsys, *folders, "--labels", labels, "--out", tmp_path / "out.json")
    assert "6 problems" in text
    for what, where in (
        ("shapes differ", "pred/case_0.nii.gz"),
        ("geometry differs", "pred/case_1.nii.gz"),
        ("unknown label values", "pred/case_2.nii.gz"),
        ("predictions without reference", "extra"),
        ("references without prediction", "absent"),
        ("unreadable file", "ref/broken.nrrd"),
    ):
        assert what in text
        assert where in text
    assert not (tmp_path / "out.json").exists()


def test_references_without_a_prediction_can_be_left_out(folders, tmp_path, capsys):
    (folders[0] / "case_1.nii.gz").unlink()
    assert "case_1" in refused(capsys, *folders)
    evaluate(*folders, "--only-predicted", "--out", tmp_path / "out.json")
    assert len(json.loads((tmp_path / "out.json").read_text())["metric_per_case"]) == 2


def test_two_files_of_one_case_are_refused(folders, capsys):
    nrrd(folders[0] / "case_1.nrrd", volume(1))
    assert "case_1.nii.gz, case_1.nrrd" in refused(capsys, *folders)


@pytest.mark.parametrize(
    ("prediction", "reference", "said"),
    [("nowhere", "ref", "nothing there"), ("pred/case_0.nii.gz", "ref", "a file against a folder")],
)
def test_what_is_no_pair_is_refused(folders, capsys, prediction, reference, said):
    root = folders[0].parent
    assert said in refused(capsys, root / prediction, root / reference)


def test_background_alone_is_refused_without_labels(tmp_path, capsys):
    nifti(tmp_path / "a.nii.gz", volume(0, (0,)))
    assert "background alone" in refused(capsys, tmp_path / "a.nii.gz", tmp_path / "a.nii.gz")


def test_the_tolerance_of_the_command_line(tmp_path):
    nifti(tmp_path / "a.nii.gz", np.roll(volume(0), 1, 0))
    nifti(tmp_path / "b.nii.gz", volume(0))
    shares = []
    for mm in (0.1, 10):
        evaluate(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "--nsd-tolerance-mm", mm, "--out", tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        assert content["settings"]["evaluate"]["nsd_tolerance_mm"] == mm
        shares.append(content["foreground_mean"]["nsd"])
    assert shares[0] < shares[1] == 1
