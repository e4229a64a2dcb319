"""Validation of one fold: what is predicted and scored, and what survives an interruption."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from predicted import on_file_grid, whole_logits
from tiny import params, prepare

from segpipe import digest
from segpipe.data import image, splits
from segpipe.errors import SegpipeError
from segpipe.evaluation.metrics import case_metrics
from segpipe.inference import predict, softmax_file, validation
from segpipe.params import section
from segpipe.training import checkpoint, job
from segpipe.training.network import PlainConvUNet

pytest_plugins = ["phantom_fixtures"]


@pytest.fixture
def _here(tmp_path, monkeypatch):
    """Relative output paths, as the workflow's."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def validated(prepared, trained, tmp_path_factory):
    """Fold 0, validated with its final checkpoint. Only for tests that change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("validated"))
        out = Path("fold_0/validation_final")
        validate(prepared, trained, out)
        return out.resolve()


def validate(prepared, trained, out, kind="final", model=None, **changes):
    model = model or trained / f"fold_0/checkpoint_{kind}.pth"
    validation.validate(prepared.store, prepared.splits, "0", model, out, params(**changes))


def val_cases(prepared):
    return splits.read(prepared.splits, "0")["val"]


def count_predictions(monkeypatch, stop_at=None):
    """The shapes of predicted cases; the n-th prediction is interrupted."""
    predicted, original = [], predict.run

    def counting(model, prepared, *rest, **named):
        if len(predicted) == stop_at:
            raise KeyboardInterrupt
        predicted.append(prepared.grid.shape)
        return original(model, prepared, *rest, **named)

    monkeypatch.setattr(predict, "run", counting)
    return predicted


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- results ---------------------------------------------------------------------------------------------------------


def test_every_validation_case_is_predicted_by_the_checkpoint(prepared, trained, validated):
    """Softmax and segmentation, recomputed from the checkpoint's own content."""
    content = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    network = PlainConvUNet(1, 4, prepared.store.planned).eval()
    network.load_state_dict(content["network"])
    cases = val_cases(prepared)
    assert len(cases) == 3
    for folder, ending in (("segmentations", ".nii.gz"), ("softmax", ".npz")):
        assert sorted(path.name for path in (validated / folder).iterdir()) == [f"{case}{ending}" for case in cases]
    for case in cases:
        stored = prepared.store.read(case)
        logits = whole_logits([network], torch.from_numpy(stored.image), [16] * 3, (), 1.0, torch.float32)
        expected = on_file_grid(logits.numpy(), stored.grid, prepared.cases.labels)
        assert np.allclose(softmax_file.load(validated / f"softmax/{case}.npz"), expected, atol=1e-3)
        segmentation = image.read_label(validated / f"segmentations/{case}.nii.gz")
        assert np.array_equal(segmentation.array[0], expected.argmax(0))


def test_segmentations_lie_on_the_images(prepared, validated):
    for case in val_cases(prepared):
        source = nibabel.load(prepared.cases.image_path(case))
        result = nibabel.load(validated / f"segmentations/{case}.nii.gz")
        assert result.shape == source.shape
        assert np.array_equal(result.affine, source.affine)
        assert np.asanyarray(result.dataobj).dtype == np.uint8


def test_the_summary_scores_these_files(prepared, validated):
    content = json.loads((validated / "summary.json").read_text(), parse_constant=pytest.fail)
    rows = {Path(row["prediction_file"]).name: row for row in content["metric_per_case"]}
    assert list(rows) == [f"{case}.nii.gz" for case in val_cases(prepared)]
    for case in val_cases(prepared):
        row = rows[f"{case}.nii.gz"]
        assert row["prediction_file"] == f"fold_0/validation_final/segmentations/{case}.nii.gz"
        assert row["reference_file"] == f"labelsTr/{case}.nii.gz"
        predicted = image.read_label(validated / f"segmentations/{case}.nii.gz").array[0]
        reference = image.read_label(prepared.cases.label_path(case))
        of_case = prepared.cases.labels, None, reference.spacing_mm, params().evaluate
        expected = case_metrics(predicted, reference.array[0], *of_case)
        assert row["metrics"] == expected
    dice = [row["metrics"]["1"]["Dice"] for row in rows.values()]
    assert content["mean"]["1"]["Dice"] == pytest.approx(np.mean(dice))


def test_the_summary_says_what_it_was_made_of(prepared, trained, validated):
    content = digest.read_json(validated / "summary.json")
    model = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    assert (content["fold"], content["configuration"], content["checkpoint"]) == ("0", "3d_fullres", "final")
    assert content["epoch"] == 3
    assert content["digest"] == model["digest"]
    assert content["identity"]["training"] == model["settings_digest"]
    assert content["labels"] == prepared.cases.content["labels"]
    assert content["settings"]["train"] == model["settings"]
    assert content["settings"]["validate"] == section(params(), "validate")
    assert content["settings"]["validate"]["weights"] == "raw"
    assert content["training"] == model["facts"]
    assert content["training"]["epochs"] == 3
    # no times, hosts or absolute paths
    text = (validated / "summary.json").read_text()
    assert str(prepared.root) not in text
    assert str(validated) not in text


@pytest.mark.usefixtures("_here")
def test_the_same_validation_gives_the_same_files(prepared, trained, validated):
    out = Path("fold_0/validation_final")
    validate(prepared, trained, out)
    assert files_of(out) == files_of(validated)
    assert not list(Path("fold_0/state/validation_final").glob("*/"))  # nothing is left in the undeclared folder


@pytest.mark.usefixtures("_here")
def test_best_and_final_have_folders_of_their_own(prepared, trained, validated):
    validate(prepared, trained, Path("fold_0/validation_final"))
    validate(prepared, trained, Path("fold_0/validation_best"), "best")
    assert files_of(Path("fold_0/validation_final")) == files_of(validated)
    best = digest.read_json(Path("fold_0/validation_best/summary.json"))
    assert best["checkpoint"] == best["identity"]["checkpoint"] == "best"
    assert best["epoch"] == checkpoint.load(trained / "fold_0/checkpoint_best.pth")["epoch"] < 3
    assert files_of(Path("fold_0/validation_best/softmax")) != files_of(validated / "softmax")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("checkpoint_best.pth", "validation_final"),
        ("checkpoint_final.pth", "validation_best"),
        ("latest.pth", "validation_final"),
        ("best.pth", "validation_best"),
    ],
)
def test_the_workflows_folders_take_no_other_checkpoint(prepared, trained, source, folder):
    with pytest.raises(SegpipeError, match=rf"(?s)belongs to another.*{folder}.*{source}.*another name"):
        validate(prepared, trained, Path(f"fold_0/{folder}"), model=trained / "fold_0" / source)
    assert not Path("fold_0").exists()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("source", "name"), [("latest.pth", "latest"), ("checkpoint_best.pth", "best")])
def test_the_summary_names_the_checkpoint_whatever_the_folder(prepared, trained, tmp_path, source, name):
    shutil.copy(trained / "fold_0/checkpoint_best.pth", tmp_path / source)
    validate(prepared, trained, Path("fold_0/trial"), model=tmp_path / source)
    content = digest.read_json(Path("fold_0/trial/summary.json"))
    assert content["checkpoint"] == content["identity"]["checkpoint"] == name


AVERAGED = {"validate__weights": "averaged", "train__ema": {"decay": 0.9, "ramp_steps": 0}}


@pytest.mark.usefixtures("_here")
def test_averaged_weights_are_validated_where_the_settings_say_so(prepared, trained, validated, tmp_path):
    """A checkpoint whose averaged weights are those of another training."""
    content, other = (checkpoint.load(trained / f"fold_{fold}/checkpoint_final.pth") for fold in (0, 1))
    both = tmp_path / "both/checkpoint_final.pth"
    checkpoint.save(both, {**content, "averaged": other["network"]})
    raw, averaged, expected = (Path(f"{name}/trial") for name in ("raw", "averaged", "expected"))
    validate(prepared, trained, raw, model=both)
    validate(prepared, trained, averaged, model=both, **AVERAGED)
    validate(prepared, trained, expected, model=trained / "fold_1/checkpoint_final.pth")
    assert files_of(raw / "softmax") == files_of(validated / "softmax")
    assert files_of(averaged / "softmax") == files_of(expected / "softmax") != files_of(raw / "softmax")
    summaries = [digest.read_json(folder / "summary.json") for folder in (raw, averaged)]
    assert [one["settings"]["validate"]["weights"] for one in summaries] == ["raw", "averaged"]
    assert summaries[0]["identity"]["validate"] != summaries[1]["identity"]["validate"]


@pytest.mark.usefixtures("_here")
def test_averaged_weights_that_a_training_has_not_kept_are_refused(prepared, trained):
    with pytest.raises(SegpipeError, match=r"(?s)no averaged weights.*checkpoint_final\.pth.*validate\.weights: raw"):
        validate(prepared, trained, Path("fold_0/validation_final"), **AVERAGED)
    assert not Path("fold_0/validation_final").exists()


@pytest.mark.usefixtures("_here")
def test_cases_done_with_raw_weights_are_not_taken_for_averaged_ones(prepared, trained, tmp_path, monkeypatch):
    content = checkpoint.load(trained / "fold_0/checkpoint_final.pth")
    checkpoint.save(tmp_path / "both.pth", {**content, "averaged": content["network"]})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_predictions(patch, stop_at=2)
        validate(prepared, trained, Path("fold_0/trial"), model=tmp_path / "both.pth")
    again = count_predictions(monkeypatch)
    validate(prepared, trained, Path("fold_0/trial"), model=tmp_path / "both.pth", **AVERAGED)
    assert len(again) == 3


@pytest.mark.usefixtures("_here")
def test_precision_of_the_saved_softmax(prepared, trained):
    validate(prepared, trained, Path("fold_0/validation_final"), validate__softmax_dtype="float32")
    case = val_cases(prepared)[0]
    assert softmax_file.load(Path(f"fold_0/validation_final/softmax/{case}.npz")).dtype == np.float32


# ---- a checkpoint that is replaced meanwhile -------------------------------------------------------------------------


@pytest.mark.usefixtures("_here")
def test_a_checkpoint_that_is_replaced_later_changes_nothing(prepared, trained, validated, tmp_path, monkeypatch):
    """The network is read once: all cases, and what the summary says of it, are of one version."""
    model, load = tmp_path / "checkpoint_final.pth", predict.load
    shutil.copy(trained / "fold_0/checkpoint_final.pth", model)

    def replacing(*arguments):
        loaded = load(*arguments)
        digest.copy(trained / "fold_0/checkpoint_best.pth", model)
        return loaded

    monkeypatch.setattr(predict, "load", replacing)
    out = Path("fold_0/validation_final")
    validate(prepared, trained, out, model=model)
    assert files_of(out) == files_of(validated)
    validate(prepared, trained, out, model=model)  # the new one: not taken for done
    assert digest.read_json(out / "summary.json")["epoch"] < 3


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_that_is_replaced_while_it_is_read(prepared, trained, tmp_path, monkeypatch, when):
    """What the summary says of the file is of the version that the network comes from: the new one, read again."""
    model, new = tmp_path / "latest.pth", trained / "fold_0/checkpoint_best.pth"
    shutil.copy(trained / "fold_0/checkpoint_final.pth", model)
    load, reads = checkpoint.load, []

    def replacing(path, *rest):
        reads.append(path)
        if when == "before" and len(reads) == 1:
            digest.copy(new, model)
        content = load(path, *rest)
        if when == "after" and len(reads) == 1:
            digest.copy(new, model)
        return content

    monkeypatch.setattr(checkpoint, "load", replacing)
    validate(prepared, trained, Path("fold_0/trial"), model=model)
    monkeypatch.setattr(checkpoint, "load", load)
    validate(prepared, trained, Path("fold_0/expected"), model=new)
    one, two = (digest.read_json(Path(f"fold_0/{name}/summary.json")) for name in ("trial", "expected"))
    assert one["validation_digest"] == two["validation_digest"]
    assert one["epoch"] == two["epoch"] < 3
    assert files_of(Path("fold_0/trial/softmax")) == files_of(Path("fold_0/expected/softmax"))


@pytest.mark.usefixtures("_here")
def test_what_is_done_is_not_done_again(prepared, trained, validated, monkeypatch):
    out = Path("fold_0/validation_final")
    shutil.copytree(validated, out)
    predicted = count_predictions(monkeypatch)
    validate(prepared, trained, out)
    assert predicted == []
    assert files_of(out) == files_of(validated)


# ---- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interrupted_validation_goes_on_where_it_stopped(prepared, trained, validated, monkeypatch, finished):
    out = Path("fold_0/validation_final")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        first = count_predictions(patch, stop_at=finished)
        validate(prepared, trained, out)
    assert len(first) == finished
    assert not out.exists()
    second = count_predictions(monkeypatch)
    validate(prepared, trained, out)
    assert len(second) == 3 - finished
    assert files_of(out) == files_of(validated)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("changes", [{"kind": "best"}, {"validate__step_size": 0.5}, {"validate__mirroring": True}])
def test_cases_done_with_another_model_or_way_are_not_taken_over(prepared, trained, monkeypatch, changes):
    out = Path("fold_0/validation_of_either")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_predictions(patch, stop_at=2)
        validate(prepared, trained, out)
    again = count_predictions(monkeypatch)
    validate(prepared, trained, out, **changes)
    assert len(again) == 3
    assert not list(Path("fold_0/state/validation_of_either").glob("*/"))  # what was unfinished has no use any more


@pytest.mark.usefixtures("_here")
def test_an_interruption_while_the_folders_are_assembled(prepared, trained, validated, monkeypatch):
    out = Path("fold_0/validation_final")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digest, "write_json", interrupting(digest.write_json, "summary.json"))
        validate(prepared, trained, out)
    assert not (out / "summary.json").exists()
    validate(prepared, trained, out)
    assert files_of(out) == files_of(validated)


def interrupting(write, name):
    def stop(path, value):
        if path.name == name:
            raise KeyboardInterrupt
        write(path, value)

    return stop


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("part", ["segmentations", "softmax", "metrics"])
def test_a_missing_case_is_an_error_and_no_smaller_mean(prepared, trained, monkeypatch, part):
    missing, write = val_cases(prepared)[1], validation._Validation.write

    def forgetful(self, case, *predicted):
        write(self, case, *predicted)
        if case == missing:
            self.paths(case)[["segmentations", "softmax", "metrics"].index(part)].unlink()

    monkeypatch.setattr(validation._Validation, "write", forgetful)
    with pytest.raises(FileNotFoundError, match=missing):
        validate(prepared, trained, Path("fold_0/validation_final"))
    assert not Path("fold_0/validation_final/summary.json").exists()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_error_while_writing_a_case_stops_the_validation(prepared, trained, monkeypatch, number):
    failing, save = val_cases(prepared)[number], softmax_file.save

    def full(path, *rest):
        if path.stem == failing:
            raise OSError("disk full")
        save(path, *rest)

    monkeypatch.setattr(softmax_file, "save", full)
    with pytest.raises(OSError, match="disk full"):
        validate(prepared, trained, Path("fold_0/validation_final"))
    assert not Path("fold_0/validation_final").exists()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("error", "said", "cure"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB"), "the device's memory is full", "nvidia-smi"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "the memory is full",
            "a machine with more memory",
        ),
    ],
)
def test_a_validation_that_runs_out_of_memory_says_what_to_do(prepared, trained, monkeypatch, error, said, cure):
    monkeypatch.setattr(predict, "run", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(SegpipeError, match=rf"{said}\n.*validation_final of 3d_fullres fold 0\n(.*\n)*.*{cure}"):
        validate(prepared, trained, Path("fold_0/validation_final"))


@pytest.mark.usefixtures("_here")
def test_files_of_earlier_validations_do_not_stay(prepared, trained, validated):
    out = Path("fold_0/validation_final")
    shutil.copytree(validated, out)
    shutil.copy(out / f"segmentations/{val_cases(prepared)[0]}.nii.gz", out / "segmentations/removed_case.nii.gz")
    (out / "softmax/removed_case.npz").write_bytes(b"old")
    validate(prepared, trained, out)
    assert files_of(out) == files_of(validated)


@pytest.mark.usefixtures("_here")
def test_a_2d_configuration_trains_and_validates(prepared, tmp_path):
    """Slices of all cases, at a spacing of their own; the result is a volume all the same."""
    overrides = {"spacing_mm": [3.0, 3.0], "patch_size": [16, 12], "batch_size": 3, "features_base": 4}
    settings = params(plan__overrides=overrides, configurations=["2d"], train__epochs=1, validate__mirroring=True)
    shutil.copytree(prepared.cases.root, tmp_path / settings.dataset)
    flat = prepare(tmp_path, settings, "2d")
    assert flat.store.planned.patch_size == [16, 12]
    job.train(flat.store, flat.splits, "1", tmp_path / "fold_1", settings)
    out, model = Path("fold_1/validation_final"), tmp_path / "fold_1/checkpoint_final.pth"
    validation.validate(flat.store, flat.splits, "1", model, out, settings)
    cases = splits.read(flat.splits, "1")["val"]
    for case in cases:
        softmax = softmax_file.load(out / f"softmax/{case}.npz")
        assert softmax.shape == (4, *flat.cases.read_label(case).shape)
        assert np.allclose(softmax.astype(np.float32).sum(0), 1, atol=3e-3)
    assert len(digest.read_json(out / "summary.json")["metric_per_case"]) == len(cases) == 2
