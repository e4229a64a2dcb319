"""Rules on a label map: what is removed, in mm and voxels, of classes and of regions."""

import json

import numpy as np
import pytest
from tiny import labels_of

from segpipe import digest
from segpipe.errors import SegpipeError
from segpipe.inference import postprocess
from segpipe.inference.postprocess import Rule, apply

TWO = labels_of({"background": 0, "organ": 1, "tumour": 2})
REGIONS = labels_of({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
MM = (1.0, 1.0, 1.0)


def label_map():
    """Of the organ 8 voxels and, apart, 2; of the tumour 4 at the large organ's side, and 1 alone."""
    array = np.zeros((6, 12, 12), np.int16)
    array[1:3, 1:3, 1:3] = 1
    array[1:3, 1:3, 3] = 2
    array[4, 8, 8:10] = 1
    array[0, 11, 11] = 2
    return array


def test_the_largest_component_of_all_foreground_stays():
    """Of several classes together: the tumour at the organ's side is part of it."""
    expected = label_map()
    expected[4], expected[0] = 0, 0
    assert np.array_equal(apply(label_map(), TWO, [Rule(None, largest_component=True)], MM), expected)


def test_the_largest_component_of_a_class_stays():
    expected = label_map()
    expected[0] = 0
    given = label_map()
    assert np.array_equal(apply(given, TWO, [Rule("tumour", largest_component=True)], MM), expected)
    assert np.array_equal(given, label_map())  # as it was


def test_components_that_touch_at_a_corner_are_one():
    array = np.zeros((4, 4, 4), np.int16)
    array[0, 0, 0] = array[1, 1, 1] = array[3, 3, 3] = 1
    result = apply(array, TWO, [Rule("organ", largest_component=True)], MM)
    assert np.argwhere(result).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_of_equal_components_all_stay():
    array = np.zeros((1, 4, 4), np.int16)
    array[0, 0, 0] = array[0, 3, 3] = 1
    assert np.array_equal(apply(array, TWO, [Rule("organ", largest_component=True)], MM), array)


@pytest.mark.parametrize(("voxels", "left"), [(2, [8, 2]), (3, [8]), (8, [8]), (9, [])])
def test_components_below_a_number_of_voxels_go(voxels, left):
    result = apply(label_map(), TWO, [Rule("organ", minimum_voxels=voxels)], MM)
    assert [n for n in (np.count_nonzero(result[1:3] == 1), np.count_nonzero(result[4] == 1)) if n] == left
    assert np.count_nonzero(result == 2) == 5


@pytest.mark.parametrize(("ml", "spacing_mm", "left"), [(0.002, MM, 10), (0.0021, MM, 8), (0.3, (10, 10, 0.5), 8)])
def test_sizes_in_ml_are_those_of_the_voxels(ml, spacing_mm, left):
    """A component of exactly the minimum stays, whatever the rounding."""
    assert np.count_nonzero(apply(label_map(), TWO, [Rule("organ", minimum_ml=ml)], spacing_mm) == 1) == left


def test_both_the_largest_and_large_enough():
    rule = Rule("organ", largest_component=True, minimum_voxels=9)
    assert not (apply(label_map(), TWO, [rule], MM) == 1).any()


def test_rules_follow_each_other():
    rules = [Rule(None, largest_component=True), Rule("tumour", minimum_voxels=5)]
    result = apply(label_map(), TWO, rules, MM)
    assert np.count_nonzero(result == 1) == 8
    assert np.count_nonzero(result) == 8


def test_a_region_is_all_its_values_and_what_goes_is_background():
    """As in nnU-Net, also of a region within another one."""
    result = apply(label_map(), REGIONS, [Rule("whole", largest_component=True)], MM)
    assert np.count_nonzero(result == 1) == 8
    assert np.count_nonzero(result == 2) == 4
    inner = apply(label_map(), REGIONS, [Rule("core", minimum_voxels=5)], MM)
    assert np.count_nonzero(inner == 1) == 10
    assert not (inner == 2).any()


@pytest.mark.parametrize("rule", [Rule(None, largest_component=True), Rule("tumour", True, minimum_ml=1.0)])
def test_nothing_to_remove(rule):
    empty = np.zeros((2, 3, 4), np.int16)
    assert np.array_equal(apply(empty, TWO, [rule], MM), empty)


def test_rules_are_read_as_they_were_written(tmp_path):
    rules = [Rule(None, largest_component=True), Rule("tumour", minimum_ml=0.1), Rule("organ", minimum_voxels=3)]
    path = tmp_path / "postprocessing.json"
    digest.write_json(path, {"rules": [postprocess.to_json(rule) for rule in rules], "labels": TWO.to_json()})
    assert postprocess.read(path, TWO) == postprocess.read(path) == rules
    with pytest.raises(SegpipeError, match=r"(?s)other labels.*organ.*whole"):
        postprocess.read(path, REGIONS)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"labels": TWO.to_json(), "rules": [{"off": "organ"}]})]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "rules.json"
    path.write_text(content)
    with pytest.raises(SegpipeError, match=r"no postprocessing rules\n.*rules\.json"):
        postprocess.read(path)
    with pytest.raises(SegpipeError, match="No such file"):
        postprocess.read(tmp_path / "absent.json")


def test_a_rule_in_words():
    assert str(Rule(None, largest_component=True)) == "all foreground: the largest component"
    assert str(Rule("organ", True, minimum_ml=0.5)) == "organ: the largest component, components of 0.5 ml or more"
