"""`segpipe predict`: which models, which images, and what becomes of a case that cannot be predicted."""

import shutil

import numpy as np
import pytest
import torch
from interop import IMAGES, segpipe

from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.inference import images, models, predict
from segpipe.inference.predict_cases import Job, Written, run
from segpipe.inference.presets import Way
from segpipe.training import checkpoint

CASE = "case_004"
FAST = Way(step_size=1.0, mirroring=False, precision="trained")


def loaded(model, **asked):
    found = models.find(model, "final", **asked)
    paths = [path for folds in found.values() for path in folds.values()]
    return models.load(paths, asked.get("configurations") or models.counted(found), torch.device("cpu"), "raw")


def predict_folder(ensemble, folder, out, written=None):
    run(Job(ensemble, images.at([folder], ensemble.content), FAST, written or Written(), out))


def probabilities(ensemble, out):
    predict_folder(ensemble, IMAGES, out, Written("npz", "float32"))
    return np.load(out / f"{CASE}.npz")["probabilities"]


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_cascade_counts_alone_and_brings_its_first_stage(cascade):
    ensemble = loaded(cascade)
    assert ensemble.counted == ("3d_cascade_fullres",)
    assert list(ensemble.models) == ["3d_lowres", "3d_cascade_fullres"]
    assert loaded(cascade, configurations=["3d_lowres"]).counted == ("3d_lowres",)


def test_probabilities_are_averaged_over_the_configurations_asked_for(cascade, tmp_path):
    names = ["3d_lowres", "3d_cascade_fullres"]
    each = [probabilities(loaded(cascade, configurations=[name]), tmp_path / name) for name in names]
    both = probabilities(loaded(cascade, configurations=names), tmp_path / "both")
    assert np.allclose(both, (each[0] + each[1]) / 2, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 0.1


def test_folds_are_those_asked_for(flat, tmp_path):
    first, second = (loaded(flat, folds=[fold]) for fold in "01")
    assert [len(one.models["2d"].networks) for one in (first, second, loaded(flat))] == [1, 1, 2]
    assert np.abs(probabilities(first, tmp_path / "0") - probabilities(second, tmp_path / "1")).max() > 1e-3


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"configurations": ["3d_fullres"]}, r"(?s)no such configuration.*only 2d.*3d_fullres.*--configurations"),
        ({"folds": ["0", "4"]}, r"(?s)no such fold.*only folds 0, 1.*folds 4 as well.*--folds"),
    ],
)
def test_what_a_model_does_not_have_is_named(flat, asked, match):
    with pytest.raises(SegpipeError, match=match):
        models.find(flat, "final", **asked)


def test_nnunets_own_folder_is_no_model_yet(tmp_path):
    path = tmp_path / "nnUNetTrainer__nnUNetPlans__2d/fold_0/checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    torch.save({"network_weights": {}, "init_args": {}}, path)
    for read in (lambda: models.find(tmp_path, "final"), lambda: predict.load([path], torch.device("cpu"), "raw")):
        with pytest.raises(SegpipeError, match=r"(?s)checkpoint_final.*network_weights.*segpipe import-nnunet"):
            read()


def test_a_folder_without_models_says_what_it_has(flat, tmp_path):
    with pytest.raises(SegpipeError, match=r"(?s)no model.*fold_0.checkpoint_final\.pth.*checkpoint_best"):
        models.find(flat, "best")
    with pytest.raises(SegpipeError, match=r"(?s)no model.*no folder"):
        models.find(tmp_path / "nowhere", "final")


def test_the_fold_of_all_cases_is_taken_where_it_is_asked_for_or_alone(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "model")
    (tmp_path / "model/2d/fold_1").rename(tmp_path / "model/2d/fold_all")
    assert list(models.find(tmp_path / "model", "final")["2d"]) == ["0"]
    assert list(models.find(tmp_path / "model", "final", folds=["all"])["2d"]) == ["all"]
    shutil.rmtree(tmp_path / "model/2d/fold_0")
    assert list(models.find(tmp_path / "model", "final")["2d"]) == ["all"]


def test_a_cascade_without_its_first_stage_is_refused(cascade, tmp_path):
    path = cascade / "3d_cascade_fullres/fold_0/checkpoint_final.pth"
    with pytest.raises(SegpipeError, match=r"(?s)stage before a cascade is missing.*3d_lowres as well"):
        models.load([path], ["3d_cascade_fullres"], torch.device("cpu"), "raw")


def test_models_of_different_classes_are_refused(cascade, flat):
    paths = [cascade / "3d_lowres/fold_0/checkpoint_final.pth", flat / "2d/fold_0/checkpoint_final.pth"]
    with pytest.raises(SegpipeError, match="models of different datasets"):
        models.load(paths, ["2d", "3d_lowres"], torch.device("cpu"), "raw")


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(IMAGES, tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def content(flat):
    return checkpoint.load(flat / "2d/fold_0/checkpoint_final.pth")


def test_cases_are_grouped_by_their_channel_numbers(folder, content):
    shutil.copy(folder / f"{CASE}_0000.nii.gz", folder / "other_case.nii.gz")
    shutil.copy(folder / f"{CASE}_0000.nii.gz", folder / f".{CASE}_0003.nii.gz")
    (folder / "notes.txt").write_text("none")
    cases = images.at([folder], content)
    assert cases.test == [CASE, "other_case"]
    assert list(cases.entry(CASE)["images"]) == [f"{CASE}_0000.nii.gz", f"{CASE}_0001.nii.gz"]
    assert cases.read_image(CASE).array.shape[0] == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["scan_0000"], {"scan": ["scan_0000"]}),
        (["scan_0041"], {"scan_0041": ["scan_0041"]}),  # in a loop over files each has its own segmentation
        (["p_0041", "p_0042"], {"p_0041": ["p_0041"], "p_0042": ["p_0042"]}),
        (["c_0001", "c_0000"], {"c": ["c_0000", "c_0001"]}),
        (["c_0041_0001", "c_0041_0000", "d"], {"c_0041": ["c_0041_0000", "c_0041_0001"], "d": ["d"]}),
    ],
)
@pytest.mark.parametrize("given", ["folder", "files"])
def test_what_a_number_at_the_end_of_a_name_means(tmp_path, content, names, expected, given):
    files = [tmp_path / f"{name}.nii.gz" for name in names]
    for file in files:
        file.touch()
    cases = images.at([tmp_path] if given == "folder" else files, content)
    assert {case: [path.name.removesuffix(".nii.gz") for path in cases.files(case)] for case in cases.test} == expected


@pytest.mark.parametrize(
    "names", [["c_0000", "c_0002"], ["c_0000", "c"], ["c_0000", "c_0001", "c_0002"], ["A/c", "B/c"], ["c", "c_0000"]]
)
def test_files_that_are_not_one_per_channel_are_named(tmp_path, content, names):
    files = [tmp_path / f"{name}.nii.gz" for name in names]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(IMAGES / f"{CASE}_0000.nii.gz", file)
    cases = images.at(files, content)
    assert cases.test == ["c"]
    shown = [str(file) if "/" in name else file.name for name, file in zip(names, files, strict=True)]
    for read in (cases.read_image, cases.identity):
        with pytest.raises(SegpipeError, match="not one file per channel") as error:
            read("c")
        found = str(error.value).split("found:    ")[1].split("\n")[0]
        assert sorted(found.split(", ")) == sorted(shown)


def test_a_link_is_called_as_it_is_and_not_as_what_it_leads_to(tmp_path, content):
    (tmp_path / "links").mkdir()
    for channel in (0, 1):
        shutil.copy(IMAGES / f"{CASE}_000{channel}.nii.gz", tmp_path / f"{channel}f3a")
        (tmp_path / f"links/c_000{channel}.nii.gz").symlink_to(tmp_path / f"{channel}f3a")
    cases = images.at(sorted((tmp_path / "links").iterdir()), content)
    assert cases.test == ["c"]
    assert len(cases.read_image("c").array) == 2


def test_all_bad_cases_are_named_and_the_others_predicted(folder, flat, tmp_path):
    first, second = (folder / f"{CASE}_000{channel}.nii.gz" for channel in (0, 1))
    shutil.copy(first, folder / "alone_0000.nii.gz")
    shutil.copy(first, folder / "broken_0000.nii.gz")
    (folder / "broken_0001.nii.gz").write_bytes(second.read_bytes()[:2000])
    for channel in (0, 2):
        shutil.copy(first, folder / f"gap_000{channel}.nii.gz")
    said = r"(?s)3 problems.*alone.*found:    1\n.*CT, MRI.*broken_0001\.nii\.gz.*gap_0000\.nii\.gz, gap_0002\.nii\.gz"
    with pytest.raises(SegpipeError, match=said):
        predict_folder(loaded(flat), folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == [f"{CASE}.nii.gz"]


def test_channels_of_different_shapes_are_refused(folder, content):
    import nibabel

    path = folder / f"{CASE}_0001.nii.gz"
    nifti = nibabel.load(path)
    nibabel.save(nifti.slicer[:, :, :10], path)
    with pytest.raises(SegpipeError, match=r"(?s)channels of different shapes.*_0001\.nii\.gz \(10, "):
        images.at([folder], content).read_image(CASE)


@pytest.mark.parametrize(
    ("scale", "shift_mm", "match"),
    [
        (1, 0.05, None),
        (1, 0.5, r"(?s)channels of different geometries.*0001\.nii\.gz by 0\.5 mm.*at most 0\.1 mm"),
        (1.01, 0, r"(?s)channels of different spacings.*0000\.nii\.gz .* x .*0001\.nii\.gz .* x "),
    ],
)
def test_channels_that_do_not_lie_on_one_grid_are_refused(folder, content, scale, shift_mm, match):
    import nibabel

    path = folder / f"{CASE}_0001.nii.gz"
    nifti = nibabel.load(path)
    affine = nifti.affine.copy()
    affine[:3, :3] *= scale
    affine[0, 3] += shift_mm
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(nifti.dataobj), affine), path)
    cases = images.at([folder], content)
    if match is None:
        assert cases.read_image(CASE).array.shape[0] == 2
    else:
        with pytest.raises(SegpipeError, match=match):
            cases.read_image(CASE)


def test_images_of_another_format_are_taken_where_there_is_one(folder, content):
    import nibabel

    for path in list(folder.iterdir()):
        nibabel.save(nibabel.load(path), folder / path.name.removesuffix(".gz"))
    assert next(iter(images.at([folder], content).entry(CASE)["images"])).endswith(".nii.gz")
    for path in folder.glob("*.gz"):
        path.unlink()
    (folder / "notes").mkdir()
    assert next(iter(images.at([folder], content).entry(CASE)["images"])).endswith("_0000.nii")
    (folder / "picture_0000.png").write_bytes(b"")
    with pytest.raises(SegpipeError, match=r"(?s)images of several formats.*\.nii, \.png"):
        images.at([folder], content)


def test_a_folder_without_images_is_refused(tmp_path, content):
    with pytest.raises(SegpipeError, match=r"(?s)no images.*nothing.*CASE_0000\.nii\.gz"):
        images.at([tmp_path], content)


def test_a_segmentation_lies_where_its_image_does(flat, tmp_path):
    segpipe(
        "predict", "--model", flat, "-i", IMAGES, "-o", tmp_path, "--folds", "1", "--device", "cpu", "--step-size", 1
    )
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == [f"{CASE}.nii.gz"]
    written, source = image.read_label(tmp_path / f"{CASE}.nii.gz"), image.read_image(IMAGES / f"{CASE}_0000.nii.gz")
    assert written.shape == source.shape
    assert np.allclose(written.affine, source.affine)


def test_a_step_of_more_than_a_patch_is_a_wrong_call(flat, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        segpipe("predict", "--model", flat, "-i", IMAGES, "-o", tmp_path, "--step-size", 1.5)
    assert stopped.value.code == 2
