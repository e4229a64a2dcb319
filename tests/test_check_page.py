"""The table and the page of the check: what they say, also of datasets that cannot be used; the pictures."""

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from volumes import CHECK, REPO, describe, image_array, label_array, nifti, nnunet_dataset, turn

from segpipe.cli import main
from segpipe.data import check, check_page, check_picture, check_report, planes
from segpipe.data.check_report import ALL_CASES, EXAMPLES
from segpipe.data.image import Volume
from segpipe.data.labels import parse

LABELS = parse({"background": 0, "liver": 1, "kidney": 2}, None, "here")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nnunet_dataset(tmp_path / "Dataset001_Small")


def page(root: Path) -> str:
    return check_page.html(check.inspect(root, CHECK, 2))


def table(root: Path) -> str:
    return check_report.table(check.inspect(root, CHECK, 2))


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count = 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += 1
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(text: str) -> list[NDArray[np.uint8]]:
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in found]


# the page


def test_a_page_has_a_row_and_a_picture_per_case(root: Path) -> None:
    text = page(root)
    Tags(text)
    for case in ("a", "b", "c", "t0"):
        assert f'<b id="case-{case}">{case}</b>' in text
    assert len(pictures(text)) == 4
    assert "It can be used" in text
    assert "7 x 8 x 9<br>1 x 1 x 1 mm<br>RAS" in text
    liver = int((label_array() == 1).sum())
    assert f"liver {liver} ({liver / 1000:.4g} ml)" in text


def test_a_page_needs_no_other_file_and_no_place(root: Path) -> None:
    text = page(root)
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "<script" not in text
    assert str(root) not in text


def test_the_same_dataset_gives_the_same_page(root: Path) -> None:
    assert page(root) == page(root)


def test_names_are_escaped(root: Path) -> None:
    describe(root, labels={"background": 0, "<b>liver": 1, "kid&ney": 2}, channel_names={"0": "<i>MRI"})
    for case in ("images", "labels"):
        ending = "_0000.nii.gz" if case == "images" else ".nii.gz"
        (root / f"{case}Tr/a{ending}").rename(root / f"{case}Tr/a&<u>{ending}")
    text = page(root)
    assert "<b>liver" not in text
    assert "&lt;b&gt;liver" in text
    assert "kid&amp;ney" in text
    assert "a&amp;&lt;u&gt;" in text
    Tags(text)


def test_a_page_of_problems_names_the_cases(root: Path) -> None:
    (root / "imagesTr/a_0000.nii.gz").write_bytes(b"")
    nifti(root / "labelsTr/b.nii.gz", label_array((9, 8, 6)))
    nifti(root / "labelsTr/c.nii.gz", label_array() * 5)
    describe(root, numTraining=7)
    text = page(root)
    Tags(text)
    assert "4 problem(s): it cannot be used" in text
    assert "wrong number of cases" in text
    assert '<a href="#case-a">a</a>: unreadable file' in text
    assert '<a href="#case-b">b</a>: shapes differ' in text
    assert '<a href="#case-c">c</a>: unknown label values' in text
    assert len(pictures(text)) == 3  # none of a, which cannot be read


def test_warnings_stand_with_their_case_and_together(root: Path) -> None:
    nifti(root / "labelsTr/b.nii.gz", label_array() * 0)
    text = page(root)
    assert '<a href="#case-b">b</a>: no voxel of any class' in text
    assert '<div class="warning">empty label: no voxel of any class</div>' in text
    assert "It can be used" in text


# the pictures


COLOUR = np.array([tuple(bytes.fromhex(planes.colour(value)[1:])) for value in (1, 2)])


def where(picture: NDArray[np.uint8], value: int) -> NDArray[np.intp]:
    """Rows and columns of the pixels in the colour of a class, (n, 2)."""
    return np.argwhere((picture == COLOUR[value - 1]).all(-1))


def volume(array: NDArray[np.generic], spacing_mm: Sequence[float], affine: NDArray[np.float64]) -> Volume:
    z, y, x = spacing_mm
    return Volume(array[None], (z, y, x), affine)


def picture(path: Path, label: Path) -> NDArray[np.uint8]:
    from segpipe.data.image import read_image, read_label

    png = check_picture.png(read_image(path), read_label(label), LABELS)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.fixture
def patient(tmp_path: Path) -> tuple[Path, Path]:
    """A bright face in front (+Y); behind, the liver on the left (-X) and the smaller kidney on the right."""
    image, label = np.zeros((20, 30, 16), np.float32), np.zeros((20, 30, 16), np.uint8)
    image[8:12, 26:] = 100
    label[2:7, 2:8, 10:12] = 1
    label[16:18, 2:6, 10:12] = 2
    edges_mm = (1, 1.2, 1.4)
    return nifti(tmp_path / "image.nii", image, edges_mm), nifti(tmp_path / "label.nii", label, edges_mm)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PLI", "SAR"])
def test_every_patient_is_seen_from_the_feet(patient: tuple[Path, Path], codes: str) -> None:
    """However the file lies: front up, the patient's right on the left."""
    expected = picture(*patient)
    for path in patient:
        turn(path, codes)
    found = picture(*patient)
    np.testing.assert_array_equal(found, expected)
    height, width, _ = found.shape
    assert (height, width) == (160, round(160 * 20 / 36))
    rows, columns = np.nonzero(found[..., 0] == 255)
    assert rows.max() < height / 4  # the face
    assert where(found, 1)[:, 0].min() > height / 2
    assert where(found, 1)[:, 1].min() > width / 2
    assert where(found, 2)[:, 1].max() < width / 2
    assert columns.min() > width / 4


def test_a_stack_of_thick_slices_is_shown_slice_by_slice(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", image_array(shape=(6, 30, 20)), (8, 1, 1))
    array = np.zeros((6, 30, 20), np.uint8)
    array[4, 5:9, 5:9] = 1
    label = nifti(tmp_path / "label.nii", array, (8, 1, 1))
    found = picture(image, label)
    assert found.shape[:2] == (round(160 * 20 / 30), 160)  # Y, Z: sagittal
    assert len(where(found, 1))


def test_a_small_lesion_is_not_lost(tmp_path: Path) -> None:
    image = nifti(tmp_path / "image.nii", image_array(shape=(500, 500, 2)))
    array = np.zeros((500, 500, 2), np.uint8)
    array[101, 103, 1] = 1
    assert len(where(picture(image, nifti(tmp_path / "label.nii", array)), 1)) == 1


def test_a_photograph_keeps_its_colours() -> None:
    array = np.zeros((3, 1, 40, 40), np.float32)
    array[0, 0, :, :20] = 255
    array[2, 0, :, 20:] = 200
    png = check_picture.png(Volume(array, (999, 1, 1), np.eye(4), is_2d=True), None, LABELS)
    found = np.asarray(Image.open(io.BytesIO(png)))
    assert found.shape == (160, 160, 3)
    assert found[80, 20].tolist() == [255, 0, 0]
    assert found[80, 140].tolist() == [0, 0, 255]


@pytest.mark.filterwarnings("error")
def test_a_constant_image_has_a_picture() -> None:
    png = check_picture.png(volume(np.full((4, 5, 6), 7.0), (1, 1, 1), np.eye(4)), None, LABELS)
    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).max() == 0


# the table


def test_the_table_of_a_small_dataset_has_a_line_per_case(root: Path) -> None:
    text = table(root)
    counts = np.bincount(label_array().ravel())
    assert text.startswith("Dataset001_Small: 3 training and 1 test cases\n")
    assert re.search(
        rf"^  liver +3 of 3 +{counts[1]} +{counts[1] / 1000:.4g} +{100 * counts[1] / 504:.2g} %$", text, re.M
    )
    assert re.search(rf"^  b +training +7 x 8 x 9 +1 x 1 x 1 +RAS +{counts[1]} +{counts[2]}$", text, re.M)
    assert re.search(r"^  t0 +test .* - +-$", text, re.M)
    assert text.endswith("problems: 0, warnings: 0")


def test_the_table_of_a_large_dataset_sums_up(tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_Large"
    describe(root)
    for number in range(ALL_CASES + 1):
        nifti(root / f"imagesTr/case{number:02d}_0000.nii", image_array(number, (4, 4, 4)))
        nifti(root / f"labelsTr/case{number:02d}.nii", np.zeros((4, 4, 4), np.uint8))
    describe(root, file_ending=".nii", numTraining=ALL_CASES + 1)
    text = table(root)
    assert "warning: empty label (41 cases)" in text
    assert text.count("no voxel of any class") == EXAMPLES
    assert f"... and {ALL_CASES + 1 - EXAMPLES} more: check.html" in text
    assert " training " not in text.split("\n", 1)[1]


def test_the_table_names_the_mapping_of_labels(root: Path) -> None:
    assert "mapping" not in table(root)
    describe(root, labels={"background": 0, "liver": 1, "kidney": 2, "spleen": 40})
    assert "0 in the files is 0, 1 in the files is 1, 2 in the files is 2, 40 in the files is 3" in table(root)


# the command and the rule


def segpipe(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from segpipe.cli.main import main; main()", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_shows_the_table_and_writes_the_page(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--params", str(REPO / "params.yaml")]
    done = segpipe("check", root, *settings, cwd=tmp_path)
    assert done.returncode == 2  # three cases, five folds
    assert "fewer cases than folds" in done.stderr
    assert "warnings: 0" in done.stdout
    assert "fewer cases than folds" in (tmp_path / "check.html").read_text()
    nnunet_dataset(root, n_train=5)
    monkeypatch.setattr(main, "start_log", lambda path: None)  # it would take pytest's own away
    main.main(["check", str(root), "--out", str(tmp_path / "there"), *settings])
    assert "problems: 0" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["check.html"]


def test_the_check_writes_the_page_beside_the_list(root: Path, tmp_path: Path) -> None:
    check.check(root, tmp_path / "out/cases.json", CHECK, 2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == ["cases.json", "check.html"]
