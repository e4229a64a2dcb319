"""Pictures and charts of the report: the right place, the right proportions, lines where they belong; volumes.csv."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reported
from numpy.typing import NDArray
from tiny import FOUR, labels_of
from volumes import CHECK, affine, image_array, label_array, nifti, nnunet_dataset, turn

from segpipe.data import check, image
from segpipe.data.cases import Cases
from segpipe.data.image import Volume
from segpipe.report import charts, curves, outlines, overlays, pictures, volumes
from segpipe.report.outlines import LARGEST_PX, Drawn

SHAPE = (4, 20, 30)
SPACING_MM = (6.0, 1.0, 2.0)


def volume(array: NDArray[Any], spacing_mm: tuple[float, ...] = SPACING_MM, is_2d: bool = False) -> Volume:
    z, y, x = spacing_mm
    return Volume(array, (z, y, x), affine((x, y, z)), is_2d)


def gray(shape: tuple[int, ...] = (1, *SHAPE)) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def blocks(*boxes: tuple[int, tuple[slice, ...]], shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    array = np.zeros(shape, np.int16)
    for value, box in boxes:
        array[box] = value
    return array


BLOCK = (1, (slice(1, 3), slice(4, 12), slice(10, 20)))


# proportions


def points_mm(svg: str, kind: str) -> NDArray[np.float64]:
    """The corners of a path as they are seen, (n, 2) x and y in mm."""
    scale = [float(one) for one in re.findall(r"scale\((\S+) (\S+)\)", svg)[0]]
    (text,) = re.findall(rf'class="{kind}"[^>]* d="([^"]*)"', svg)
    corners: list[list[float]] = []
    for word, x, y in re.findall(r"([Ml])(\S+?) ([-\d.]+)", text):
        start = corners[-1] if word == "l" else [0.0, 0.0]
        corners.append([start[0] + float(x), start[1] + float(y)])
    return np.array(corners) * scale


def drawn(name: str, predicted: NDArray[np.int16], reference: NDArray[np.int16] | None = None) -> str:
    planes = dict(overlays.planes(volume(gray()), predicted, reference, FOUR, None))
    return outlines.svg(planes[name], name)


@pytest.mark.parametrize(
    ("name", "extent_mm", "of_block_mm"),
    [("axial", (30 * 2, 20 * 1), (20, 8)), ("coronal", (30 * 2, 4 * 6), (20, 12)), ("sagittal", (20, 4 * 6), (8, 12))],
)
def test_planes_have_the_proportions_of_the_body(
    name: str, extent_mm: tuple[float, float], of_block_mm: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "AROUND", 10)
    svg = drawn(name, blocks(BLOCK))
    width, height = (float(one) for one in re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    assert (width, height) == extent_mm
    assert re.search(rf'<image width="{width:g}" height="{height:g}" preserveAspectRatio="none"', svg)
    assert np.ptp(points_mm(svg, "prediction"), axis=0) == pytest.approx(of_block_mm)


def test_what_surrounds_the_classes_is_cut_away() -> None:
    svg = drawn("axial", blocks((1, (slice(1, 3), slice(8, 12), slice(13, 17)))))  # 4 x 4 voxels of 1 x 2 mm
    margin_mm = overlays.AROUND * 12  # two slices of 6 mm are its longest edge
    width, height = (float(one) for one in re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    assert height == 4 + 2 * np.ceil(margin_mm)
    assert width == 8 + 2 * 2 * np.ceil(margin_mm / 2)


def test_a_large_plane_is_reduced_and_keeps_its_lines() -> None:
    mask = np.zeros((400, 1000), np.int16)
    mask[100:300, 200:600] = 3
    svg = outlines.svg(Drawn([gray((400, 1000))], {"reference": mask}, (1.0, 0.5)), "large")
    corners = points_mm(svg, "reference")
    pixel_mm = 1000 / LARGEST_PX
    assert corners.min(axis=0) == pytest.approx([100, 100], abs=pixel_mm)
    assert corners.max(axis=0) == pytest.approx([300, 300], abs=pixel_mm)
    assert len(svg) < 200_000


def test_the_line_of_a_pixel_surrounds_it() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    corners = points_mm(f'scale(1 1) class="one" d="{outlines.path(mask)}"', "one")
    assert corners.min(axis=0).tolist() == [2, 1]
    assert corners.max(axis=0).tolist() == [3, 2]


def test_a_hole_has_a_line_of_its_own_and_straight_lines_have_no_points_between() -> None:
    mask = np.ones((40, 40), bool)
    mask[10:20, 10:20] = False
    text = outlines.path(mask)
    assert text.count("M") == 2
    assert text.count("l") < 16


def test_the_image_lies_as_it_is_looked_at_however_it_is_stored(tmp_path: Path) -> None:
    array, label = image_array(), label_array()
    pictures_of = []
    for codes in ("RAS", "LPI", "SAR"):
        paths = [
            nifti(tmp_path / codes / name, one, (1, 2, 3)) for name, one in (("i.nii.gz", array), ("l.nii.gz", label))
        ]
        for path in paths:
            turn(path, codes)
        read = image.read_image(paths[0])
        predicted = image.read_label(paths[1]).array[0]
        planes = overlays.planes(read, predicted, None, FOUR, None)
        pictures_of.append([outlines.svg(plane, name) for name, plane in planes])
    assert pictures_of[0] == pictures_of[1] == pictures_of[2]


def test_the_patients_left_front_and_head_are_right_and_up() -> None:
    label = np.zeros((8, 10, 12), np.int16)  # axes lead to the right, to the front and up
    label[5:, 6:, :5] = 1
    image_ = Volume(gray((1, 8, 10, 12)), (1.0, 1.0, 1.0), np.eye(4))
    planes = dict(overlays.planes(image_, label, None, FOUR, None))
    for name, plane in planes.items():
        rows, columns = np.nonzero(plane.maps["prediction"])
        height, width = plane.maps["prediction"].shape
        assert columns.mean() > (width - 1) / 2, name
        assert rows.mean() < (height - 1) / 2, name


def test_a_2d_image_is_one_picture_in_its_colours() -> None:
    array = gray((3, 1, 20, 30))
    label = blocks((1, (slice(0, 1), slice(4, 12), slice(10, 20))), shape=(1, 20, 30))
    ((name, plane),) = overlays.planes(volume(array, (999.0, 1.0, 1.0), is_2d=True), label, label, FOUR, None)
    assert name == "image"
    assert len(plane.channels) == 3
    assert plane.maps["reference"][plane.maps["reference"] > 0].size == 80
    assert np.array_equal(plane.channels[1], array[1, 0, : plane.channels[1].shape[0], 6:24])


# where to look


def test_planes_go_through_the_place_where_most_is_wrong() -> None:
    reference = blocks((1, (slice(0, 4), slice(2, 18), slice(2, 28))))
    predicted = reference.copy()
    predicted[0, 2:18, 2] = 0  # many voxels, but thin
    predicted[2:4, 12:17, 20:26] = 2
    wrong = overlays.errors(predicted, reference, FOUR, None)
    assert np.array_equal(wrong, predicted != reference)
    z, y, x = overlays.where_to_look(wrong, reference > 0, (1.0, 1.0, 1.0))
    assert 2 <= z < 4
    assert 12 <= y < 17
    assert 20 <= x < 26


def test_without_errors_planes_go_through_the_foreground_and_without_that_through_the_middle() -> None:
    label = blocks(BLOCK)
    nothing = np.zeros(SHAPE, bool)
    assert label[overlays.where_to_look(nothing, label > 0, SPACING_MM)] == 1
    assert overlays.where_to_look(None, nothing, SPACING_MM) == (2, 10, 15)
    assert overlays.shown_box(nothing, SPACING_MM) == tuple(slice(0, n) for n in SHAPE)


def test_what_nobody_annotated_is_no_error() -> None:
    labels = labels_of({"background": 0, "one": 1, "two": 2, "ignore": 3})
    reference, predicted = np.array([[[0, 1, 3, 0, 2]]]), np.array([[[1, 1, 1, 2, 0]]])
    assert overlays.errors(predicted, reference, labels, None).tolist() == [[[True, False, False, True, True]]]
    assert overlays.errors(predicted, reference, labels, ["one"]).tolist() == [[[True, False, False, False, False]]]


def test_the_ignore_label_has_no_outline() -> None:
    labels = labels_of({"background": 0, "one": 1, "ignore": 2})
    reference = blocks(BLOCK, (2, (slice(1, 3), slice(14, 18), slice(10, 20))))
    ((_, plane), *_) = overlays.planes(volume(gray()), blocks(BLOCK), reference, labels, None)
    assert set(np.unique(plane.maps["reference"])) == {0, 1}


def test_cases_are_chosen_from_the_worst_to_the_best() -> None:
    cases = [pictures.Case(str(i), "0", {"1": {"Dice": i / 10}}, Path()) for i in range(7)]
    assert [(what, case.name) for what, case in pictures.chosen(cases, 3)] == [
        ("worst", "0"),
        ("median", "3"),
        ("best", "6"),
    ]
    assert [case.name for _, case in pictures.chosen(cases, 1)] == ["0"]
    assert [case.name for _, case in pictures.chosen(cases, 100)] == list("0123456")
    assert pictures.chosen([], 3) == []


# charts


def test_curves_show_each_fold_and_each_class() -> None:
    labels = labels_of({"background": 0, "one": 1, "two": 2})
    rows: curves.Rows = [
        {"epoch": 1.0, "train_loss": 2.0, "val_loss": 1.0, "dice_mean": 0.0, "dice_one": 0.0, "dice_two": None},
        {"epoch": 2.0, "train_loss": 1.0, "val_loss": None, "dice_mean": 1.0, "dice_one": 1.0, "dice_two": None},
        {"epoch": 3.0, "train_loss": 0.5, "val_loss": 0.5, "dice_mean": 0.5, "dice_one": 0.2, "dice_two": None},
    ]
    loss, dice, of_classes, rate = curves.charts({"0": rows, "1": rows}, labels)
    assert loss.count("<polyline") == 4
    assert rate == "", "no such column"
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    (points,) = re.findall(r'points="([^"]*)"><title>one', of_classes)
    xs, ys = np.array([[float(n) for n in point.split(",")] for point in points.split()]).T
    assert ys.tolist() == pytest.approx([bottom, top, bottom - 0.2 * (bottom - top)], abs=0.06)
    assert xs.tolist() == pytest.approx([charts.LEFT, (charts.LEFT + charts.WIDTH - 8) / 2, charts.WIDTH - 8])
    assert "two" not in of_classes, "a class that was never there has no line"
    assert len(set(re.findall(r'stroke="(#\w+)"', dice))) == 2


def test_a_long_training_has_no_more_points_than_are_seen() -> None:
    rows: curves.Rows = [{"epoch": float(i), "dice_mean": float(i % 2)} for i in range(1, 2001)]
    _, dice, *_ = curves.charts({"0": rows}, FOUR)
    (points,) = re.findall(r'points="([^"]*)"', dice)
    assert len(points.split()) <= curves.MOST_POINTS
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert np.ptp(heights) < (charts.HEIGHT - charts.TOP - charts.BOTTOM) / 2, "means of neighbours, not every n-th"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-0.83, 0.4, [-1, -0.5, 0, 0.5]), (3, 3, [3, 4]), (0, 0, [0, 0.2])],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, ticks: list[float]) -> None:
    found = charts.nice(low, high, 5)
    assert found[0] <= low <= high <= found[-1]
    assert found[: len(ticks)] == pytest.approx(ticks)


# volumes


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_volumes_are_voxels_times_their_size(tmp_path: Path) -> None:
    run = reported.run(tmp_path)
    rows = read(tmp_path / "volumes.csv")
    assert rows == run.volumes
    assert [(row["case"], row["split"]) for row in rows[:2]] == [("a&b", volumes.LABEL)] * 2
    counts = {(row["case"], row["split"], row["class"]): row for row in rows}
    assert len(rows) == (6 + 6 + 1) * 2 == len(counts)
    liver = counts["a&b", volumes.LABEL, "<b>liver</b>"]
    assert liver["voxels"] == str(10 * 10 * 6)
    assert float(liver["volume_ml"]) == pytest.approx(600 * 3 / 1000)
    assert [liver[f"spacing_{axis}_mm"] for axis in "zyx"] == ["3", "1", "1"]
    assert counts["f", volumes.VALIDATION, "kidney"]["voxels"] == "0"
    assert ("t0", volumes.TEST, "kidney") in counts


def test_a_class_without_annotations_has_no_line_and_a_2d_image_no_volume(tmp_path: Path) -> None:
    root = nnunet_dataset(tmp_path / "Dataset001_Part")
    nifti(root / "labelsTr/a.nii.gz", label_array(n_classes=2))
    (root / "cases.tsv").write_text("case\tannotated\na\tliver\n")
    check.check(root, tmp_path / "cases.json", CHECK, 2)
    cases = Cases.read(tmp_path / "cases.json", root)
    volumes.write(cases, [], None, tmp_path / "volumes.csv", reported.tiny.params().runtime)
    assert [row["class"] for row in read(tmp_path / "volumes.csv") if row["case"] == "a"] == ["liver"]
    for entry in cases.content["training"].values():
        entry["spacing_mm"] = [999.0, 1.0, 1.0]
    volumes.write(cases, [], None, tmp_path / "flat.csv", reported.tiny.params().runtime)
    assert {row["volume_ml"] for row in read(tmp_path / "flat.csv")} == {""}


def test_unusual_volumes_are_found() -> None:
    def row(case: str, split: str, ml: float) -> volumes.Row:
        return {"case": case, "split": split, "class": "liver", "voxels": "1", "volume_ml": f"{ml}"}

    usual = [row(str(i), volumes.LABEL, 100 + i) for i in range(10)]
    tests = [row("small", volumes.TEST, 20), row("fine", volumes.TEST, 110), row("none", volumes.TEST, 0)]
    found = pictures.unusual([*usual, *tests, row("v", volumes.VALIDATION, 1)], 5.0)
    assert {case for case, _ in found} == {"small", "none"}
    assert found["none", "liver"] == "missing"
    assert pictures.unusual([*usual[:4], *tests], 5.0) == {}, "too few to say what is usual"
    empty_too = [*usual, row("x", volumes.LABEL, 0), *tests]
    assert {case for case, _ in pictures.unusual(empty_too, 5.0)} == {"small"}, "a class that need not be there"
