"""Preprocessed cases as nnU-Net reads them: regions, an ignore label, other values in the files, turned axes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from interop import segpipe
from tiny import Prepared, params, prepare
from volumes import affine, describe, image_array, nifti, turn

from segpipe import digest
from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.interop.nnunet_preprocessed import export_preprocessed
from segpipe.params import Params
from segpipe.prepare import plan as plan_module
from segpipe.prepare import store
from segpipe.prepare.nnunet_plans import from_nnunet

NAME = "Dataset007_Odd"
SPACING_MM = (2.5, 1.0, 1.2)  # X, Y, Z: the plan takes X first
LOWRES_MM = [3.0, 2.0, 2.0]
OVERRIDES = {
    "spacing_mm": {"3d_lowres": LOWRES_MM, "3d_fullres": [2.0, 1.0, 1.0]},
    "patch_size": [8] * 3,
    "batch_size": 2,
    "features_base": 4,
}
SETTINGS = params(dataset=f"raw/{NAME}", configurations=["3d_cascade_fullres"], plan__overrides=OVERRIDES)
FILES = (0, 10, 20, 99)  # of the training's 0, 1, 2 and its ignore label
KEYS = [(1, 2), 1, (-1, 0, 1, 2)]  # of the regions and of all that is annotated
SHAPE = (9, 14, 12)
CASES = ("a", "b", "c", "d")


def dataset(root: Path) -> None:
    """Images with empty borders, of different widths; a case without the core."""
    for number, case in enumerate(CASES):
        picture, label = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
        inside = (slice(1, 9), slice(2 + number, 13), slice(3, 11))
        picture[inside] = image_array(number, SHAPE)[inside]
        label[2:7, 7:11, 4:9] = FILES[2]
        if case != "d":
            label[3:5, 8:10, 5:8] = FILES[1]
        label[7:, :, :] = FILES[3]
        nifti(root / f"imagesTr/{case}_0000.nii.gz", picture, SPACING_MM)
        nifti(root / f"labelsTr/{case}.nii.gz", label, SPACING_MM)
    labels = {"background": FILES[0], "whole": [*FILES[1:3]], "core": FILES[1], "ignore": FILES[3]}
    channels = {"0": "MRI"}
    describe(root, channel_names=channels, numTraining=len(CASES), labels=labels, regions_class_order=[20, 10])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """3d_lowres and 3d_fullres; the cascade is not trained, so it has no cases of its own."""
    folder = tmp_path_factory.mktemp("odd")
    dataset(folder / "raw" / NAME)
    made = prepare(folder, SETTINGS)
    manifest = folder / "prepared/3d_lowres/manifest.json"
    store.build(made.cases, folder / "prepared/plan.json", "3d_lowres", manifest, SETTINGS.runtime)
    return made


@pytest.fixture
def here(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder, as the working directory."""
    monkeypatch.chdir(prepared.root)
    return prepared.root


@pytest.fixture(scope="module")
def exported(prepared: Prepared) -> Path:
    """What nnU-Net finds of the dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared.root)
        export_preprocessed(Path("prepared"), SETTINGS, Path("nnunet"), ["3d_cascade_fullres"])
    return prepared.root / "nnunet" / NAME


def properties(exported: Path, case: str, configuration: str = "3d_fullres") -> dict:
    return pickle.loads((exported / f"nnUNetPlans_{configuration}/{case}.pkl").read_bytes())


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_lowres"])
def test_images_and_labels_are_the_stored_ones(prepared: Prepared, exported: Path, configuration: str) -> None:
    folder = prepared.root / "prepared"
    opened = store.ensure(
        prepared.cases, folder / "plan.json", folder / configuration / "manifest.json", SETTINGS.runtime
    )
    for case in CASES:
        content, stored = np.load(exported / f"nnUNetPlans_{configuration}/{case}.npz"), opened.open(case)
        assert (content["data"].dtype, content["seg"].dtype) == (np.float32, np.int16)
        np.testing.assert_array_equal(content["data"], stored.image)
        np.testing.assert_array_equal(content["seg"], stored.label[None])


def test_a_folder_of_cases_has_their_two_files_only(exported: Path) -> None:
    """nnU-Net tells from the endings how to read them."""
    for configuration in ("3d_fullres", "3d_lowres"):
        found = {path.name for path in (exported / f"nnUNetPlans_{configuration}").iterdir()}
        assert found == {f"{case}.{ending}" for case in CASES for ending in ("npz", "pkl")}


def test_patches_are_centred_on_regions_and_on_what_is_annotated(exported: Path) -> None:
    for case in CASES:
        label = np.load(exported / f"nnUNetPlans_3d_fullres/{case}.npz")["seg"]
        locations = properties(exported, case)["class_locations"]
        assert list(locations) == KEYS
        for key, values in zip(KEYS, ([1, 2], [1], [-1, 0, 1, 2]), strict=True):
            expected = np.argwhere(np.isin(label, values))
            np.testing.assert_array_equal(locations[key], expected)
            assert locations[key].shape == (len(expected), 4)
            assert type(locations[key]) is np.ndarray
            assert locations[key].dtype == np.int64
    assert len(properties(exported, "d")["class_locations"][1]) == 0


def test_the_way_back_leads_to_the_file(prepared: Prepared, exported: Path) -> None:
    plans = json.loads((exported / "nnUNetPlans.json").read_text())
    assert plans["transpose_forward"] == [2, 0, 1]
    for number, case in enumerate(CASES):
        found = properties(exported, case)
        assert found["spacing"] == pytest.approx(SPACING_MM[::-1])
        assert found["shape_before_cropping"] == SHAPE[:1] + SHAPE[:0:-1]
        assert found["bbox_used_for_cropping"] == [[1, 9], [3, 11], [2 + number, 13]]
        assert found["shape_after_cropping_and_before_resampling"] == (8, 8, 11 - number)
        noted = found["sitk_stuff"]
        assert noted["spacing"] == pytest.approx(SPACING_MM)
        assert noted["origin"] == pytest.approx(affine()[:3, 3] * [-1, -1, 1])


def test_labels_have_the_values_of_the_training(prepared: Prepared, exported: Path) -> None:
    for case in CASES:
        stored = image.read_label(prepared.root / "raw" / NAME / f"labelsTr/{case}.nii.gz")
        written = image.read_label(exported / f"gt_segmentations/{case}.nii.gz")
        np.testing.assert_array_equal(np.array(FILES)[written.array], stored.array)
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-6)
    content = json.loads((exported / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3}
    assert content["regions_class_order"] == [2, 1]
    assert (content["numTraining"], content["file_ending"]) == (len(CASES), ".nii.gz")


def test_a_cascade_has_the_cases_of_3d_fullres(prepared: Prepared, exported: Path) -> None:
    plans = json.loads((exported / "nnUNetPlans.json").read_text())
    identifiers = {name: value["data_identifier"] for name, value in plans["configurations"].items()}
    assert identifiers == {"3d_lowres": "nnUNetPlans_3d_lowres", "3d_cascade_fullres": "nnUNetPlans_3d_fullres"}
    assert plans["configurations"]["3d_lowres"]["next_stage"] == "3d_cascade_fullres"
    planned = plan_module.read(prepared.root / "prepared/plan.json")["configurations"]
    for name, found in from_nnunet(plans)["configurations"].items():
        assert (found.spacing_mm, found.patch_size) == (planned[name].spacing_mm, planned[name].patch_size)


def test_folds_and_fingerprint(prepared: Prepared, exported: Path) -> None:
    assert digest.read_json(exported / "splits_final.json") == digest.read_json(prepared.splits)
    found = digest.read_json(exported / "dataset_fingerprint.json")
    assert found["shapes_after_crop"] == [[8, 11 - number, 8] for number in range(len(CASES))]
    assert found["spacings"] == [pytest.approx(SPACING_MM[::-1])] * len(CASES)


def test_cases_outside_of_a_fold_are_left_to_nobody(here: Path) -> None:
    """Given splits may name some as `neither`, a key that nnU-Net has not."""
    path = here / "prepared/splits.json"
    before = path.read_text()
    digest.write_json(path, [{"train": ["a", "b"], "val": ["c"], "neither": ["d"]}])
    try:
        export_preprocessed(Path("prepared"), SETTINGS, here / "given", ["3d_lowres"])
    finally:
        path.write_text(before)
    assert digest.read_json(here / "given" / NAME / "splits_final.json") == [{"train": ["a", "b"], "val": ["c"]}]
    assert not (here / "given" / NAME / "nnUNetPlans_3d_fullres").exists()


def test_turned_axes_are_turned_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net writes an image as it has it, and then as it was: sitk_stuff, original_orientation."""
    root = tmp_path / "raw" / NAME
    dataset(root)
    for path in (root / "imagesTr/a_0000.nii.gz", root / "labelsTr/a.nii.gz"):
        turn(path, "PIR")
    settings = params(dataset=f"raw/{NAME}", check__orientation="RAS", plan__overrides=OVERRIDES)
    prepare(tmp_path, settings)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/preprocessed").mkdir(parents=True)
    (tmp_path / "data/preprocessed" / NAME).symlink_to(tmp_path / "prepared")
    (tmp_path / "params.yaml").write_text(settings.model_dump_json(by_alias=True))
    segpipe("export-nnunet-preprocessed", "--out", "nnunet")
    exported = tmp_path / "nnunet" / NAME
    assert json.loads((exported / "nnUNetPlans.json").read_text())["image_reader_writer"] == "SimpleITKIOWithReorient"
    for case, codes in (("a", "PIR"), ("b", "RAS")):
        noted = properties(exported, case)["sitk_stuff"]
        assert noted["original_orientation"] == codes
        assert noted["direction"] == (-1, 0, 0, 0, -1, 0, 0, 0, 1)
        assert noted["spacing"] == pytest.approx(SPACING_MM)
        written = image.read_label(exported / f"gt_segmentations/{case}.nii.gz")
        assert image.axis_codes(written) == codes
        stored = image.read_label(root / f"labelsTr/{case}.nii.gz")
        np.testing.assert_array_equal(np.array(FILES)[written.array], stored.array)


# refused


def refused(settings: Params, out: Path, *configurations: str, folder: Path = Path("prepared")) -> str:
    with pytest.raises(SegpipeError) as caught:
        export_preprocessed(folder, settings, out, configurations or None)
    return str(caught.value)


def test_what_is_not_prepared_says_how(here: Path, tmp_path: Path) -> None:
    said = refused(SETTINGS, tmp_path, "2d")
    assert "snakemake --cores all prepared/2d/manifest.json" in said
    said = refused(SETTINGS, tmp_path, folder=Path("data/preprocessed/x"))
    assert "snakemake --cores all data/preprocessed/x/cases.json" in said
    assert "data/preprocessed/x/splits.json" in said
    assert "3d_fullres" in refused(SETTINGS, tmp_path, "4d")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(here: Path, exported: Path) -> None:
    before = (exported / "dataset.json").stat().st_mtime_ns
    assert "the folder exists" in refused(SETTINGS, exported.parent)
    assert (exported / "dataset.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "said"),
    [({"dataset": "Odd"}, "DatasetNNN_Name"), ({"annotated": ["whole"]}, "partly labelled cases"), (None, None)],
)
def test_datasets_that_nnunet_cannot_have(here: Path, tmp_path: Path, change: dict | None, said: str | None) -> None:
    for path in (here / "prepared").iterdir():
        (tmp_path / path.name).symlink_to(path)
    content = digest.read_json(here / "prepared/cases.json")
    if change and "annotated" in change:
        content["training"]["b"] |= change
    elif change:
        content |= change
    (tmp_path / "cases.json").unlink()
    digest.write_json(tmp_path / "cases.json", content)
    if said is None:
        export_preprocessed(tmp_path, SETTINGS, tmp_path / "out")
    else:
        assert said in refused(SETTINGS, tmp_path / "out", folder=tmp_path)
    assert (tmp_path / "out").exists() is (said is None)
