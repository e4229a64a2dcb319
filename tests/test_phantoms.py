"""The generated dataset: the same seed gives the same files, and they pass the check."""

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pytest
from volumes import CHECK

from segpipe import digest
from segpipe.data import check, phantoms
from segpipe.data.image import read_image, read_label
from segpipe.params import Phantoms

SETTINGS = Phantoms(n_train=5, n_test=2, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / phantoms.NAME
    phantoms.generate(folder, SETTINGS)
    return folder


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_listed_files_are_those_that_are_written(root: Path) -> None:
    assert sorted(contents(root)) == sorted(phantoms.files(SETTINGS))
    assert len(phantoms.files(SETTINGS)) == 1 + 2 * 5 + 2


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    phantoms.generate(tmp_path, SETTINGS)
    assert contents(tmp_path) == contents(root)


def test_a_case_does_not_depend_on_how_many_there_are(root: Path, tmp_path: Path) -> None:
    phantoms.generate(tmp_path, Phantoms(n_train=6, n_test=0, seed=3))
    fewer, more = contents(root), contents(tmp_path)
    name = "imagesTr/phantom_004_0000.nii.gz"
    assert fewer[name] == more[name]


def test_seeds_and_cases_differ(root: Path, tmp_path: Path) -> None:
    phantoms.generate(tmp_path, SETTINGS.model_copy(update={"seed": 4}))
    both = [*contents(root).items(), *contents(tmp_path).items()]
    images = [content for name, content in both if name.startswith("images")]
    assert len(set(images)) == len(images) == 14


@pytest.mark.parametrize("case", [f"phantom_{index:03d}" for index in range(5)])
def test_every_class_is_present_inside_the_body(root: Path, case: str) -> None:
    label = read_label(root / f"labelsTr/{case}.nii.gz").array[0]
    image = read_image(root / f"imagesTr/{case}_0000.nii.gz").array[0]
    assert np.unique(label).tolist() == sorted(phantoms.LABELS.values())
    assert (np.bincount(label.ravel()) > 50).all()
    assert (image[label > 0] > 0).all()
    assert image[0, 0, 0] == 0  # outside the body, so that cropping and masked normalisation have work to do


def test_grids_are_anisotropic_oblique_and_vary(root: Path) -> None:
    images = [read_image(path) for path in sorted((root / "imagesTr").iterdir())]
    assert all(image.spacing_mm[0] > 1.3 * image.spacing_mm[1] for image in images)
    assert len({image.spacing_mm for image in images}) == len({image.shape for image in images}) == 5
    for image in images:
        directions = image.affine[:3, :3] / image.spacing_mm[::-1]
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
        assert np.abs(directions - np.eye(3)).max() > 0.02


def test_image_and_label_share_their_grid_and_pass_the_check(root: Path, tmp_path: Path) -> None:
    check.check(root, tmp_path / "cases.json", CHECK.model_copy(update={"geometry_tolerance_mm": 1e-3}), 5)
    content = digest.read_json(tmp_path / "cases.json")
    assert (len(content["training"]), len(content["test"])) == (5, 2)
    assert content["labels"]["names"] == {name: [value] for name, value in phantoms.LABELS.items()}
    for case, entry in content["training"].items():
        assert nibabel.load(root / f"labelsTr/{case}.nii.gz").shape == tuple(entry["shape"][::-1])
