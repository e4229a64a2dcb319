"""The rule `calibrate` on validation folders: its numbers against those over all voxels, its folds, what it refuses."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import labels_of, params
from validations import member, random_softmax

from segpipe import digest
from segpipe.cli import scripts
from segpipe.errors import SegpipeError
from segpipe.evaluation import calibration, voxel_sample
from segpipe.inference import softmax_file
from segpipe.inference.calibrate import calibrate, temperature

pytest_plugins = ["phantom_fixtures"]

OUT = Path("results/crossval/calibration.json")
ALL = 10**9  # voxels: more than there are
DOMAINS = ("near", "all")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Relative output paths, as the workflow's."""
    monkeypatch.chdir(tmp_path)


def folds_of(prepared, names=("3d_fullres",), near=(1.5, 3.0), dtype="float32", **identity):
    """Two folds of a case each; the second is segmented better."""
    ids = prepared.cases.training
    return [
        member(prepared, name, 10 * seed + fold, dtype, ids[fold : fold + 1], str(fold), near[fold], **identity)
        for seed, name in enumerate(names)
        for fold in range(2)
    ]


def run(prepared, folders, voxels=ALL, cases=None, **changes):
    calibrate(cases or prepared.cases, folders, OUT, params(calibrate__voxels=voxels, **changes))
    return digest.read_json(OUT)


def all_voxels(prepared, fold, near=(1.5, 3.0)):
    """Of a fold of `folds_of` every voxel, without any sampling."""
    return every_voxel(prepared, fold, random_softmax(prepared, prepared.cases.training[fold], fold, near[fold]))


def every_voxel(prepared, fold, softmax):
    label = prepared.cases.read_label(prepared.cases.training[fold]).reshape(-1)
    about = np.ones(label.size), np.ones(label.size, bool), prepared.cases.labels, None
    return voxel_sample.of_voxels(softmax.reshape(4, -1).astype(np.float32), label, *about)


def test_of_all_voxels_the_numbers_are_exact(prepared):
    content = run(prepared, folds_of(prepared), calibrate__near_mm=1000.0)
    only = content["calibrations"][0]
    samples = [all_voxels(prepared, fold) for fold in range(2)]
    whole = voxel_sample.joined(samples)
    assert only["configurations"] == ["3d_fullres"]
    assert only["temperature"] == pytest.approx(calibration.fit_temperature(whole), rel=1e-6)
    expected = calibration.scores(whole, 15, ["1", "2", "3"], False)
    for domain in DOMAINS:  # everything is near at a margin that wide
        found = only["before"][domain]
        assert found["voxels"] == sum(prepared.cases.read_label(case).size for case in prepared.cases.training[:2])
        assert [found[key] for key in ("ece", "nll", "brier")] == pytest.approx(
            [expected[key] for key in ("ece", "nll", "brier")], rel=1e-5
        )
        assert list(found["classwise_ece"]) == ["1", "2", "3"]
        assert found["classwise_ece"] == pytest.approx(expected["classwise_ece"], rel=1e-5)
    assert only["after"]["all"]["nll"] < only["before"]["all"]["nll"]
    assert content["cases"] == 2
    assert content["identity"]["training"] == {"3d_fullres": "3d_fullres"}
    assert content["identity"]["networks"] == {fold: {"3d_fullres": "digest of 3d_fullres"} for fold in "01"}


def test_a_fold_is_judged_at_the_temperature_of_the_others(prepared):
    only = run(prepared, folds_of(prepared), calibrate__near_mm=1000.0)["calibrations"][0]
    samples = [all_voxels(prepared, fold) for fold in range(2)]
    of_others = {str(fold): calibration.fit_temperature(samples[1 - fold]) for fold in range(2)}
    assert only["temperature_without_fold"] == pytest.approx(of_others, rel=1e-6)
    assert of_others["0"] != pytest.approx(of_others["1"], rel=0.05)
    honest = [calibration.tempered(sample, of_others[str(fold)]) for fold, sample in enumerate(samples)]
    expected = calibration.scores(voxel_sample.joined(honest), 15, [], False)
    assert only["held_out"]["all"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    assert only["held_out"]["all"]["ece"] == pytest.approx(expected["ece"], rel=1e-4)
    assert only["held_out"]["all"]["nll"] > only["after"]["all"]["nll"]


def test_one_fold_alone_has_nothing_to_hold_out(prepared):
    only = run(prepared, folds_of(prepared)[:1], voxels=1000)["calibrations"][0]
    assert only["held_out"] is only["temperature_without_fold"] is None
    assert only["after"]["near"]["nll"] < only["before"]["near"]["nll"]


def test_near_is_what_is_labelled_or_segmented_by_anybody(prepared):
    names = ("2d", "3d_fullres")
    changes = {"configurations": list(names), "calibrate__near_mm": 0.0}
    content = run(prepared, folds_of(prepared, names)[::2], voxels=1000, **changes)  # fold 0 of both
    case = prepared.cases.training[0]
    segmented = [random_softmax(prepared, case, 10 * seed, 1.5).argmax(0) > 0 for seed in range(2)]
    foreground = segmented[0] | segmented[1] | (prepared.cases.read_label(case) > 0)
    assert [one["before"]["near"]["voxels"] for one in content["calibrations"]] == [foreground.sum()] * 3


def test_all_cases_together_have_so_many_voxels(prepared, monkeypatch):
    drawn, draw = [], voxel_sample.draw
    monkeypatch.setattr(voxel_sample, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    run(prepared, folds_of(prepared), voxels=1000, calibrate__near_mm=0.0)
    assert [len(index) for index, _ in drawn] == [500, 500]


def test_a_sample_speaks_for_all_voxels(prepared):
    """A tenth of them, drawn by the seed alone: the same file again, whatever the number of threads."""
    folders = folds_of(prepared, dtype="float16")
    every = run(prepared, folders, calibrate__near_mm=0.0)["calibrations"][0]
    n = every["before"]["all"]["voxels"] // 10
    tenth = run(prepared, folders, n, calibrate__near_mm=0.0)["calibrations"][0]
    first = OUT.read_bytes()
    for domain in DOMAINS:
        assert tenth["before"][domain]["voxels"] == every["before"][domain]["voxels"]
        assert tenth["before"][domain]["nll"] == pytest.approx(every["before"][domain]["nll"], rel=0.1)
    assert 0 < tenth["before"]["near"]["voxels"] < tenth["before"]["all"]["voxels"]
    assert tenth["temperature"] == pytest.approx(every["temperature"], rel=0.1)
    run(prepared, folders, n, calibrate__near_mm=0.0, runtime__threads=3)
    assert OUT.read_bytes() == first
    run(prepared, folders, n, calibrate__near_mm=0.0, calibrate__seed=1)
    assert OUT.read_bytes() != first


def test_the_mean_of_several_is_calibrated_with_its_weights(prepared):
    names = ("2d", "3d_fullres")
    weights = {"2d": 1.0, "3d_fullres": 3.0}
    changes = {"configurations": list(names), "ensemble__weights": weights, "calibrate__near_mm": 1000.0}
    content = run(prepared, folds_of(prepared, names), **changes)
    assert [one["configurations"] for one in content["calibrations"]] == [["2d"], ["3d_fullres"], list(names)]
    assert content["weights"] == weights
    rows = []
    for fold, case in enumerate(prepared.cases.training[:2]):
        of_names = [random_softmax(prepared, case, 10 * seed + fold, (1.5, 3.0)[fold]) for seed in range(2)]
        rows.append(every_voxel(prepared, fold, np.average(of_names, axis=0, weights=[1, 3])))
    together = voxel_sample.joined(rows)
    found = content["calibrations"][2]
    assert found["before"]["all"]["ece"] == pytest.approx(calibration.scores(together, 15, [], False)["ece"], rel=1e-4)
    assert temperature(content, ["3d_fullres", "2d"]) == found["temperature"]
    assert found["temperature"] == pytest.approx(calibration.fit_temperature(together), rel=1e-5)
    assert temperature(content, ["2d"]) == content["calibrations"][0]["temperature"]
    with pytest.raises(SegpipeError, match="no temperature of these configurations"):
        temperature(content, ["3d_lowres"])


def test_what_nobody_annotated_is_not_looked_at(prepared):
    """With the third class as the ignore label."""
    labels = labels_of({"background": 0, "one": 1, "two": 2, "ignore": 3})
    cases = dataclasses.replace(prepared.cases, content={**prepared.cases.content, "labels": labels.to_json()})
    folders = folds_of(prepared)[:1]
    for path in (folders[0] / "softmax").iterdir():
        softmax_file.save(path, softmax_file.load(path)[:3], "float32")
    content = run(prepared, folders, cases=cases)
    annotated = (cases.read_label(cases.training[0]) != 3).sum()
    assert content["calibrations"][0]["before"]["all"]["voxels"] == annotated
    assert annotated < cases.read_label(cases.training[0]).size


@pytest.mark.parametrize("key", ["dataset", "checkpoint", "validate", "training"])
def test_folds_of_other_data_or_settings_are_refused(prepared, key):
    folders = [folds_of(prepared)[0], folds_of(prepared, **{key: "other"})[1]]
    member(prepared, "3d_fullres", 0, cases=prepared.cases.training[:1])  # fold 0 as it was
    with pytest.raises(SegpipeError, match="different data or settings"):
        run(prepared, folders)
    assert not OUT.exists()


def test_members_of_other_cases_are_refused(prepared):
    names = ("2d", "3d_fullres")
    folders = folds_of(prepared, names)
    member(prepared, "2d", 0, cases=prepared.cases.training[1:2])
    with pytest.raises(SegpipeError, match="different data or settings"):
        run(prepared, folders, configurations=list(names))


def test_a_softmax_of_another_grid_is_refused(prepared):
    folders = folds_of(prepared)
    path = folders[1] / f"softmax/{prepared.cases.training[1]}.npz"
    softmax_file.save(path, softmax_file.load(path)[:, 1:], "float32")
    with pytest.raises(SegpipeError, match="another grid") as error:
        run(prepared, folders)
    assert str(path) in str(error.value)
    assert not OUT.exists()


def test_a_list_of_other_folds_is_refused(prepared, monkeypatch, capsys):
    """As an old dvc.yaml would pass it."""
    settings = params(folds=[0, 1])
    monkeypatch.setattr(scripts.params_module, "load", lambda: settings)
    folders = [f"results/3d_fullres/fold_{fold}/validation_final" for fold in (0, 1)]
    of_fold = [*folders[1:], "--fold", "1"]  # as the rule ensemble passes it
    for given, code in ((folders, None), (folders[:1], 2), (folders[::-1], 2), (of_fold, None)):
        called = []
        monkeypatch.setattr(sys, "argv", ["calibrate.py", "--validations", *given])
        try:
            scripts.run(lambda args, _, called=called: called.append(args.validations), "--validations+", "--fold?")
            ended = None
        except SystemExit as stopped:
            ended = stopped.code
        assert ended == code
        assert called == ([[path for path in given if "/" in path]] if code is None else [])
