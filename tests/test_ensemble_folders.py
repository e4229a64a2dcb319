"""`segpipe ensemble` and `segpipe postprocess`: folders of segpipe or nnU-Net in, a folder out; nothing done twice."""

import json

import nibabel
import numpy as np
import pytest
import scipy.special
from tiny import labels_of

from segpipe import digest
from segpipe.cli.main import main
from segpipe.data import image
from segpipe.errors import SegpipeError
from segpipe.inference import folders, postprocess, softmax_file
from segpipe.inference.ensemble_folders import ensemble_folders
from segpipe.inference.postprocess import Rule
from segpipe.inference.postprocess_folder import postprocess_folder

SHAPE = (4, 6, 5)
AFFINE = np.array([[-0.0, 0, 1.5, 3], [2.0, 0, 0, 4], [0, -3.0, 0, 5], [0, 0, 0, 1]])
GAPS = labels_of({"background": 0, "organ": 2, "tumour": 5})
NNUNET = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
    "channel_names": {"0": "CT"},
    "file_ending": ".nii.gz",
}
CASES = ("a", "b")


def softmax(seed, n_classes=3):
    logits = 2 * np.random.default_rng(seed).normal(size=(n_classes, *SHAPE))
    return scipy.special.softmax(logits, axis=0).astype(np.float32)


def write_label(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.T.astype(np.uint8), affine), path)


def member(folder, seed, cases=CASES, n_classes=3, meaning=None, nnunet=False):
    """As the prediction writes it, or nnU-Net: float32, with a pickle beside it that nobody may read."""
    folder.mkdir()
    for number, case in enumerate(cases):
        given = softmax(10 * seed + number, n_classes)
        write_label(folder / f"{case}.nii.gz", np.zeros(SHAPE))
        if nnunet:
            np.savez_compressed(folder / f"{case}.npz", probabilities=given)
            (folder / f"{case}.pkl").write_bytes(b"not even a pickle")
        else:
            softmax_file.save(folder / f"{case}.npz", given, "float32")
    if meaning is not None:
        folders.describe(folder, meaning, "as-stored")
    return folder


def read(path):
    return image.read_label(path).array[0]


def mean(seeds, case, weights=None, n_classes=3):
    arrays = [softmax(10 * seed + CASES.index(case), n_classes) for seed in seeds]
    return np.average(arrays, axis=0, weights=weights)


def test_the_mean_is_written_in_the_values_and_on_the_grid_of_the_files(tmp_path):
    made = [member(tmp_path / str(seed), seed, meaning=GAPS) for seed in range(3)]
    ensemble_folders(made, tmp_path / "out", None, probabilities=True)
    for case in CASES:
        written = tmp_path / f"out/{case}.nii.gz"
        assert np.array_equal(read(written), np.array([0, 2, 5])[mean(range(3), case).argmax(0)])
        assert np.allclose(nibabel.load(written).affine, AFFINE)
        assert np.allclose(softmax_file.load(tmp_path / f"out/{case}.npz"), mean(range(3), case), atol=1e-3)
    again = folders.Folder.read(tmp_path / "out")
    assert (again.labels, set(again.softmax), set(again.segmentations)) == (GAPS, set(CASES), set(CASES))


def test_weights(tmp_path):
    made = [member(tmp_path / str(seed), seed) for seed in range(2)]
    main(["ensemble", *map(str, made), "-o", str(tmp_path / "out"), "--weights", "1,5"])
    assert np.array_equal(read(tmp_path / "out/a.nii.gz"), mean(range(2), "a", [1, 5]).argmax(0))
    assert not (tmp_path / "out/a.npz").exists()


def test_folders_of_nnunet(tmp_path):
    """dataset.json beside the files says that there are regions; of a validation it lies two folders above."""
    made = [member(tmp_path / "prediction", 0, n_classes=2, nnunet=True)]
    (tmp_path / "prediction/dataset.json").write_text(json.dumps(NNUNET))
    (tmp_path / "trained/fold_0").mkdir(parents=True)
    (tmp_path / "trained/dataset.json").write_text(json.dumps(NNUNET))
    made.append(member(tmp_path / "trained/fold_0/validation", 1, n_classes=2, nnunet=True))
    ensemble_folders(made, tmp_path / "out", None, probabilities=False)
    probabilities = mean(range(2), "b", n_classes=2)
    expected = np.where(probabilities[1] > 0.5, 2, np.where(probabilities[0] > 0.5, 1, 0))
    assert np.array_equal(read(tmp_path / "out/b.nii.gz"), expected)
    assert folders.Folder.read(made[1]).labels == folders.Folder.read(made[0]).labels is not None


def test_validation_folders(tmp_path):
    """segmentations/ and softmax/, the classes in summary.json."""
    made = []
    for seed in range(2):
        folder = member(tmp_path / f"flat{seed}", seed)
        target = tmp_path / f"validation{seed}"
        for name, ending in (("softmax", ".npz"), ("segmentations", ".nii.gz")):
            (target / name).mkdir(parents=True)
            for case in CASES:
                (folder / f"{case}{ending}").rename(target / name / f"{case}{ending}")
        digest.write_json(target / "summary.json", {"labels": GAPS.to_json(), "metric_per_case": []})
        made.append(target)
    ensemble_folders(made, tmp_path / "out", None, probabilities=False)
    assert np.array_equal(read(tmp_path / "out/a.nii.gz"), np.array([0, 2, 5])[mean(range(2), "a").argmax(0)])


def test_arrays_turned_to_ras_are_turned_back(tmp_path):
    folder = member(tmp_path / "0", 0)
    turned = image.read_label(folder / "a.nii.gz", "RAS").shape
    given = softmax(0).reshape(3, *turned)
    for case in CASES:
        softmax_file.save(folder / f"{case}.npz", given, "float32")
    folders.describe(folder, labels_of({"background": 0, "one": 1, "two": 2}), "RAS")
    ensemble_folders([folder], tmp_path / "out", None, probabilities=False)
    assert np.array_equal(image.read_label(tmp_path / "out/a.nii.gz", "RAS").array[0], given.argmax(0))


def test_all_problems_are_named_at_once_and_nothing_is_written(tmp_path, capsys):
    made = [member(tmp_path / "0", 0), member(tmp_path / "1", 1, cases=["a"]), member(tmp_path / "2", 2, meaning=GAPS)]
    folders.describe(made[0], labels_of({"background": 0, "organ": 1, "tumour": 2}), "as-stored")
    for folder in made:
        (folder / "a.nii.gz").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["ensemble", *map(str, made), "-o", str(tmp_path / "out"), "--weights", "1,2"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "4 problems" in said
    for text in ("weights that do not fit", "no npz of b", "folders of other classes", "no segmentation"):
        assert text in said
    assert not (tmp_path / "out").exists()


def test_other_grids_and_damaged_files_are_named_together(tmp_path):
    made = [member(tmp_path / str(seed), seed) for seed in range(2)]
    softmax_file.save(made[1] / "a.npz", softmax(0)[:, 1:], "float16")
    (made[1] / "b.npz").write_bytes(b"nothing")
    with pytest.raises(SegpipeError, match=r"(?s)2 problems.*another grid.*1/a\.npz.*cannot be read.*1/b\.npz"):
        ensemble_folders(made, tmp_path / "out", None, probabilities=False)
    assert not (tmp_path / "out").exists()


def test_a_segmentation_on_another_grid_is_refused_and_the_other_case_is_done(tmp_path):
    made = [member(tmp_path / str(seed), seed) for seed in range(2)]
    write_label(made[0] / "a.nii.gz", np.zeros((4, 5, 6)))
    with pytest.raises(SegpipeError, match=r"(?s)1 problem.*on different grids.*a\.nii\.gz"):
        ensemble_folders(made, tmp_path / "out", None, probabilities=False)
    assert (tmp_path / "out/b.nii.gz").exists()
    assert not (tmp_path / "out/a.nii.gz").exists()


@pytest.mark.parametrize(("paths", "said"), [(["absent"], "no such folder"), (["empty"], "no probabilities")])
def test_folders_without_anything(tmp_path, paths, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SegpipeError, match=said):
        ensemble_folders([tmp_path / name for name in paths], tmp_path / "out", None, probabilities=False)


def test_the_result_never_lies_among_its_members(tmp_path):
    made = member(tmp_path / "0", 0)
    with pytest.raises(SegpipeError, match="among its members"):
        ensemble_folders([made], made / "../0", None, probabilities=False)


def test_a_case_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    made, out = [member(tmp_path / str(seed), seed) for seed in range(2)], tmp_path / "out"
    done = []
    write = image.write_label_like
    monkeypatch.setattr(image, "write_label_like", lambda path, *rest: (done.append(path.name), write(path, *rest)))

    def names_of_done(**changes):
        done.clear()
        ensemble_folders(made, out, changes.get("weights"), changes.get("probabilities", False))
        return sorted(done)

    assert names_of_done() == ["a.nii.gz", "b.nii.gz"]
    assert names_of_done() == []
    (out / "a.nii.gz").unlink()
    assert names_of_done() == ["a.nii.gz"]
    softmax_file.save(made[1] / "b.npz", softmax(99), "float32")
    assert names_of_done() == ["b.nii.gz"]
    assert names_of_done(weights=[1, 2]) == ["a.nii.gz", "b.nii.gz"]
    assert names_of_done(weights=[1, 2], probabilities=True) == ["a.nii.gz", "b.nii.gz"]
    assert names_of_done(weights=[1, 2], probabilities=True) == []


def test_what_fails_half_way_is_not_taken_for_done(tmp_path, monkeypatch):
    made, out = [member(tmp_path / str(seed), seed) for seed in range(2)], tmp_path / "out"
    ensemble_folders(made, out, None, probabilities=True)
    before = (out / "a.npz").read_bytes()

    def full(*given):
        raise OSError("no space left")

    monkeypatch.setattr(image, "write_label_like", full)
    with pytest.raises(OSError, match="no space"):
        ensemble_folders(made, out, [1, 2], probabilities=True)
    monkeypatch.undo()
    ensemble_folders(made, out, None, probabilities=True)
    assert (out / "a.npz").read_bytes() == before
    assert np.array_equal(read(out / "a.nii.gz"), mean(range(2), "a").argmax(0))


def rules_file(path, labels=GAPS):
    rules = [Rule("tumour", minimum_voxels=3)]
    digest.write_json(path, {"labels": labels.to_json(), "rules": [postprocess.to_json(rule) for rule in rules]})
    return path


def segmented(folder):
    """A tumour of 4 and one of 2 voxels, in the values of the files."""
    array = np.zeros(SHAPE, int)
    array[0, 0, :4] = array[3, 5, :2] = 5
    array[2, 2, 2] = 2
    write_label(folder / "a.nii.gz", array)
    return array


def test_rules_are_applied_to_a_folder(tmp_path):
    expected = segmented(tmp_path / "given")
    expected[3] = 0
    write_label(tmp_path / "given/a_probabilities.nii.gz", np.zeros(SHAPE))  # is none of the segmentations
    call = ["postprocess", tmp_path / "given", "--rules", rules_file(tmp_path / "rules.json"), "-o", tmp_path / "out"]
    main(list(map(str, call)))
    assert np.array_equal(read(tmp_path / "out/a.nii.gz"), expected)
    assert np.allclose(nibabel.load(tmp_path / "out/a.nii.gz").affine, AFFINE)
    before = (tmp_path / "out/a.nii.gz").stat().st_mtime_ns
    main(list(map(str, call)))
    assert (tmp_path / "out/a.nii.gz").stat().st_mtime_ns == before
    assert not (tmp_path / "out/a_probabilities.nii.gz").exists()


def test_rules_of_other_classes_are_refused(tmp_path):
    segmented(tmp_path / "given")
    other = labels_of({"background": 0, "organ": 1, "tumour": 2})
    with pytest.raises(SegpipeError, match=r"values that are no class\n.*\n.*5"):
        postprocess_folder(tmp_path / "given", rules_file(tmp_path / "rules.json", other), tmp_path / "out")
    folders.describe(tmp_path / "given", GAPS, "as-stored")
    with pytest.raises(SegpipeError, match="rules of other labels"):
        postprocess_folder(tmp_path / "given", tmp_path / "rules.json", tmp_path / "out")


def test_segmentations_are_never_replaced(tmp_path):
    segmented(tmp_path / "given/segmentations")
    with pytest.raises(SegpipeError, match="would be replaced"):
        postprocess_folder(
            tmp_path / "given", rules_file(tmp_path / "rules.json"), tmp_path / "given/segmentations/../segmentations"
        )
    with pytest.raises(SegpipeError, match="no segmentations"):
        postprocess_folder(tmp_path, tmp_path / "rules.json", tmp_path / "out")
