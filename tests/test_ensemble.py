"""The configurations of one fold together: mean of softmax, one member taken over, strangers refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import params
from validations import IDENTITY, member, random_softmax

from segpipe import digest
from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.evaluation import summary
from segpipe.evaluation.metrics import case_metrics
from segpipe.inference import softmax_file
from segpipe.inference.ensemble import ensemble

pytest_plugins = ["phantom_fixtures"]

SHOWN = ("digest", "epoch", "settings", "training", "precision", "foreground_mean", "mean")
OUT = Path("results/fold_0/summary.json")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Relative output paths, as the workflow's."""
    monkeypatch.chdir(tmp_path)


def case_ids(prepared):
    return prepared.cases.training[:2]


def read_segmentation(case):
    return image.read_label(OUT.parent / f"segmentations/{case}.nii.gz").array[0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_softmax_of_several_members_is_averaged(prepared, dtype):
    """Each with the same weight, whatever the precision of its file."""
    names = ("2d", "3d_fullres", "3d_lowres")
    folders = [member(prepared, name, seed, dtype) for seed, name in enumerate(names)]
    ensemble(prepared.cases, folders, OUT, params())
    content = json.loads(OUT.read_text(), parse_constant=pytest.fail)
    rows = {Path(row["prediction_file"]).name: row for row in content["metric_per_case"]}
    assert list(rows) == [f"{case}.nii.gz" for case in case_ids(prepared)]
    for case in case_ids(prepared):
        mean = np.mean([random_softmax(prepared, case, seed) for seed in range(3)], axis=0)
        top = np.sort(mean, 0)
        clear = top[-1] - top[-2] > 2e-3
        result = read_segmentation(case)
        assert np.array_equal(result[clear], mean.argmax(0)[clear])
        reference, spacing = prepared.cases.read_label(case), prepared.cases.entry(case)["spacing_mm"]
        assert rows[f"{case}.nii.gz"]["metrics"] == case_metrics(
            result, reference, prepared.cases.labels, None, spacing, params().evaluate
        )
        assert rows[f"{case}.nii.gz"]["prediction_file"] == f"results/fold_0/segmentations/{case}.nii.gz"
    assert content["foreground_mean"] == summary.tables(content["metric_per_case"])["foreground_mean"]


def test_the_summary_lists_every_members_table(prepared):
    folders = [member(prepared, name, seed) for seed, name in enumerate(("2d", "3d_fullres"))]
    ensemble(prepared.cases, folders, OUT, params())
    content = digest.read_json(OUT)
    assert (content["fold"], content["checkpoint"]) == ("0", "final")
    assert set(content["members"]) == {"2d", "3d_fullres"}
    for folder in folders:
        alone = digest.read_json(folder / "summary.json")
        listed = content["members"][alone["configuration"]]
        assert all(listed[key] == alone[key] for key in SHOWN)
    # the identity names all members' trainings: it changes with any of them
    first = content["identity"]
    ensemble(prepared.cases, [folders[0], member(prepared, "3d_fullres", 1, training="other")], OUT, params())
    second = digest.read_json(OUT)["identity"]
    assert first["training"] != second["training"]
    assert (
        {**first, "training": ""}
        == {**second, "training": ""}
        == {**IDENTITY, "training": "", "evaluate": first["evaluate"]}
    )


def test_one_member_is_taken_over_as_it_is(prepared):
    folder = member(prepared, "3d_fullres", 5)
    for path in (folder / "softmax").iterdir():
        path.unlink()  # not needed
    ensemble(prepared.cases, [folder], OUT, params())
    content, alone = digest.read_json(OUT), digest.read_json(folder / "summary.json")
    assert content["foreground_mean"] == alone["foreground_mean"]
    assert [row["metrics"] for row in content["metric_per_case"]] == [
        row["metrics"] for row in alone["metric_per_case"]
    ]
    for case in case_ids(prepared):
        name = f"segmentations/{case}.nii.gz"
        assert (OUT.parent / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("key", ["dataset", "checkpoint", "validate"])
def test_members_of_other_data_or_settings_are_refused(prepared, key):
    folders = [member(prepared, "2d", 0), member(prepared, "3d_fullres", 1, **{key: "other"})]
    with pytest.raises(SegpipeError, match="different data or settings") as error:
        ensemble(prepared.cases, folders, OUT, params())
    assert all(str(folder) in str(error.value) for folder in folders)
    assert not OUT.exists()


def test_members_of_other_cases_or_folds_are_refused(prepared):
    first = member(prepared, "2d", 0)
    for other in ({"fold": "1"}, {"cases": case_ids(prepared)[:1]}):
        with pytest.raises(SegpipeError, match="different data or settings"):
            ensemble(prepared.cases, [first, member(prepared, "3d_fullres", 1, **other)], OUT, params())


def test_softmax_of_different_grids_is_refused(prepared):
    folders = [member(prepared, "2d", 0), member(prepared, "3d_fullres", 1)]
    case = case_ids(prepared)[1]
    path = folders[1] / f"softmax/{case}.npz"
    softmax_file.save(path, softmax_file.load(path)[:, 1:], "float32")
    with pytest.raises(SegpipeError, match="another grid or number of classes") as error:
        ensemble(prepared.cases, folders, OUT, params())
    assert f"softmax/{case}.npz" in str(error.value)
    assert not OUT.exists()
    assert not (OUT.parent / "segmentations").exists()


def test_a_missing_softmax_is_an_error(prepared):
    folders = [member(prepared, "2d", 0), member(prepared, "3d_fullres", 1)]
    (folders[1] / f"softmax/{case_ids(prepared)[0]}.npz").unlink()
    with pytest.raises(SegpipeError, match="No such file"):
        ensemble(prepared.cases, folders, OUT, params())
    assert not OUT.exists()


def test_members_have_the_weights_of_the_settings(prepared):
    folders = [member(prepared, name, seed) for seed, name in enumerate(("2d", "3d_fullres"))]
    weights = {"2d": 1, "3d_fullres": 3}
    settings = params(configurations=["2d", "3d_fullres"], ensemble__weights=weights)
    ensemble(prepared.cases, folders, OUT, settings)
    content = digest.read_json(OUT)
    assert {name: listed["weight"] for name, listed in content["members"].items()} == weights
    for case in case_ids(prepared):
        mean = (random_softmax(prepared, case, 0) + 3 * random_softmax(prepared, case, 1)) / 4
        top = np.sort(mean, 0)
        clear = top[-1] - top[-2] > 1e-5
        assert np.array_equal(read_segmentation(case)[clear], mean.argmax(0)[clear])
    ensemble(prepared.cases, folders, OUT, params())
    assert digest.read_json(OUT)["identity"]["training"] != content["identity"]["training"]


def test_weights_that_leave_out_a_configuration_are_refused():
    with pytest.raises(ValueError, match=r"ensemble.weights: 2d; give one for each configuration: 2d, 3d_fullres"):
        params(configurations=["2d", "3d_fullres"], ensemble__weights={"2d": 1})
