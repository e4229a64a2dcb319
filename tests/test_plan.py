"""The plan: nnU-Net's own for the same fingerprint, and what overrides make of it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from volumes import REPO

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.errors import SegpipeError
from segpipe.params import Overrides, Params
from segpipe.prepare import plan
from segpipe.prepare.plan import Configuration, Dataset, plan_dataset

# Inputs and nnU-Net 2.8.1's plans, of three real datasets and eight invented ones; see data/make_nnunet_plans.py.
NNUNET = json.loads((Path(__file__).with_name("data") / "nnunet_plans.json").read_text())
NONE = dict.fromkeys(("spacing_mm", "patch_size", "batch_size", "features_base"))
CONFIGURATIONS = [(name, key) for name, dataset in NNUNET.items() for key in dataset["expected"]["configurations"]]


def planned(name: str, gpu_memory_gb: float | None = None, **overrides: Any) -> dict[str, Any]:
    """Our plan for the inputs of the fixture."""
    inputs = NNUNET[name]["inputs"]
    dataset = Dataset(
        np.array(inputs["spacings"], float),
        np.array(inputs["shapes"], float),
        inputs["relative_size"],
        inputs["n_labels"],
        inputs["channel_names"],
    )
    return plan_dataset(dataset, gpu_memory_gb or inputs["gpu_memory_gb"], Overrides(**{**NONE, **overrides}))


@pytest.mark.parametrize("name", NNUNET)
def test_axes_and_configurations_are_those_of_nnunet(name: str) -> None:
    found, expected = planned(name), NNUNET[name]["expected"]
    assert found["transpose_forward"] == expected["transpose_forward"]
    assert found["transpose_backward"] == expected["transpose_backward"]
    assert found["configurations"].keys() == expected["configurations"].keys()


@pytest.mark.parametrize(("name", "configuration"), CONFIGURATIONS)
def test_every_decision_is_that_of_nnunet(name: str, configuration: str) -> None:
    found = planned(name)["configurations"][configuration]
    expected = dict(NNUNET[name]["expected"]["configurations"][configuration])
    assert found["spacing_mm"] == pytest.approx(expected.pop("spacing_mm"), rel=1e-12)
    assert {key: found[key] for key in expected} == expected
    assert found.keys() - expected.keys() == {"spacing_mm", "architecture", "previous_stage", "reasons"}


def test_the_fixture_covers_what_it_should() -> None:
    """Should it be made anew with other inputs: every branch of the planner stays in it."""
    plans = {name: dataset["expected"] for name, dataset in NNUNET.items()}
    every = [value for plan in plans.values() for value in plan["configurations"].values()]
    assert {len(plan["configurations"]) for plan in plans.values()} == {1, 2, 3}
    assert {tuple(plan["transpose_forward"]) for plan in plans.values()} == {(0, 1, 2), (1, 0, 2), (2, 0, 1)}
    assert {scheme for value in every for scheme in value["normalisation"]} == set(plan.NORMALISATIONS.values())
    assert {mask for value in every for mask in value["use_mask_for_norm"]} == {True, False}
    assert {value["batch_dice"] for value in every if len(value["patch_size"]) == 3} == {True, False}
    assert any(value["kernel_sizes"][0] == [1, 3, 3] for value in every)


@pytest.mark.parametrize("name", NNUNET)
def test_every_configuration_says_why(name: str) -> None:
    for configuration in planned(name)["configurations"].values():
        text = "\n".join(configuration["reasons"])
        for word in ("spacing", "patch", "batch", "normalisation"):
            assert word in text


@pytest.mark.parametrize("name", ["ACDC", "HeadNeckCT", "large CT"])
def test_more_memory_is_used(name: str) -> None:
    small, large = (planned(name, memory)["configurations"]["3d_fullres"] for memory in (1, 8))
    seen = [value["batch_size"] * math.prod(value["patch_size"]) for value in (small, large)]
    assert seen[0] < seen[1]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("noNorm", "none"),
        ("Rescale_to_0_1", "rescale_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("zscore", "zscore"),
        ("MRI", "zscore"),
        ("CT scan", "zscore"),
    ],
)
def test_a_channels_name_decides_how_it_is_normalised(name: str, scheme: str) -> None:
    assert plan.normalisation(name) == scheme


# overrides


def test_a_patch_is_rounded_up_to_what_its_strides_divide() -> None:
    found = planned("HeadNeckCT", patch_size=[50, 33, 64])["configurations"]["3d_fullres"]
    for asked, edge, total in zip([50, 33, 64], found["patch_size"], np.prod(found["strides"], axis=0), strict=True):
        assert edge >= asked
        assert edge % total == 0
        assert edge - asked < total
    assert "asked for 50 x 33 x 64" in "\n".join(found["reasons"])


def test_a_list_counts_where_its_axes_fit() -> None:
    rule = planned("large CT")["configurations"]
    found = planned("large CT", patch_size=[64, 64, 64])["configurations"]
    assert found["3d_fullres"]["patch_size"] == found["3d_lowres"]["patch_size"] == [64, 64, 64]
    assert found["2d"] == rule["2d"]
    found = planned("large CT", patch_size=[64, 64])["configurations"]
    assert found["2d"]["patch_size"] == [64, 64]
    assert found["3d_fullres"] == rule["3d_fullres"]


def test_values_by_configuration_leave_the_others_alone() -> None:
    rule = planned("Hippocampus")["configurations"]
    found = planned("Hippocampus", batch_size={"2d": 7}, features_base={"3d_fullres": 8})["configurations"]
    assert (found["2d"]["batch_size"], found["3d_fullres"]["batch_size"]) != (7, 7)
    assert found["2d"]["batch_size"] == 7
    assert found["2d"]["features_per_stage"] == rule["2d"]["features_per_stage"]
    assert found["3d_fullres"]["features_per_stage"] == [8, 16, 32, 64]
    assert found["3d_fullres"]["patch_size"] == rule["3d_fullres"]["patch_size"]


def test_one_value_counts_everywhere() -> None:
    found = planned("large CT", batch_size=3, features_base=4)["configurations"]
    for value in found.values():
        assert value["batch_size"] == 3
        assert value["features_per_stage"][:3] == [4, 8, 16]


def test_fewer_features_leave_room_for_a_larger_patch() -> None:
    rule, found = (planned("HeadNeckCT", 2, features_base=base)["configurations"]["3d_fullres"] for base in (None, 8))
    assert math.prod(found["patch_size"]) > math.prod(rule["patch_size"])


def test_a_spacing_changes_shape_and_all_that_follows() -> None:
    rule = planned("Hippocampus")["configurations"]
    found = planned("Hippocampus", spacing_mm=[2.0, 2.0, 2.0])["configurations"]
    assert found["3d_fullres"]["spacing_mm"] == [2, 2, 2]
    assert found["3d_fullres"]["median_shape"] == pytest.approx(np.array(rule["3d_fullres"]["median_shape"]) / 2, abs=1)
    assert found["3d_fullres"]["patch_size"] != rule["3d_fullres"]["patch_size"]
    assert found["2d"] == rule["2d"]


def test_a_spacing_for_slices_keeps_their_distance() -> None:
    found = planned("ACDC", spacing_mm={"2d": [3.125, 3.125]})["configurations"]
    assert found["2d"]["spacing_mm"] == [3.125, 3.125]
    assert found["2d"]["median_shape"] == pytest.approx([123, 106], abs=1)
    assert found["3d_fullres"] == planned("ACDC")["configurations"]["3d_fullres"]


def test_a_low_resolution_can_be_asked_for() -> None:
    assert "3d_lowres" not in planned("Hippocampus")["configurations"]
    found = planned("Hippocampus", spacing_mm={"3d_lowres": [2.0, 2.0, 2.0]})["configurations"]
    assert found["3d_lowres"]["spacing_mm"] == [2, 2, 2]
    assert (found["3d_lowres"]["batch_dice"], found["3d_fullres"]["batch_dice"]) == (False, True)


@pytest.mark.parametrize(
    ("name", "key", "configuration", "value"),
    [
        ("Hippocampus", "patch_size", "3d_fullres", [40, 40]),
        ("Hippocampus", "patch_size", "2d", [40, 40, 40]),
        ("Hippocampus", "spacing_mm", "3d_fullres", [1.0, 1.0]),
        ("Hippocampus", "spacing_mm", "2d", [1.0, 1.0, 1.0]),
        ("large CT", "spacing_mm", "3d_lowres", [2.0, 2.0]),
        ("large CT", "patch_size", "3d_lowres", [40, 40]),
    ],
)
def test_a_wrong_number_of_axes_is_refused(name: str, key: str, configuration: str, value: list[float]) -> None:
    with pytest.raises(SegpipeError) as error:
        planned(name, **{key: {configuration: value}})
    text = str(error.value)
    assert f"plan.overrides.{key}.{configuration}" in text
    assert str(value) in text
    assert f"{2 if configuration == '2d' else 3} numbers" in text


# the file


def write(folder: Path, name: str, configurations: list[str]) -> Path:
    """plan.json of a dataset of the fixture."""
    settings = yaml.safe_load((REPO / "params.yaml").read_text()) | {"configurations": configurations}
    settings["plan"]["overrides"] = NONE
    inputs = NNUNET[name]["inputs"]
    entries = {
        f"case_{index}": {"spacing_mm": spacing, "shape_after_crop": shape}
        for index, (spacing, shape) in enumerate(zip(inputs["spacings"], inputs["shapes"], strict=True))
    }
    fingerprint = {
        "cases": entries,
        "median_relative_size_after_cropping": inputs["relative_size"],
        "channels": {"0": {"mean": 1.5}},
    }
    digest.write_json(folder / "fingerprint.json", fingerprint)
    labels = {f"class {value}": value for value in range(inputs["n_labels"])}
    cases = Cases(folder, {"labels": labels, "channel_names": inputs["channel_names"], "training": entries})
    plan.write(cases, folder / "fingerprint.json", Params.model_validate(settings), folder / "plan.json")
    return folder / "plan.json"


def test_a_written_plan_is_read_back(tmp_path: Path) -> None:
    read = plan.read(write(tmp_path, "ACDC", ["2d", "3d_fullres"]))
    expected = planned("ACDC")
    assert read["intensities"] == {"0": {"mean": 1.5}}
    assert read["transpose_forward"] == expected["transpose_forward"]
    assert read["configurations"] == {
        name: Configuration(**value) for name, value in expected["configurations"].items()
    }


@pytest.mark.parametrize(
    ("name", "asked", "offered"), [("ACDC", "3d_lowres", "2d, 3d_fullres"), ("2D, RGB", "3d_fullres", "2d")]
)
def test_a_configuration_that_is_not_offered_stops_the_run(tmp_path: Path, name: str, asked: str, offered: str) -> None:
    with pytest.raises(SegpipeError) as error:
        write(tmp_path, name, ["2d", asked])
    assert f"found:    {asked}" in str(error.value)
    assert f"expected: {offered}" in str(error.value)
    assert not (tmp_path / "plan.json").exists()
