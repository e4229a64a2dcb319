"""Decathlon tasks in nnU-Net's layout: the same voxels and places, every channel a file."""

import gzip
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.nifti1 import Nifti1Image
from volumes import OBLIQUE, SHAPE, image_array, label_array, nifti

from segpipe import digest
from segpipe.cli import main
from segpipe.data import dataset, msd
from segpipe.errors import SegpipeError

LABELS = {"0": "background", "1": "PZ", "2": "TZ"}
SPACING_MM = (0.6, 0.7, 3.5)


def task(folder: Path, n_channels: int = 2, **changes: Any) -> Path:
    """A task of two training cases and a test case, oblique, with what macOS leaves beside the files."""
    shape = (*SHAPE, n_channels) if n_channels > 1 else SHAPE
    for index, name in enumerate(("imagesTr/p_00", "imagesTr/p_01", "imagesTs/p_02")):
        nifti(folder / f"{name}.nii.gz", image_array(index, shape), SPACING_MM, OBLIQUE)
        (folder / f"{name.replace('p', '._p')}.nii.gz").write_bytes(b"macOS")
    for name in ("p_00", "p_01"):
        nifti(folder / f"labelsTr/{name}.nii.gz", label_array(), SPACING_MM, OBLIQUE)
    content = {
        "name": "PROSTATE",
        "modality": dict(list({"0": "T2", "1": "ADC"}.items())[:n_channels]),
        "labels": LABELS,
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/p_{i:02d}.nii.gz", "label": f"./labelsTr/p_{i:02d}.nii.gz"} for i in (0, 1)
        ],
        "test": ["./imagesTs/p_02.nii.gz"],
    }
    digest.write_json(folder / "dataset.json", content | changes)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return task(tmp_path / "Task05_Prostate")


def refusal(source: Path, out: Path) -> str:
    with pytest.raises(SegpipeError) as error:
        msd.convert(source, out)
    assert not list(out.glob("*05*"))
    return str(error.value)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_layout_is_nnunets(source: Path, tmp_path: Path) -> None:
    found = msd.convert(source, tmp_path / "raw")
    assert found == tmp_path / "raw/Dataset005_Prostate"
    images = [f"{kind}/{case}_000{channel}.nii.gz" for kind, case in IMAGES for channel in (0, 1)]
    assert names(tmp_path / "raw") == sorted(
        f"{found.name}/{name}" for name in [*images, "labelsTr/p_00.nii.gz", "labelsTr/p_01.nii.gz", "dataset.json"]
    )
    assert json.loads((found / "dataset.json").read_text()) == {
        "name": "PROSTATE",
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": 2,
        "channel_names": {"0": "T2", "1": "ADC"},
        "file_ending": ".nii.gz",
    }
    described = dataset.describe(found)
    assert (list(described.training), list(described.test)) == (["p_00", "p_01"], ["p_02"])


IMAGES = (("imagesTr", "p_00"), ("imagesTr", "p_01"), ("imagesTs", "p_02"))


def test_channels_are_those_of_another_reader(source: Path, tmp_path: Path) -> None:
    """SimpleITK, which nnU-Net converts with, reads the same numbers at the same places."""
    found = msd.convert(source, tmp_path / "raw")
    for kind, case in IMAGES:
        whole = sitk.ReadImage(str(source / kind / f"{case}.nii.gz"))
        for channel in (0, 1):
            one = sitk.ReadImage(str(found / kind / f"{case}_000{channel}.nii.gz"))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(whole)[channel])
            assert one.GetSpacing() == whole.GetSpacing()[:3]
            assert one.GetOrigin() == whole.GetOrigin()[:3]
            np.testing.assert_array_equal(np.reshape(one.GetDirection(), (3, 3)), turned(whole))
    label = found / "labelsTr/p_01.nii.gz"
    assert label.read_bytes() == (source / "labelsTr/p_01.nii.gz").read_bytes()


def turned(image: sitk.Image) -> np.ndarray[Any, Any]:
    return np.reshape(image.GetDirection(), (4, 4))[:3, :3]


def test_the_header_is_kept(source: Path, tmp_path: Path) -> None:
    """Integers with slope and intercept, description, codes and both of the transforms."""
    path = source / "imagesTr/p_00.nii.gz"
    image = Nifti1Image(np.arange(9 * 8 * 7 * 2, dtype=np.int16).reshape(9, 8, 7, 2), None)
    image.set_sform(np.diag([2.0, 3, 4, 1]), 2)
    image.set_qform(np.diag([-2.0, 3, -4, 1]), 1)
    image.header["descrip"] = "scanner 7"
    image.header.set_slope_inter(0.5, -10)
    path.write_bytes(gzip.compress(image.to_bytes()))
    whole = nibabel.load(path)
    one = nibabel.load(msd.convert(source, tmp_path / "raw") / "imagesTr/p_00_0001.nii.gz")
    assert (one.dataobj.slope, one.dataobj.inter) == (whole.dataobj.slope, whole.dataobj.inter) == (0.5, -10)
    assert one.get_data_dtype() == np.int16
    np.testing.assert_array_equal(one.dataobj, np.asarray(whole.dataobj)[..., 1])
    for key in ("descrip", "qform_code", "sform_code", "xyzt_units"):
        assert one.header[key] == whole.header[key]
    np.testing.assert_array_equal(one.get_qform(), whole.get_qform())
    np.testing.assert_array_equal(one.get_sform(), whole.get_sform())
    assert one.header.get_zooms() == whole.header.get_zooms()[:3]


def test_labels_and_channels_as_nnunet_has_them_stay(source: Path, tmp_path: Path) -> None:
    content = json.loads((source / "dataset.json").read_text())
    content |= {
        "labels": {name: int(value) for value, name in LABELS.items()},
        "channel_names": content.pop("modality"),
    }
    digest.write_json(source / "dataset.json", content)
    found = json.loads((msd.convert(source, tmp_path / "raw") / "dataset.json").read_text())
    assert found["labels"] == {"background": 0, "PZ": 1, "TZ": 2}
    assert found["channel_names"] == {"0": "T2", "1": "ADC"}


def test_nnunets_layout_is_no_task(tmp_path: Path) -> None:
    assert "found:    nnU-Net's layout" in refusal(
        task(tmp_path / "Task05_Prostate", file_ending=".nii.gz"), tmp_path / "raw"
    )


def test_one_channel_is_copied(tmp_path: Path) -> None:
    source = task(tmp_path / "Task04_Hippocampus", n_channels=1)
    found = msd.convert(source, tmp_path / "raw")
    assert found.name == "Dataset004_Hippocampus"
    copied = found / "imagesTs/p_02_0000.nii.gz"
    assert copied.read_bytes() == (source / "imagesTs/p_02.nii.gz").read_bytes()


def test_an_archive_is_converted_as_its_folder(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "downloaded.tar", "w") as tar:
        tar.add(source, source.name)
    found, expected = msd.convert(tmp_path / "downloaded.tar", tmp_path / "a"), msd.convert(source, tmp_path / "b")
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in names(found):
        assert (found / name).read_bytes() == (expected / name).read_bytes()


def test_a_table_of_cases_comes_along(source: Path, tmp_path: Path) -> None:
    (source / "cases.tsv").write_text("case\tsite\n")
    assert (msd.convert(source, tmp_path / "raw") / "cases.tsv").read_text() == "case\tsite\n"


def test_the_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main.main(["import-msd", str(source)])
    assert (tmp_path / "data/raw/Dataset005_Prostate/dataset.json").is_file()
    with pytest.raises(SystemExit) as stopped:
        main.main(["import-msd", str(source), "--out", "data/raw"])
    assert stopped.value.code == 2


# refused, and nothing left behind


def test_a_dataset_that_is_there_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "raw/Dataset005_Prostate").mkdir(parents=True)
    with pytest.raises(SegpipeError, match="the dataset is there already"):
        msd.convert(source, tmp_path / "raw")
    assert names(tmp_path / "raw") == []


def test_missing_files_are_named_at_once(source: Path, tmp_path: Path) -> None:
    for name in ("labelsTr/p_01.nii.gz", "imagesTs/p_02.nii.gz"):
        (source / name).unlink()
    assert "no labelsTr/p_01.nii.gz, no imagesTs/p_02.nii.gz" in refusal(source, tmp_path / "raw")


def test_a_damaged_image(source: Path, tmp_path: Path) -> None:
    path = source / "imagesTr/p_01.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refusal(source, tmp_path / "raw")
    assert names(tmp_path / "raw") == []


@pytest.mark.parametrize("modality", [{"0": "T2"}, {"0": "T2", "1": "ADC", "2": "DWI"}])
def test_other_channels_than_dataset_json_says(tmp_path: Path, modality: dict[str, str]) -> None:
    source = task(tmp_path / "Task05_Prostate", modality=modality)
    assert f"a volume of {len(modality)} channels" in refusal(source, tmp_path / "raw")


def test_one_channel_where_there_should_be_two(source: Path, tmp_path: Path) -> None:
    nifti(source / "imagesTr/p_00.nii.gz", image_array())
    assert "a volume of 2 channels" in refusal(source, tmp_path / "raw")


def test_another_name(source: Path, tmp_path: Path) -> None:
    shutil.move(source, tmp_path / "Prostate05")
    assert "TaskNN_Name" in refusal(tmp_path / "Prostate05", tmp_path / "raw")


@pytest.mark.parametrize("kind", ["nothing", "a folder", "no archive"])
def test_what_is_no_task(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "Task05_Prostate"
    if kind == "a folder":
        path.mkdir()
    if kind == "no archive":
        path.write_text("text")
    assert "no Decathlon task" in refusal(path, tmp_path / "raw")
