"""`segpipe.predict` and `segpipe predict`: files, series, arrays; what is written, what is not repeated, what fails."""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from interop import IMAGES, of_nnunet, segpipe
from volumes import REPO

import segpipe as package
from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.evaluation.uncertainty import Disagreement
from segpipe.inference import images, memory, models, predict, softmax_file, spill
from segpipe.inference.api import Predictor
from segpipe.inference.postprocess import Rule
from segpipe.inference.predict_cases import Written

CASE = "case_004"
QUICK = {"step_size": 1.0, "mirroring": False, "device": "cpu"}
FILES = [IMAGES / f"{CASE}_000{channel}.nii.gz" for channel in (0, 1)]


@pytest.fixture(scope="module")
def predictor(flat):
    return Predictor(flat, **QUICK)


def volume():
    volumes = [image.read_image(path) for path in FILES]
    return np.concatenate([one.array for one in volumes]), volumes[0].spacing_mm


def read(path):
    return image.read_label(path).array[0]


# ---- one path for all ------------------------------------------------------------------------------------------------


def test_files_and_arrays_give_the_same(flat, predictor, tmp_path):
    found = predictor.files(IMAGES, tmp_path / "out")
    assert found == {CASE: tmp_path / f"out/{CASE}.nii.gz"}
    array, spacing_mm = volume()
    in_memory = package.predict(flat, array, spacing_mm=spacing_mm, **QUICK)
    assert np.array_equal(in_memory.segmentation, read(found[CASE]))
    assert len(np.unique(in_memory.segmentation)) > 1
    assert in_memory.probabilities is in_memory.uncertainty is None


def test_a_list_of_files_is_a_case_of_several_channels(predictor, tmp_path):
    found = predictor.files([*FILES], tmp_path / "out")
    assert np.array_equal(read(found[CASE]), read(predictor.files(IMAGES, tmp_path / "folder")[CASE]))


def test_nnunets_probabilities(cascade, tmp_path):
    """With the accurate preset, through the command and from Python."""
    segpipe("predict", "--model", cascade, "-i", IMAGES, "-o", tmp_path, "--probabilities", "--device", "cpu")
    stored = np.load(tmp_path / f"{CASE}.npz")["probabilities"]
    assert stored.dtype == np.float16
    assert np.abs(stored - of_nnunet("regions")).max() < 2e-3
    array, spacing_mm = volume()
    asked = Written("npz", "float32")
    in_memory = package.predict(cascade, array, spacing_mm=spacing_mm, written=asked, device="cpu")
    assert np.abs(in_memory.probabilities - of_nnunet("regions")).max() < 1e-3
    assert np.array_equal(in_memory.segmentation, read(tmp_path / f"{CASE}.nii.gz"))


def series(path, array, spacing_mm):
    """A DICOM series on disk, as ITK writes it."""
    whole = sitk.GetImageFromArray(array.astype(np.int16))
    whole.SetSpacing([float(edge) for edge in spacing_mm[::-1]])
    path.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(whole.GetDepth()):
        one = whole[:, :, index]
        for tag, value in {
            "0020|000e": "1.2.826.0.1.1",
            "0008|0018": f"1.2.826.0.1.1.{index + 1}",
            "0020|0032": f"0\\0\\{index * spacing_mm[0]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0008|0060": "CT",
            "0028|0030": "\\".join(str(edge) for edge in spacing_mm[1:]),
        }.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(path / f"IM{index:04d}.dcm"))
        writer.Execute(one)
    return path


def test_a_series_is_one_case(cascade, predictor, tmp_path):
    """A folder of slices as a scanner names them: a case of one channel, which this model refuses by their number."""
    array, spacing_mm = volume()
    folder = series(tmp_path / "1.2.826" / "SERIES7", np.round(array[0] * 10), spacing_mm)
    with pytest.raises(SegpipeError, match=r"(?s)SERIES7.*found:    1\n.*CT, MRI"):
        predictor.files(folder, tmp_path / "out")
    found = image.read_image(folder)
    assert found.shape == array[0].shape
    assert np.array_equal(found.array[0], np.round(array[0] * 10))
    image.write_label_like(tmp_path / "label.nii.gz", (found.array[0] > 0).astype(np.uint8), folder)
    assert nibabel.load(tmp_path / "label.nii.gz").shape == found.shape[::-1]


def test_a_folder_of_series_is_a_folder_of_cases(predictor, tmp_path):
    """Wherever the call is made."""
    array, spacing_mm = volume()
    first, second = (series(tmp_path / "all" / name, np.round(array[0] * 10), spacing_mm) for name in ("S1", "S2"))
    assert images.at([tmp_path / "all"], predictor.ensemble.content).test == ["S1", "S2"]
    assert images.at([first, second], predictor.ensemble.content).test == ["S1", "S2"]
    with pytest.raises(
        SegpipeError, match=rf"(?s)folders among several images.*found:    {tmp_path}/all\n.*one folder"
    ):
        images.at([first, tmp_path / "all"], predictor.ensemble.content)


@pytest.mark.parametrize(
    ("named", "out", "match"),
    [
        (["images"], "images", "among the images"),
        (["images"], "images/out", "among the images"),
        (["images"], "link", "among the images"),
        (
            ["images/b.nii.gz", "images/c_0000.nii.gz", "images/c_0001.nii.gz"],
            "images",
            r"overwritten[^,]*b\.nii\.gz\n",
        ),
        (["images/b.nii.gz"], "link", "overwritten"),
    ],
)
def test_no_image_is_overwritten(predictor, tmp_path, named, out, match):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for name in ("b", "c_0000", "c_0001"):
        shutil.copy(FILES[0], tmp_path / f"images/{name}.nii.gz")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SegpipeError, match=f"(?s){match}"):
        predictor.files([tmp_path / name for name in named], tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


def test_segmentations_may_lie_beside_images_of_other_names(predictor, tmp_path):
    for path in FILES:
        shutil.copy(path, tmp_path)
    found = predictor.files([tmp_path / path.name for path in FILES], tmp_path)
    assert found == {CASE: tmp_path / f"{CASE}.nii.gz"}
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in FILES)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([], "no such file or folder"),
        ([IMAGES / "nowhere.nii.gz", IMAGES / "nor_here"], r"(?s)2 problems.*nowhere.*nor_here"),
        ([FILES[0], "notes.txt"], r"(?s)images of several formats.*\.nii\.gz, notes\.txt"),
    ],
)
def test_what_cannot_be_predicted_is_said_before(predictor, tmp_path, monkeypatch, images, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(SegpipeError, match=match):
        predictor.files(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("array", "spacing_mm", "says"),
    [
        (np.zeros((1, 9, 9, 9)), (1, 1, 1), "2 channels"),
        (np.zeros((9, 9, 9)), (1, 1, 1), "2 channels"),
        (np.zeros((2, 9, 9)), (1, 1), "spacing"),
        (np.zeros((2, 9, 9, 9)), (1, 0, 1), "spacing"),
        (np.full((2, 9, 9, 9), np.nan), (1, 1, 1), "NaN"),
        (np.zeros((2, 0, 9, 9)), (1, 1, 1), "0, 9, 9"),
    ],
)
def test_arrays_that_are_no_image_of_the_model_are_refused(predictor, array, spacing_mm, says):
    with pytest.raises(SegpipeError, match=f"(?s)not an image for this model.*{says}"):
        predictor.array(array, spacing_mm)


@pytest.mark.parametrize(
    "arguments",
    [
        {"images": np.zeros((2, 9, 9, 9))},
        {"images": IMAGES},
        {"images": IMAGES, "out": "out", "spacing_mm": (1, 1, 1)},
        {"images": np.zeros((2, 9, 9, 9)), "out": "out", "spacing_mm": (1, 1, 1)},
    ],
)
def test_what_does_not_belong_together_is_refused(arguments):
    with pytest.raises(SegpipeError, match="neither files nor an array"):
        package.predict("model", **arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "quick"},
        {"checkpoint": "latest"},
        {"weights": "ema"},
        {"step_size": 0},
        {"step_size": 1.1},
        {"precision": "float32"},
        {"mirroring": [3]},
        {"mirroring": []},
        {"mirroring": 1},
        {"mirroring": "0,1"},
        {"folds": []},
        {"configurations": []},
        {"configurations": "2d"},
        {"device": "foo"},
        {"device": "meta"},
    ],
)
def test_options_that_do_not_exist_are_refused(flat, options):
    with pytest.raises(SegpipeError, match=f"where:    {next(iter(options))}\n"):
        Predictor(flat, **options)


@pytest.mark.parametrize(
    ("written", "match"),
    [
        (Written("nii"), r"(?s)Written\.probabilities.*found:    nii\n.*none, npz, nifti"),
        (Written("npz", "float64"), r"(?s)Written\.dtype.*found:    float64\n.*float16, float32"),
    ],
)
def test_what_cannot_be_written_is_refused(predictor, tmp_path, written, match):
    for call in (
        lambda: predictor.files(IMAGES, tmp_path / "out", written),
        lambda: predictor.array(*volume(), written),
    ):
        with pytest.raises(SegpipeError, match=match):
            call()


@pytest.mark.parametrize("probabilities", [["--probabilities", "nifti"], []])
def test_a_type_of_what_is_not_written_is_a_wrong_call(flat, tmp_path, capsys, probabilities):
    with pytest.raises(SystemExit) as stopped:
        segpipe("predict", "--model", flat, "-i", IMAGES, "-o", tmp_path / "out", "--dtype", "float16", *probabilities)
    assert stopped.value.code == 2
    assert "--dtype with --probabilities npz" in capsys.readouterr().err


def test_presets(flat):
    accurate = Predictor(flat, device="cpu").way
    assert (accurate.step_size, accurate.mirroring, accurate.precision) == (0.5, True, "trained")
    assert package.Predictor(flat, preset="accurate", device="cpu").way == accurate
    fast = Predictor(flat, preset="fast", device="cpu").way
    assert (fast.mirroring, fast.precision) == (False, "auto")
    assert Predictor(flat, preset="fast", mirroring=[2], step_size=0.25, device="cpu").way.step_size == 0.25
    assert Predictor(flat, precision="bf16", device="cpu").ensemble.models["2d"].dtype == torch.bfloat16


def test_mirroring_along_some_axes(flat):
    model = Predictor(flat, device="cpu").ensemble.models["2d"]
    assert model.mirror_axes(True) == (0, 1)
    assert model.mirror_axes([2]) == (1,)
    assert model.mirror_axes([0]) == ()  # no axis of a slice


def test_importing_segpipe_loads_no_torch():
    code = "import segpipe, sys; assert 'torch' not in sys.modules; segpipe.predict; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)}, check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


# ---- what is written -------------------------------------------------------------------------------------------------


def test_probabilities_as_nifti_lie_where_the_image_does(predictor, tmp_path):
    predictor.files(IMAGES, tmp_path, Written("nifti"))
    written, source = nibabel.load(tmp_path / f"{CASE}_probabilities.nii.gz"), nibabel.load(FILES[0])
    values = np.asanyarray(written.dataobj)
    assert values.dtype == np.float32
    assert values.shape[:3] == source.shape
    assert np.allclose(written.affine, source.affine)
    assert np.allclose(values.sum(-1), 1, atol=1e-5)
    assert np.array_equal(values.argmax(-1).T, read(tmp_path / f"{CASE}.nii.gz"))


def test_uncertainty_is_the_disagreement_of_the_folds(flat, tmp_path):
    array, spacing_mm = volume()
    asked = Written("npz", "float32", uncertainty=True)
    both = Predictor(flat, **QUICK).array(array, spacing_mm, asked)
    each = [
        Predictor(flat, folds=[fold], **QUICK).array(array, spacing_mm, Written("npz", "float32")) for fold in (0, 1)
    ]
    expected = Disagreement(both.segmentation.shape, len(both.probabilities), has_regions=False)
    for one in each:
        expected.add(torch.from_numpy(one.probabilities))
    assert np.allclose(both.uncertainty, expected.mutual_information().numpy(), atol=1e-4)
    assert 1e-3 < both.uncertainty.max() <= 1
    without = Predictor(flat, **QUICK).array(array, spacing_mm, Written("npz", "float32"))
    assert np.allclose(both.probabilities, without.probabilities, atol=1e-6)
    assert np.array_equal(both.segmentation, without.segmentation)


def test_uncertainty_over_configurations(cascade):
    array, spacing_mm = volume()
    names = ["3d_lowres", "3d_cascade_fullres"]
    asked = Written("npz", "float32", uncertainty=True)
    both = Predictor(cascade, configurations=names, **QUICK).array(array, spacing_mm, asked)
    expected = Disagreement(both.segmentation.shape, len(both.probabilities), has_regions=True)
    for name in names:
        one = Predictor(cascade, configurations=[name], **QUICK).array(array, spacing_mm, Written("npz", "float32"))
        expected.add(torch.from_numpy(one.probabilities))
    assert np.allclose(both.uncertainty, expected.mutual_information().numpy(), atol=1e-4)
    assert both.uncertainty.max() > 1e-3


def test_one_model_has_nobody_to_disagree_with(cascade, tmp_path):
    with pytest.raises(SegpipeError, match="no uncertainty without several models"):
        Predictor(cascade, **QUICK).files(IMAGES, tmp_path, Written(uncertainty=True))
    with pytest.raises(SegpipeError, match="no uncertainty without several models"):
        Predictor(cascade, **QUICK).array(*volume(), Written(uncertainty=True))


def test_uncertainty_is_written_on_the_grid_of_the_image(predictor, tmp_path):
    predictor.files(IMAGES, tmp_path, Written(uncertainty=True))
    written = nibabel.load(tmp_path / f"{CASE}_uncertainty.nii.gz")
    assert written.shape == nibabel.load(FILES[0]).shape
    assert 0 <= np.asanyarray(written.dataobj).min() < np.asanyarray(written.dataobj).max() <= 1


def test_a_temperature_changes_the_probabilities_and_not_the_segmentation(predictor, tmp_path):
    asked = {name: Written("npz", "float32", temperature=value) for name, value in (("plain", 1.0), ("mild", 3.0))}
    for name, one in asked.items():
        predictor.files(IMAGES, tmp_path / name, one)
    plain, mild = (softmax_file.load(tmp_path / f"{name}/{CASE}.npz") for name in asked)
    powers = plain ** (1 / 3)
    assert np.allclose(mild, powers / powers.sum(0), atol=1e-4)
    assert np.abs(plain - mild).max() > 0.05
    label_maps = [read(tmp_path / f"{name}/{CASE}.nii.gz") for name in asked]
    assert np.array_equal(*label_maps)


def test_rules_are_applied_to_what_is_written(predictor, tmp_path):
    predictor.files(IMAGES, tmp_path / "plain")
    removing = Written(rules=(Rule(None, minimum_voxels=10**9),))
    predictor.files(IMAGES, tmp_path / "cleaned", removing)
    assert read(tmp_path / f"plain/{CASE}.nii.gz").any()
    assert not read(tmp_path / f"cleaned/{CASE}.nii.gz").any()
    assert not predictor.array(*volume(), removing).segmentation.any()


def test_what_does_not_fit_into_memory_goes_through_a_file(predictor, cascade, tmp_path, monkeypatch):
    expected = predictor.array(*volume(), Written("npz", "float32"))
    both = Predictor(cascade, configurations=["3d_lowres", "3d_cascade_fullres"], **QUICK)
    of_both = both.array(*volume())
    made = []
    monkeypatch.setattr(spill, "SHARE", 10**12)
    make = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **named: made.append(1) or make(**named))
    found = predictor.array(*volume(), Written("npz", "float32"))
    assert np.array_equal(found.probabilities, expected.probabilities)
    assert np.array_equal(both.array(*volume()).segmentation, of_both.segmentation)
    assert len(made) == 2
    predictor.files(IMAGES, tmp_path / "out", Written("npz"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == sorted(
        [".segpipe", "labels.json", f"{CASE}.nii.gz", f"{CASE}.npz"]
    )


# ---- what is not repeated, what fails --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three cases."""
    (tmp_path / "images").mkdir()
    for case in ("a", "b", "c"):
        for channel, path in enumerate(FILES):
            shutil.copy(path, tmp_path / f"images/{case}_000{channel}.nii.gz")
    return tmp_path / "images"


@pytest.fixture
def counted(monkeypatch):
    """What is predicted, one entry per case."""
    cases, original = [], predict.run

    def counting(model, prepared, *rest, **named):
        cases.append(prepared.grid.shape)
        return original(model, prepared, *rest, **named)

    monkeypatch.setattr(predict, "run", counting)
    return cases


def test_a_finished_case_is_predicted_again_only_when_something_changed(predictor, flat, folder, tmp_path, counted):
    out = tmp_path / "out"

    def predicted(written=None, by=predictor):
        counted.clear()
        by.files(folder, out, written)
        return len(counted)

    assert [predicted(), predicted()] == [3, 0]
    (out / "b.nii.gz").unlink()
    assert [predicted(), predicted()] == [1, 0]
    shutil.copy(folder / "c_0001.nii.gz", folder / "c_0000.nii.gz")
    assert [predicted(), predicted()] == [1, 0]
    assert [predicted(Written("npz")), predicted(Written("npz")), predicted()] == [3, 0, 3]
    assert predicted(by=Predictor(flat, **{**QUICK, "step_size": 0.5})) == 3
    assert predicted(by=Predictor(flat, **QUICK, folds=[1])) == 3
    assert predicted(by=Predictor(flat, **QUICK, folds=[1], precision="bf16")) == 3


def test_an_interrupted_call_goes_on(predictor, folder, tmp_path, monkeypatch):
    done, original = [], predict.run

    def once(*rest, **named):
        if done == [1]:
            raise KeyboardInterrupt
        done.append(1)
        return original(*rest, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict, "run", once)
        predictor.files(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]
    monkeypatch.setattr(predict, "run", lambda *rest, **named: done.append(2) or original(*rest, **named))
    predictor.files(folder, tmp_path / "out")
    assert done == [1, 2, 2]


def test_a_failed_case_is_told_and_the_others_go_on(flat, folder, tmp_path):
    (folder / "b_0001.nii.gz").write_bytes(b"damaged")
    code = "import sys; from segpipe.cli.main import main; main(sys.argv[1:])"
    arguments = [
        "predict",
        "--model",
        flat,
        "-i",
        folder,
        "-o",
        tmp_path / "out",
        "--preset",
        "fast",
        "--device",
        "cpu",
    ]
    call = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        call, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "b_0001.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/.segpipe").glob("*.json")]
    assert len(records) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_case_that_runs_out_of_memory_is_one_that_failed(predictor, folder, tmp_path, monkeypatch, error):
    original, calls = predict.run, []

    def second(*rest, **named):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(*rest, **named)

    monkeypatch.setattr(predict, "run", second)
    with pytest.raises(SegpipeError, match=r"memory is full\n +where: +b\n(.*\n)*.*cure: "):
        predictor.files(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("another one")])
def test_networks_that_the_memory_does_not_hold_are_told(monkeypatch, flat, error):
    monkeypatch.setattr(models, "load", lambda *_: (_ for _ in ()).throw(error))
    is_told = isinstance(error, torch.OutOfMemoryError)
    with pytest.raises(SegpipeError if is_told else RuntimeError, match="device's memory" if is_told else "another"):
        Predictor(flat)


def test_a_case_larger_than_the_memory_is_refused_before_it_is_predicted(predictor, tmp_path, monkeypatch, counted):
    needed = memory.needed_bytes(predictor.ensemble, image.read_image(FILES[0]))
    assert 1e6 < needed < 1e9
    monkeypatch.setattr(memory.machine, "available_bytes", lambda: 10**5)
    with pytest.raises(
        SegpipeError, match=r"(?s)a case larger than the memory.*case_004: \(21, 46, 42\).*0\.0 GB free"
    ):
        predictor.files(IMAGES, tmp_path / "out")
    assert not counted


@pytest.mark.parametrize("n_cases", [1, 3])
def test_a_full_disk_ends_the_call(predictor, folder, tmp_path, monkeypatch, n_cases):
    def full(*rest):
        raise OSError("disk full")

    monkeypatch.setattr(image, "write_label_like", full)
    with pytest.raises(OSError, match="disk full"):
        predictor.files(sorted(folder.iterdir())[: 2 * n_cases], tmp_path / "out")
    assert not list((tmp_path / "out/.segpipe").glob("*.json"))


def test_a_case_that_does_not_fit_beside_another_one_is_read_again_alone(predictor, folder, tmp_path, monkeypatch):
    """It was read ahead, while the one before was predicted and written."""
    original, refused = memory.require, []

    def require(case, *rest):
        if case == "b" and not refused:
            refused.append(case)
            raise memory.TooLarge("beside another one")
        original(case, *rest)

    monkeypatch.setattr(memory, "require", require)
    monkeypatch.setattr(memory, "fits_twice", lambda *_: True)
    predictor.files(folder, tmp_path / "out")
    assert refused == ["b"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_files_of_another_call_do_not_stay_beside_a_new_segmentation(flat, predictor, tmp_path):
    predictor.files(IMAGES, tmp_path, Written("npz", uncertainty=True))
    Predictor(flat, **QUICK, folds=[1]).files(IMAGES, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [f"{CASE}.nii.gz", "labels.json"]


def test_an_output_that_was_changed_is_made_again(predictor, tmp_path, counted):
    (path,) = predictor.files(IMAGES, tmp_path).values()
    written = path.read_bytes()
    path.write_bytes(b"something else")
    (tmp_path / f".segpipe/{CASE}.json").chmod(0o644)
    predictor.files(IMAGES, tmp_path)
    assert path.read_bytes() == written
    (tmp_path / f".segpipe/{CASE}.json").write_text("")
    predictor.files(IMAGES, tmp_path)
    assert len(counted) == 3


def test_a_file_that_the_system_does_not_give_is_one_case_that_failed(predictor, folder, tmp_path):
    (folder / "b_0000.nii.gz").unlink()
    (folder / "b_0000.nii.gz").symlink_to("nowhere.nii.gz")
    with pytest.raises(SegpipeError, match="b"):
        predictor.files(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_a_case_that_cannot_be_written_is_told_with_those_before(predictor, folder, tmp_path, monkeypatch):
    (folder / "a_0001.nii.gz").write_bytes(b"damaged")
    original = image.write_label_like

    def write(path, *rest):
        if path.name.startswith("b"):
            raise SegpipeError("b is in the way")
        original(path, *rest)

    monkeypatch.setattr(image, "write_label_like", write)
    with pytest.raises(SegpipeError, match=r"(?s)2 problems.*a_0001.*b is in the way"):
        predictor.files(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["c.nii.gz"]


def test_an_error_that_nobody_expects_ends_the_call(predictor, folder, tmp_path, monkeypatch):
    def broken(*rest, **named):
        raise ZeroDivisionError

    monkeypatch.setattr(predict, "run", broken)
    with pytest.raises(ZeroDivisionError):
        predictor.files(folder, tmp_path / "out")
