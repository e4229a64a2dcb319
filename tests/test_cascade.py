"""The cascade through Snakemake, on regions with an ignore label: from the raw files to predictions of both stages."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import Project, tiny_params

from segpipe import digest
from segpipe.data import phantoms
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.inference import previous_stage
from segpipe.params import Phantoms

DATASET = "data/raw/Dataset007_Regions"
PREPARED = "data/preprocessed/Dataset007_Regions"
LABELS = {"background": 0, "organ": [1, 2, 3], "inner": [2, 3], "vessel": 3, "ignore": 9}
MANIFEST = f"{PREPARED}/3d_cascade_fullres/manifest.json"


def make_dataset(folder: Path) -> None:
    """Five phantoms with overlapping classes; every other slice is not annotated."""
    phantoms.generate(folder, Phantoms(n_train=5, n_test=1, seed=0))
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"labels": LABELS, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(content))
    for path in (folder / "labelsTr").iterdir():
        label = nibabel.nifti1.load(path)
        array = np.asarray(label.dataobj).copy()
        array[:, :, ::2] = 9
        nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), label.affine), path)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after fold 0 of the cascade and the predictions. Only for tests that change nothing."""
    project = Project(tmp_path_factory.mktemp("cascade"))
    params = tiny_params()
    params["dataset"], params["configurations"], params["folds"] = DATASET, ["3d_cascade_fullres"], [0]
    spacing = {"3d_fullres": [3.0] * 3, "3d_lowres": [6.0] * 3}
    params["plan"]["overrides"].update(spacing_mm=spacing, patch_size=[16] * 3)
    params["train"].update(epochs=1)
    project.write(params)
    make_dataset(project.folder / DATASET)
    project.snakemake("results/fold_0/summary.json", "results/predictions")
    return project


def read(project: Project, path: str) -> Any:
    return digest.read_json(project.folder / path)


def test_each_case_comes_with_what_the_fold_that_has_not_seen_it_segmented(cascade: Project) -> None:
    previous, folds = read(cascade, MANIFEST)["previous"], read(cascade, f"{PREPARED}/splits.json")
    for number, fold in enumerate(folds):
        for case in fold["val"]:
            where = Path(f"results/3d_lowres/fold_{number}/validation_final/segmentations/{case}.nii.gz")
            assert Path(previous[case]["file"]) == where
    assert set(previous) == {case for fold in folds for case in fold["val"]}


def test_the_first_stage_is_trained_in_all_folds_and_no_member_of_the_ensemble(cascade: Project) -> None:
    trained = sorted(
        str(path.parent.relative_to(cascade.folder)) for path in cascade.folder.rglob("checkpoint_final.pth")
    )
    assert trained == [
        f"results/{name}" for name in ("3d_cascade_fullres/fold_0", "3d_lowres/fold_0", "3d_lowres/fold_1")
    ]
    assert list(read(cascade, "results/fold_0/summary.json")["members"]) == ["3d_cascade_fullres"]


def test_regions_are_scored_by_their_values_and_the_ignore_label_by_none(cascade: Project) -> None:
    summary = read(cascade, "results/fold_0/summary.json")
    assert list(summary["mean"]) == ["(1, 2, 3)", "(2, 3)", "3"]
    for row in summary["metric_per_case"]:
        reference = np.asarray(nibabel.nifti1.load(cascade.folder / DATASET / row["reference_file"]).dataobj)
        counted = row["metrics"]["(1, 2, 3)"]
        assert sum(counted[name] for name in ("TP", "FP", "FN", "TN")) == (reference != 9).sum()
        assert counted["n_ref"] == np.isin(reference, (1, 2, 3)).sum()
        predicted = np.asarray(nibabel.nifti1.load(cascade.folder / row["prediction_file"]).dataobj) > 0
        assert (predicted & (reference == 9)).any()  # else nothing would be left out
        assert counted["n_pred"] == (predicted & (reference != 9)).sum()


def test_predictions_have_the_values_of_the_files_and_no_ignore_label(cascade: Project) -> None:
    (path,) = (cascade.folder / "results/predictions").glob("*.nii.gz")
    assert set(np.unique(np.asarray(nibabel.nifti1.load(path).dataobj))) <= {0, 1, 2, 3}


def test_a_second_run_has_nothing_to_do(cascade: Project) -> None:
    assert cascade.planned("results/fold_0/summary.json", "results/predictions") == {}


def cases_of(project: Project) -> Cases:
    return Cases.read(project.folder / PREPARED / "cases.json", project.folder / DATASET)


def folders(project: Project) -> list[Path]:
    return [project.folder / f"results/3d_lowres/fold_{fold}/validation_final" for fold in (0, 1)]


def test_a_case_that_no_fold_validates_is_refused(cascade: Project) -> None:
    with pytest.raises(SegpipeError, match="a case that no fold validates"):
        previous_stage.segmentations(cases_of(cascade), folders(cascade)[:1])


def test_a_case_that_two_folds_validate_is_refused(cascade: Project, tmp_path: Path) -> None:
    digest.copy(folders(cascade)[1] / "summary.json", tmp_path / "again/summary.json")
    with pytest.raises(SegpipeError, match="not one out-of-fold segmentation of a case"):
        previous_stage.segmentations(cases_of(cascade), [*folders(cascade), tmp_path / "again"])


def test_folds_of_other_settings_are_refused(cascade: Project, tmp_path: Path) -> None:
    summary = digest.read_json(folders(cascade)[1] / "summary.json")
    summary["identity"]["training"] = "another"
    digest.write_json(tmp_path / "other/summary.json", summary)
    with pytest.raises(SegpipeError, match="folds of different data or settings"):
        previous_stage.segmentations(cases_of(cascade), [folders(cascade)[0], tmp_path / "other"])
