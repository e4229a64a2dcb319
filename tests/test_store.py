"""The preprocessed cases: made once, found again, never mixed with those of other inputs or settings."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FOUR, labels_of, params
from volumes import CHECK, image_array, label_array, nifti, nnunet_dataset

from segpipe import digest
from segpipe.data import check
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.prepare import store
from segpipe.prepare.preprocess import preprocess
from segpipe.prepare.store import ANNOTATED, PARTS, foreground_locations
from segpipe.prepare.twins import ARRAYS

RUNTIME = params().runtime


class Folder:
    """A small dataset with everything that preprocessing takes."""

    def __init__(self, folder: Path) -> None:
        self.root = nnunet_dataset(folder / "raw/Dataset001_Small")
        self.plan_path, self.manifest = folder / "plan.json", folder / "3d_fullres/manifest.json"
        self.files = self.manifest.parent / "cases"
        self.plan: dict[str, Any] = {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "intensities": {"0": {"mean": 100.0, "std": 20.0, "percentile_00_5": 50.0, "percentile_99_5": 150.0}},
            "configurations": {
                "3d_fullres": {
                    "architecture": "plain",
                    "spacing_mm": [1.0, 0.8, 1.0],
                    "patch_size": [4, 4, 4],
                    "batch_size": 2,
                    "median_shape": [7.0, 10.0, 9.0],
                    "features_per_stage": [4],
                    "kernel_sizes": [[3, 3, 3]],
                    "strides": [[1, 1, 1]],
                    "n_conv_per_stage": [2],
                    "n_conv_per_stage_decoder": [],
                    "normalisation": ["zscore"],
                    "use_mask_for_norm": [False],
                    "batch_dice": False,
                    "previous_stage": None,
                    "reasons": [],
                }
            },
        }
        self.save()

    @property
    def configuration(self) -> dict[str, Any]:
        planned: dict[str, Any] = self.plan["configurations"]["3d_fullres"]
        return planned

    def save(self) -> None:
        digest.write_json(self.plan_path, self.plan)

    def cases(self) -> Cases:
        check.check(self.root, self.plan_path.with_name("cases.json"), CHECK, 2)
        return Cases.read(self.plan_path.with_name("cases.json"), self.root)

    def build(self) -> None:
        store.build(self.cases(), self.plan_path, "3d_fullres", self.manifest, RUNTIME)

    def ensure(self) -> store.Store:
        return store.ensure(self.cases(), self.plan_path, self.manifest, RUNTIME)

    def ages(self) -> dict[str, int]:
        """When each case's files were written; a file that was written again has another inode, too."""
        stats = {path.name: path.stat() for path in self.files.iterdir() if not path.name.startswith(".")}
        return {name: hash((stat.st_mtime_ns, stat.st_ino)) for name, stat in stats.items()}

    def redone(self, before: dict[str, int]) -> set[str]:
        """The cases of which a file was made since."""
        return {name.split(".")[0] for name, age in self.ages().items() if before.get(name) != age}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.build()
    return made


# what is stored


def test_a_stored_case_is_the_preprocessed_one(folder: Folder) -> None:
    opened = folder.ensure()
    volume = opened.cases.read_image("b")
    label = opened.cases.read_label("b")
    expected = preprocess(volume.array, label, volume.spacing_mm, opened.plan, opened.planned)
    assert expected.label is not None
    for found in (opened.read("b"), opened.open("b")):
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.label, expected.label)
    assert opened.read("b").grid == expected.grid
    assert expected.image.shape == (1, 7, 10, 9)


def test_patches_are_read_without_reading_the_whole(folder: Folder) -> None:
    case = folder.ensure().open("a")
    assert isinstance(case.image, np.memmap)
    assert isinstance(case.label, np.memmap)


def test_foreground_is_given_by_class(folder: Folder) -> None:
    case = folder.ensure().open("a")
    assert set(case.foreground) == {1, 2}
    for value, voxels in case.foreground.items():
        np.testing.assert_array_equal(voxels, np.flatnonzero(case.label == value))


def test_a_case_without_foreground_has_none(folder: Folder) -> None:
    nifti(folder.root / "labelsTr/a.nii.gz", label_array() * 0)
    folder.build()
    assert folder.ensure().open("a").foreground == {}


def test_the_test_cases_are_not_stored(folder: Folder) -> None:
    assert {name.split(".")[0] for name in folder.ages()} == {"a", "b", "c"}
    assert set(digest.read_json(folder.manifest)["cases"]) == {"a", "b", "c"}


def test_only_finished_files_are_left(folder: Folder) -> None:
    assert sorted(path.name for path in folder.files.iterdir()) == sorted(f"{c}.{p}" for c in "abc" for p in PARTS)


# what is done again


def test_a_second_build_does_nothing(folder: Folder) -> None:
    before, manifest = folder.ages(), folder.manifest.read_bytes()
    folder.build()
    assert folder.redone(before) == set()
    assert folder.manifest.read_bytes() == manifest


@pytest.mark.parametrize("path", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
def test_a_changed_case_is_done_again_alone(folder: Folder, path: str) -> None:
    before, manifest = folder.ages(), digest.read_json(folder.manifest)
    nifti(folder.root / path, image_array(99) if "images" in path else np.roll(label_array(), 1))
    folder.build()
    assert folder.redone(before) == {"b"}
    after = digest.read_json(folder.manifest)
    assert after["digest"] != manifest["digest"]
    assert {case for case in "abc" if after["cases"][case] != manifest["cases"][case]} == {"b"}


def test_an_added_case_is_made_alone(folder: Folder) -> None:
    before = folder.ages()
    nnunet_dataset(folder.root, n_train=4)
    folder.build()
    assert folder.redone(before) == {"d"}


@pytest.mark.parametrize(
    ("key", "value", "again"),
    [
        ("spacing_mm", [1.0, 1.0, 1.0], True),
        ("normalisation", ["none"], True),
        ("use_mask_for_norm", [True], True),
        ("batch_size", 7, False),
        ("patch_size", [8, 8, 8], False),
        ("reasons", ["another"], False),
    ],
)
def test_a_setting_redoes_what_depends_on_it(folder: Folder, key: str, value: object, again: bool) -> None:
    before = folder.ages()
    folder.configuration[key] = value
    folder.save()
    folder.build()
    assert folder.redone(before) == ({"a", "b", "c"} if again else set())


@pytest.mark.parametrize(("scheme", "again"), [("ct", True), ("zscore", False)])
def test_the_datasets_intensities_count_for_ct_only(folder: Folder, scheme: str, again: bool) -> None:
    folder.configuration["normalisation"] = [scheme]
    folder.save()
    folder.build()
    before = folder.ages()
    folder.plan["intensities"]["0"]["mean"] = 90.0
    folder.save()
    folder.build()
    assert bool(folder.redone(before)) == again


def test_other_code_redoes_all(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder.ages()
    monkeypatch.setattr(digest, "of_code", lambda rule: f"another {rule}")
    folder.build()
    assert folder.redone(before) == {"a", "b", "c"}


def test_what_was_done_is_told(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    nifti(folder.root / "imagesTr/b_0000.nii.gz", image_array(99))
    with caplog.at_level(logging.INFO):
        folder.build()
    assert "3d_fullres: 1 cases preprocessed, 2 were there" in caplog.text


# what is missing


@pytest.mark.parametrize("part", PARTS)
def test_a_deleted_file_is_made_again(folder: Folder, part: str) -> None:
    content = (folder.files / f"b.{part}").read_bytes()
    before = folder.ages()
    (folder.files / f"b.{part}").unlink()
    opened = folder.ensure()
    assert folder.redone(before) == {"b"}
    assert (folder.files / f"b.{part}").read_bytes() == content
    assert opened.open("b").image.shape == (1, 7, 10, 9)


def test_without_any_case_file_all_are_made(folder: Folder) -> None:
    before = {path.name: path.read_bytes() for path in folder.files.iterdir()}
    for path in folder.files.iterdir():
        path.unlink()
    folder.files.rmdir()
    folder.ensure()
    assert {path.name: path.read_bytes() for path in folder.files.iterdir()} == before


def test_an_interrupted_case_is_made_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new image is there, its record is not: the arrays of two settings are never taken for one case."""
    folder.configuration["spacing_mm"] = [2.0, 2.0, 2.0]
    folder.save()

    def killed(label: object, labels: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "foreground_locations", killed)
        folder.build()
    assert not (folder.files / "a.json").exists()
    folder.build()
    assert folder.ensure().read("a").label.shape == folder.ensure().read("a").image.shape[1:] == (4, 4, 4)


# what is refused


@pytest.mark.parametrize("change", ["settings", "inputs", "labels"])
def test_a_manifest_of_other_inputs_or_settings_is_refused(folder: Folder, change: str) -> None:
    if change == "settings":
        folder.configuration["spacing_mm"] = [2.0, 2.0, 2.0]
        folder.save()
    elif change == "inputs":
        nifti(folder.root / "imagesTr/b_0000.nii.gz", image_array(99))
    else:
        description = digest.read_json(folder.root / "dataset.json")
        description["labels"] = {"background": 0, "kidney": 1, "liver": 2}
        digest.write_json(folder.root / "dataset.json", description)
    before = folder.ages()
    with pytest.raises(SegpipeError) as error:
        folder.ensure()
    for word in ("belong to other inputs or settings", str(folder.manifest), "preprocess"):
        assert word in str(error.value)
    assert folder.redone(before) == set()


# voxels for foreground sampling


def test_every_voxel_of_small_classes_is_kept() -> None:
    label = np.zeros((20, 20, 20), np.int16)
    label[0, 0, :3], label[5:15, 5:15, 5:15], label[19] = 2, 1, -1
    locations = foreground_locations(label, FOUR)
    assert locations.keys() == {1, 2}
    np.testing.assert_array_equal(locations[1], np.flatnonzero(label == 1))
    np.testing.assert_array_equal(locations[2], [0, 1, 2])


@pytest.mark.parametrize(
    ("n_voxels", "n_kept"), [(9_999, 9_999), (10_000, 10_000), (10_001, 10_000), (2_000_050, 20_001)]
)
def test_of_large_classes_a_share_is_kept(n_voxels: int, n_kept: int) -> None:
    label = np.zeros(n_voxels + 5, np.int16)
    label[:n_voxels] = 3
    locations = foreground_locations(label.reshape(1, 1, -1), FOUR)
    assert locations.keys() == {3}
    assert len(locations[3]) == len(np.unique(locations[3])) == n_kept
    assert locations[3].max() < n_voxels
    np.testing.assert_array_equal(locations[3], foreground_locations(label.reshape(1, 1, -1), FOUR)[3])


def test_a_share_is_drawn_from_everywhere() -> None:
    label = np.ones((100, 100, 30), np.int16)
    z = foreground_locations(label, FOUR)[1] // 3000
    counts = np.bincount(z, minlength=100)
    assert counts.min() > 50
    assert counts.max() < 150


def test_without_foreground_there_is_none() -> None:
    assert foreground_locations(np.full((3, 3, 3), -1, np.int16), FOUR) == {}


def test_regions_have_voxels_of_all_their_values() -> None:
    labels = labels_of({"background": 0, "whole": [1, 2], "core": 2, "none": 3}, [1, 2, 3])
    label = np.zeros((4, 4, 4), np.int16)
    label[0, 0], label[0, 0, 1], label[3] = 1, 2, -1
    locations = foreground_locations(label, labels)
    assert {index: voxels.tolist() for index, voxels in locations.items()} == {1: [0, 1, 2, 3], 2: [1]}


def test_with_an_ignore_label_all_that_is_annotated_is_kept_as_well() -> None:
    """Background, classes, and the background outside the nonzero region; the ignore label is none of them."""
    labels = labels_of({"background": 0, "one": 1, "ignore": 2})
    label = np.full((2, 2, 3), 2, np.int16)
    label[0, 0], label[1, 1, 2] = [0, 1, -1], 1
    locations = foreground_locations(label, labels)
    assert {index: voxels.tolist() for index, voxels in locations.items()} == {ANNOTATED: [0, 1, 2, 11], 1: [1, 11]}


def test_of_what_is_annotated_a_share_is_kept() -> None:
    labels = labels_of({"background": 0, "one": 1, "ignore": 2})
    label = np.zeros((30, 30, 30), np.int16)
    label[0] = 2
    locations = foreground_locations(label, labels)
    assert locations.keys() == {ANNOTATED}
    assert len(locations[ANNOTATED]) == 10_000
    assert locations[ANNOTATED].min() >= 900


# the ignore label, a twin, the stage before


def test_an_opened_case_knows_what_is_annotated(folder: Folder) -> None:
    assert folder.ensure().open("a").annotated is None
    description = digest.read_json(folder.root / "dataset.json")
    description["labels"] = {"background": 0, "liver": 1, "ignore": 2}
    digest.write_json(folder.root / "dataset.json", description)
    folder.build()
    case = folder.ensure().open("a")
    assert set(case.foreground) == {1}
    assert case.annotated is not None
    np.testing.assert_array_equal(case.annotated, np.flatnonzero(case.label != 2))
    assert 0 < len(case.annotated) < case.label.size


def test_a_configuration_that_prepares_its_cases_alike_has_the_same_files(folder: Folder) -> None:
    folder.plan["configurations"]["3d_cascade_fullres"] = {**folder.configuration, "batch_size": 5}
    folder.plan["configurations"]["3d_lowres"] = {**folder.configuration, "spacing_mm": [2.0, 2.0, 2.0]}
    folder.save()
    before = folder.ages()
    stores = {}
    for name in ("3d_cascade_fullres", "3d_lowres"):
        manifest = folder.manifest.parents[1] / name / "manifest.json"
        store.build(folder.cases(), folder.plan_path, name, manifest, RUNTIME)
        stores[name] = store.ensure(folder.cases(), folder.plan_path, manifest, RUNTIME)
    for part in ARRAYS:
        inodes = [(one.folder / f"b.{part}").stat().st_ino for one in (folder.ensure(), *stores.values())]
        assert inodes[0] == inodes[1] != inodes[2]
    assert folder.redone(before) == set()
    twin, own = stores["3d_cascade_fullres"].read("b"), folder.ensure().read("b")
    np.testing.assert_array_equal(twin.image, own.image)
    assert twin.grid == own.grid
    # a changed case of one is no change of the other
    nifti(folder.root / "imagesTr/b_0000.nii.gz", image_array(99))
    folder.build()
    np.testing.assert_array_equal(stores["3d_cascade_fullres"].read("b").image, own.image)
    assert not np.array_equal(folder.ensure().read("b").image, own.image)


def in_2d(folder: Folder) -> store.Store:
    """A configuration `2d` with the same spacing within the slices."""
    folder.plan["configurations"]["2d"] = {**folder.configuration, "spacing_mm": folder.configuration["spacing_mm"][1:]}
    folder.save()
    manifest = folder.manifest.parents[1] / "2d/manifest.json"
    store.build(folder.cases(), folder.plan_path, "2d", manifest, RUNTIME)
    return store.ensure(folder.cases(), folder.plan_path, manifest, RUNTIME)


def test_2d_has_the_files_of_cases_whose_slices_are_not_resampled(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    for path, array in (("imagesTr/b_0000", image_array()), ("labelsTr/b", label_array())):
        nifti(folder.root / f"{path}.nii.gz", array, (1, 0.8, 2))
    folder.build()
    with caplog.at_level(logging.INFO):
        flat = in_2d(folder)
    assert "2d: 1 cases preprocessed, 2 were there" in caplog.text
    whole = folder.ensure()
    same = {case for case in "abc" if (flat.folder / f"{case}.image.npy").samefile(whole.folder / f"{case}.image.npy")}
    assert same == {"a", "c"}
    for case in "abc":
        volume, label = flat.cases.read_image(case), flat.cases.read_label(case)
        expected = preprocess(volume.array, label, volume.spacing_mm, flat.plan, flat.planned)
        np.testing.assert_array_equal(flat.read(case).image, expected.image)
        assert flat.grid(case) == expected.grid
    assert flat.grid("b").target_mm != whole.grid("b").target_mm


def replaced_meanwhile(patch: pytest.MonkeyPatch, later: str) -> list[Path]:
    """Replace one case's label when its image has been linked, and its record; returns the files that are linked."""
    link, taken = digest.link, []

    def linked(source: Path, target: Path) -> None:
        link(source, target)
        if not taken:
            record = source.with_name(f"{source.name.split('.')[0]}.json")
            label = source.with_name(source.name.replace("image", "label"))
            with digest.new_file(label) as temporary, temporary.open("wb") as file:
                np.save(file, np.zeros(3))
            record.unlink() if later == "gone" else digest.write_json(record, {"digest": "another"})
        taken.append(source)

    patch.setattr(digest, "link", linked)
    return taken


@pytest.mark.parametrize("later", ["gone", "another"])
def test_files_that_are_being_replaced_are_not_taken(
    folder: Folder, later: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        replaced_meanwhile(patch, later)
        flat = in_2d(folder)
    said = [message for message in caplog.messages if message.startswith("2d")]
    assert said == ["2d: 1 cases preprocessed, 2 were there"]
    for case in "abc":
        np.testing.assert_array_equal(flat.read(case).label, folder.ensure().read(case).label)
        assert flat.read(case).label.shape == (7, 10, 9)


def test_an_interruption_leaves_no_record_beside_arrays_of_two_kinds(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, files = digest.read_json, folder.files.parents[1] / "2d/cases"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        taken = replaced_meanwhile(patch, "another")

        def killed(path: Path) -> object:
            """Before it is known whether what was linked is of one kind."""
            if sum(source.name.startswith(f"{path.stem}.") for source in taken) >= len(ARRAYS):
                raise KeyboardInterrupt
            return read(path)

        patch.setattr(digest, "read_json", killed)
        in_2d(folder)
    assert len(list(files.glob("*.npy"))) == 3 * len(ARRAYS)
    assert not list(files.glob("*.json"))
    flat = in_2d(folder)
    for case in "abc":
        np.testing.assert_array_equal(flat.read(case).label, folder.ensure().read(case).label)


def test_a_record_that_vanishes_while_it_is_looked_for_is_none(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job removes it before it replaces the arrays."""
    read, before = digest.read_json, folder.ages()

    def vanished(path: Path) -> object:
        if path == folder.files / "b.json":
            path.unlink(missing_ok=True)
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(digest, "read_json", vanished)
        folder.build()
    assert folder.redone(before) == {"b"}


def test_the_index_of_voxels_takes_four_bytes_each_and_stays_in_its_file(folder: Folder) -> None:
    stored = np.load(folder.files / "a.foreground.npy")
    opened = folder.ensure().open("a").foreground
    assert stored.dtype == np.int32
    np.testing.assert_array_equal(stored, np.concatenate([opened[1], opened[2]]))
    for voxels in opened.values():
        assert isinstance(voxels, np.memmap)
        assert voxels.dtype == np.int32


class Cascade:
    """A folder whose cases have been segmented by a stage before."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.files = {
            case: nifti(folder.root.parents[1] / f"lowres/{case}.nii.gz", np.roll(label_array(), i, 1))
            for i, case in enumerate("abc")
        }

    def build(self) -> None:
        folder = self.folder
        store.build(folder.cases(), folder.plan_path, "3d_fullres", folder.manifest, RUNTIME, self.files)


@pytest.fixture
def cascade(folder: Folder) -> Cascade:
    made = Cascade(folder)
    made.build()
    return made


def test_the_stage_before_lies_on_the_grid_of_the_case(cascade: Cascade) -> None:
    opened = cascade.folder.ensure()
    for index, case in enumerate("abc"):
        volume, label = opened.cases.read_image(case), opened.cases.read_label(case)
        segmented = np.roll(label_array(), index, 1).transpose().astype(np.int16)
        expected = preprocess(volume.array, label, volume.spacing_mm, opened.plan, opened.planned, segmented)
        for found in (opened.read(case), opened.open(case)):
            assert found.previous is not None
            assert expected.previous is not None
            np.testing.assert_array_equal(found.previous, expected.previous)
            assert found.previous.shape == found.image.shape[1:]
    assert isinstance(opened.open("a").previous, np.memmap)


def test_without_a_stage_before_there_is_none(folder: Folder) -> None:
    assert folder.ensure().open("a").previous is None
    assert folder.ensure().read("a").previous is None
    assert "previous" not in digest.read_json(folder.manifest)


def test_the_stage_before_makes_another_store_of_the_same_cases(folder: Folder) -> None:
    before, plain = folder.ages(), folder.ensure().digest
    cascade = Cascade(folder)
    cascade.build()
    after = folder.ages()
    assert folder.ensure().digest != plain
    assert {name for name in after if before.get(name) != after[name]} == {
        f"{case}.previous.{ending}" for case in "abc" for ending in ("npy", "json")
    }


def test_another_segmentation_by_the_stage_before_is_prepared_alone(cascade: Cascade) -> None:
    before, identity = cascade.folder.ages(), cascade.folder.ensure().digest
    nifti(cascade.files["b"], np.roll(label_array(), 3, 1))
    cascade.build()
    after = cascade.folder.ages()
    assert {name for name in after if before[name] != after[name]} == {"b.previous.npy", "b.previous.json"}
    assert cascade.folder.ensure().digest != identity
    cascade.build()
    assert cascade.folder.ages() == after


def test_a_changed_case_gets_its_stage_before_anew(cascade: Cascade) -> None:
    """It may have another grid."""
    before = cascade.folder.ages()
    nifti(cascade.folder.root / "imagesTr/b_0000.nii.gz", image_array(99))
    cascade.build()
    after = cascade.folder.ages()
    assert {name for name in after if before[name] != after[name]} == {
        f"b.{part}" for part in (*PARTS, "previous.npy", "previous.json")
    }


@pytest.mark.parametrize("ending", ["npy", "json"])
def test_a_deleted_segmentation_is_prepared_again(cascade: Cascade, ending: str) -> None:
    path = cascade.folder.files / f"c.previous.{ending}"
    content = path.read_bytes()
    path.unlink()
    cascade.folder.ensure()
    assert path.read_bytes() == content


@pytest.mark.parametrize("gone", [False, True])
def test_another_file_than_the_prepared_one_is_refused(cascade: Cascade, gone: bool) -> None:
    if gone:
        cascade.files["c"].unlink()
    else:
        nifti(cascade.files["c"], np.roll(label_array(), 3, 1))
    cascade.folder.ensure()  # nothing has to be made of it
    (cascade.folder.files / "c.previous.npy").unlink()
    with pytest.raises(SegpipeError) as error:
        cascade.folder.ensure()
    for word in (str(cascade.files["c"]), "no file" if gone else "another file", "preprocess"):
        assert word in str(error.value)
    assert not (cascade.folder.files / "c.previous.npy").exists()
