"""Labels: what a dataset.json may say of them, nnU-Net's order of outputs, values in the files and in the training."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe import digest
from segpipe.data.labels import Labels, belongs, parse
from segpipe.errors import SegpipeError

REGIONS = {"background": 0, "whole": [1, 2, 3], "active": 3, "core": [2, 3]}
ORDER = [1, 3, 2]

# dataset.json, order, and what nnU-Net 2.8.1's LabelManager makes of it: values or regions of the foreground in order,
# outputs of the network, ignore label
NNUNET = {
    "plain, not in order": ({"background": 0, "b": 2, "a": 1}, None, [(1,), (2,)], 3, None),
    "ignore label": ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None, [(1,), (2,)], 3, 3),
    "regions": (REGIONS, ORDER, [(1, 2, 3), (3,), (2, 3)], 3, None),
    "regions and ignore label": ({**REGIONS, "ignore": 4}, ORDER, [(1, 2, 3), (3,), (2, 3)], 3, 4),
}


@pytest.mark.parametrize("name", NNUNET)
def test_outputs_and_their_order_are_nnunets(name):
    content, order, foreground, n_heads, ignore = NNUNET[name]
    labels = parse(content, order, "dataset.json")
    assert list(labels.foreground.values()) == foreground
    assert len(labels.heads) == n_heads
    assert list(labels.heads.values()) == (foreground if order else [(0,), *foreground])
    assert labels.ignore == ignore
    assert labels.has_regions == (order is not None)
    assert labels.regions_order == (None if order is None else tuple(order))
    assert labels.n_values == (4 if order else 3)  # the ignore label is none of them
    assert labels.file_values == tuple(range(labels.n_values + (ignore is not None)))


def test_a_network_of_regions_has_no_output_for_the_background():
    labels = parse(REGIONS, ORDER, "dataset.json")
    assert list(labels.heads) == list(labels.foreground) == ["whole", "active", "core"]
    assert "background" in labels.names


def test_values_need_not_be_consecutive():
    labels = parse({"liver": 205, "background": 0, "ignore": 255, "vessel": 7}, None, "dataset.json")
    assert labels.names == {"liver": (2,), "background": (0,), "vessel": (1,)}
    assert (labels.file_values, labels.ignore, labels.n_values) == ((0, 7, 205, 255), 3, 3)
    assert list(labels.heads) == ["background", "vessel", "liver"]
    assert labels.from_files(np.array([0, 7, 205, 255, 6, -3, 300])).tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert labels.to_files(np.array([2, 1, 0, 2])).tolist() == [205, 7, 0, 205]
    assert [labels.key(name) for name in labels.foreground] == ["7", "205"]
    assert labels.described() == "205 (liver); 0 (background); 7 (vessel); 255 (ignore)"


@pytest.mark.parametrize("strange", [-1, 3, 4])
def test_values_that_nothing_changes_are_still_looked_at(strange: int) -> None:
    labels = parse({"background": 0, "one": 1, "two": 2}, None, "dataset.json")
    same = np.array([[0, 1], [2, 0]], np.int16)
    assert labels.from_files(same) is same
    assert labels.from_files(np.array([[0, strange], [2, 0]], np.int16)).tolist() == [[0, -1], [2, 0]]


def test_a_label_map_without_voxels_has_none_afterwards():
    labels = parse({"background": 0, "one": 7}, None, "dataset.json")
    for shape in ((0,), (0, 4, 5), (4, 0, 5)):
        found = labels.from_files(np.empty(shape, np.uint8))
        assert (found.shape, found.dtype) == (shape, np.int16)


def test_an_ignore_label_below_the_classes_is_the_last_value_of_the_training():
    labels = parse({"background": 0, "ignore": 1, "liver": 2}, None, "dataset.json")
    assert (labels.ignore, labels.file_values) == (2, (0, 2, 1))
    assert labels.from_files(np.array([0, 1, 2])).tolist() == [0, 2, 1]


def test_regions_of_values_that_are_not_consecutive():
    labels = parse({"background": 0, "whole": [40, 10], "core": 40}, [10, 40], "dataset.json")
    assert labels.names == {"background": (0,), "whole": (1, 2), "core": (2,)}
    assert labels.regions_order == (1, 2)
    assert [labels.key(name) for name in labels.foreground] == ["(10, 40)", "40"]
    assert labels.described() == "0 (background); 10, 40 (whole); 40 (core)"


def test_the_decathlons_form_has_values_first():
    expected = parse({"background": 0, "liver": 1, "cancer": 2}, None, "x")
    assert parse({"0": "background", "1": "liver", "2": "cancer"}, None, "x") == expected


def test_values_as_text_are_values():
    expected = parse({"background": 0, "liver": 1}, None, "x")
    assert parse({"background": "0", "liver": "1"}, None, "x") == expected


def test_an_order_without_regions_says_nothing():
    assert parse({"background": 0, "liver": 1}, [1], "x") == parse({"background": 0, "liver": 1}, None, "x")


@pytest.mark.parametrize(
    ("content", "order", "what"),
    [
        ({"liver": 1, "vessel": 2}, None, "no background"),
        ({}, None, "no background"),
        ({"background": 0}, None, "nothing to learn"),
        ({"background": 0, "ignore": 1}, None, "nothing to learn"),
        ({"background": 0, "liver": 1, "vessel": 1}, None, "two classes with the same value"),
        ({"background": 0, "liver": 0}, None, "two classes with the same value"),
        ({"background": 0, "a": [1, 2], "b": [2, 1]}, [1, 2], "two classes with the same value"),
        ({"background": 0, "liver": 1, "ignore": 1}, None, "the ignore label is a class as well"),
        ({"background": 0, "whole": [1, 2], "ignore": 2}, [1], "the ignore label is a class as well"),
        ({"background": 0, "whole": [0, 1]}, [1], "a region with background in it"),
        ({"background": 0, "liver": -1}, None, "a class without a usable value"),
        ({"background": 0, "liver": 1.5}, None, "a class without a usable value"),
        ({"background": 0, "liver": []}, None, "a class without a usable value"),
        ({"background": 0, "liver": None}, None, "a class without a usable value"),
        ({"background": 0, "liver": 1, "ignore": [2, 3]}, None, "a class without a usable value"),
        (REGIONS, None, "the order of the regions does not fit them"),
        (REGIONS, [1, 2], "the order of the regions does not fit them"),
        (REGIONS, [1, 2, 4], "the order of the regions does not fit them"),
        (REGIONS, 1, "the order of the regions does not fit them"),
        ({**REGIONS, "ignore": 4}, [1, 4, 2], "the order of the regions does not fit them"),
        (REGIONS, [1, [2], 3], "the order of the regions does not fit them"),
    ],
)
def test_what_makes_no_sense_is_refused(content, order, what):
    with pytest.raises(SegpipeError) as error:
        parse(content, order, "set/dataset.json")
    text = str(error.value)
    assert text.startswith(what)
    key = "regions_class_order" if "order" in what else "labels"
    assert f"set/dataset.json: {key}" in text
    assert "correct dataset.json" in text


@st.composite
def described(draw):
    """Any labels: plain or regions, values far apart, with or without ignore label."""
    values = draw(st.lists(st.integers(1, 30_000), min_size=2, max_size=6, unique=True))
    content, order = {"background": 0}, None
    if draw(st.booleans()):
        content |= {"whole": values, "last": values[-1]}
        order = [values[0], values[-1]]
    else:
        content |= {f"class {value}": value for value in values}
    if draw(st.booleans()):
        content["ignore"] = draw(st.integers(1, 30_000).filter(lambda value: value not in values))
    shuffled = draw(st.permutations(sorted(content)))
    return parse({name: content[name] for name in shuffled}, order, "x")


@given(described(), st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_the_way_to_the_files_and_back_changes_nothing(labels, picks):
    segmentation = np.array(picks) % len(labels.file_values)
    in_files = labels.to_files(segmentation)
    assert set(in_files.tolist()) <= set(labels.file_values)
    back = labels.from_files(in_files)
    assert back.dtype == np.int16
    assert back.tolist() == segmentation.tolist()


@given(described(), st.integers(-32_768, 32_767))
def test_a_value_of_no_class_is_told_apart(labels, value):
    found = labels.from_files(np.array([value, 0], np.int16)).tolist()
    assert found == [labels.file_values.index(value) if value in labels.file_values else -1, 0]


@given(described())
def test_labels_survive_json(labels):
    again = Labels.from_json(json.loads(json.dumps(labels.to_json())))
    assert again == labels
    assert list(again.heads) == list(labels.heads)


def test_another_order_of_the_regions_is_another_identity():
    """Outputs and stored foreground are numbered in this order. Of plain classes the values say it."""
    of_regions = [REGIONS, dict(reversed(REGIONS.items()))]
    assert len({digest.of(parse(content, ORDER, "x").to_json()) for content in of_regions}) == 2
    plain = NNUNET["plain, not in order"][0]
    assert (
        len({digest.of(parse(content, None, "x").to_json()) for content in (plain, dict(sorted(plain.items())))}) == 1
    )


ONE = {"background": 0, "nucleus": 1}


@pytest.mark.parametrize(
    ("content", "array", "expected"),
    [
        (ONE, [0, 255, 255], [0, 1, 1]),
        (ONE, [255], [1]),
        ({**ONE, "ignore": 2}, [0, 255], [0, 1]),
        (ONE, [0, 1], [0, 1]),
        (ONE, [0, 0], [0, 0]),
        (ONE, [0, 1, 255], [0, 1, 255]),
        (ONE, [0, -1, 255], [0, -1, 255]),
        ({"background": 0, "a": 255}, [0, 255], [0, 255]),
        ({**ONE, "ignore": 255}, [0, 255], [0, 255]),
        ({"background": 0, "a": 2}, [0, 255], [0, 255]),
        ({**ONE, "b": 2}, [0, 255], [0, 255]),
    ],
)
def test_a_mask_of_0_and_255_is_one_of_0_and_1_where_that_is_all_it_can_be(content, array, expected):
    found = parse(content, None, "x").of_binary(np.array(array, np.int16))
    assert found.tolist() == expected
    assert found.dtype == np.int16


def test_a_voxel_belongs_to_all_regions_that_have_its_value():
    labels = parse(REGIONS, ORDER, "x")
    array = np.array([0, 1, 2, 3])
    found = {name: belongs(array, values).tolist() for name, values in labels.foreground.items()}
    expected = {"whole": [False, True, True, True], "active": [False] * 3 + [True], "core": [False] * 2 + [True] * 2}
    assert found == expected
