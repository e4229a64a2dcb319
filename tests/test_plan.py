"""The plan: nnU-Net's own for the same fingerprint and preset, and what overrides make of it."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from volumes import REPO

from segpipe import digest
from segpipe.data.cases import Cases
from segpipe.data.labels import parse
from segpipe.errors import SegpipeError
from segpipe.params import Params, Plan
from segpipe.prepare import plan, planning
from segpipe.prepare.plan import Configuration
from segpipe.prepare.planner import Dataset, plan_dataset
from segpipe.prepare.presets import PRESETS
from segpipe.prepare.schemes import SCHEMES, normalisation

# Inputs and nnU-Net 2.8.1's plans, of real datasets and invented ones; see data/make_nnunet_plans.py.
NNUNET = json.loads((Path(__file__).with_name("data") / "nnunet_plans.json").read_text())
NONE = dict.fromkeys(("spacing_mm", "patch_size", "batch_size", "features_base"))
CASES = [(name, preset) for name, dataset in NNUNET.items() for preset in dataset["expected"]]


def planned(
    name: str,
    gpu_memory_gb: float | None = None,
    preset: str = "plain",
    normalisation: dict[str, str] | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Our plan for the inputs of the fixture."""
    inputs = NNUNET[name]["inputs"]
    memory = gpu_memory_gb or inputs["gpu_memory_gb"] / 8 * PRESETS[preset].gb
    settings = {
        "preset": preset,
        "gpu_memory_gb": None if memory == PRESETS[preset].gb else memory,
        "normalisation": normalisation,
        "overrides": {**NONE, **overrides},
        "file": None,
    }
    dataset = Dataset(
        np.array(inputs["spacings"], float),
        np.array(inputs["shapes"], float),
        inputs["relative_size"],
        inputs["n_labels"],
        inputs["channel_names"],
    )
    return plan_dataset(dataset, Plan.model_validate(settings))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_axes_and_configurations_are_those_of_nnunet(name: str, preset: str) -> None:
    found, expected = planned(name, preset=preset), NNUNET[name]["expected"][preset]
    assert found["transpose_forward"] == expected["transpose_forward"]
    assert found["transpose_backward"] == expected["transpose_backward"]
    assert found["configurations"].keys() == expected["configurations"].keys()


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_every_decision_is_that_of_nnunet(name: str, preset: str) -> None:
    everything = planned(name, preset=preset)["configurations"]
    for configuration, values in NNUNET[name]["expected"][preset]["configurations"].items():
        found, expected = everything[configuration], dict(values)
        assert found["spacing_mm"] == pytest.approx(expected.pop("spacing_mm"), rel=1e-12)
        assert {key: found[key] for key in expected} == expected
        assert found.keys() - expected.keys() == {"spacing_mm", "reasons"}


def test_the_fixture_covers_what_it_should() -> None:
    """Should it be made anew with other inputs: every branch of the planner stays in it."""
    plans = {(name, preset): NNUNET[name]["expected"][preset] for name, preset in CASES}
    every = [value for plan in plans.values() for value in plan["configurations"].values()]
    assert {preset for _, preset in plans} == set(PRESETS)
    for preset, numbers in {"plain": {1, 2, 4}, "ResEncM": {1, 2, 4}, "ResEncL": {1, 2, 4}, "ResEncXL": {1, 2}}.items():
        assert {len(plan["configurations"]) for (_, key), plan in plans.items() if key == preset} == numbers
    assert {tuple(plan["transpose_forward"]) for plan in plans.values()} == {(0, 1, 2), (1, 0, 2), (2, 0, 1)}
    assert {scheme for value in every for scheme in value["normalisation"]} == set(SCHEMES)
    assert {mask for value in every for mask in value["use_mask_for_norm"]} == {True, False}
    assert {value["batch_dice"] for value in every if len(value["patch_size"]) == 3} == {True, False}
    assert any(value["kernel_sizes"][0] == [1, 3, 3] for value in every)


@pytest.mark.parametrize("name", NNUNET)
def test_every_decision_has_a_reason(name: str) -> None:
    found = planned(name)
    text = "\n".join(found["reasons"])
    for word in ("preset plain", "target spacing", "axes in the order", "normalisation of channel", "cropping leaves"):
        assert word in text
    for configuration in found["configurations"].values():
        text = "\n".join(configuration["reasons"])
        for word in ("spacing", "patch", "batch", "stages", "halved", "channels", "memory about", "Dice"):
            assert word in text
    assert found["configurations"].keys() | found["not_planned"].keys() == {
        "2d",
        "3d_fullres",
        "3d_lowres",
        "3d_cascade_fullres",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Hippocampus", "the median of 180 cases; no axis is coarse"),
        ("thick slices, sagittal", "the 10th percentile"),
        ("brain, four channels, cropped", "normalisation of channel 'CT': ct, by its name"),
        ("brain, four channels, cropped", "normalisation of channel 'T1': zscore, as for any name"),
        ("brain, four channels, cropped", "cropping leaves 40% of a case (median), below 75%"),
        ("Hippocampus", "the whole volume: cropping leaves 100% of a case (median), at or above 75%"),
    ],
)
def test_the_rule_that_applied_is_named(name: str, text: str) -> None:
    assert text in "\n".join(planned(name)["reasons"])


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
    assert normalisation(name) == scheme


def test_a_channel_can_be_normalised_otherwise() -> None:
    found = planned("brain, four channels, cropped", normalisation={"T1": "rescale_to_0_1", "CT": "zscore"})
    for value in found["configurations"].values():
        assert value["normalisation"] == ["rescale_to_0_1", "none", "zscore", "rescale_to_0_1"]
        assert value["use_mask_for_norm"] == [False, False, True, False]
    assert "normalisation of channel 'T1': rescale_to_0_1, asked for" in found["reasons"]


def test_a_normalisation_of_no_channel_is_refused() -> None:
    with pytest.raises(SegpipeError) as error:
        planned("Hippocampus", normalisation={"T1": "ct"})
    assert "plan.normalisation" in str(error.value)
    assert "expected: MRI" in str(error.value)


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
    assert found["3d_cascade_fullres"]["previous_stage"] == "3d_lowres"


def test_the_cascade_is_as_the_full_resolution_unless_named() -> None:
    for overrides in ({}, {"patch_size": {"3d_fullres": [64, 64, 64]}}, {"batch_size": 3}):
        found = planned("large CT", **overrides)["configurations"]
        fullres, cascade = dict(found["3d_fullres"]), dict(found["3d_cascade_fullres"])
        assert (fullres.pop("previous_stage"), cascade.pop("previous_stage")) == (None, "3d_lowres")
        assert {**fullres, "reasons": None} == {**cascade, "reasons": None}
    rule = planned("large CT")["configurations"]
    named = {"patch_size": {"3d_cascade_fullres": [48, 48, 48]}, "batch_size": {"3d_fullres": 5, "3d_lowres": 4}}
    found = planned("large CT", **named)["configurations"]
    assert found["3d_cascade_fullres"]["patch_size"] == [48, 48, 48]
    assert found["3d_cascade_fullres"]["batch_size"] == 5
    assert (found["3d_cascade_fullres"]["previous_stage"], found["3d_cascade_fullres"]["batch_dice"]) == (
        "3d_lowres",
        True,
    )
    assert found["3d_fullres"]["patch_size"] == rule["3d_fullres"]["patch_size"]
    assert found["3d_lowres"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("name", "overrides", "texts"),
    [
        ("HeadNeckCT", {"patch_size": [50, 33, 64]}, ["3d_fullres: 50 x 33 x 64 is rounded up to 56 x 40 x 64"]),
        ("HeadNeckCT", {"patch_size": [64, 64, 64]}, []),
        ("HeadNeckCT", {"patch_size": [512, 512, 512]}, ["3d_fullres needs about 424 GB", "than the 8 GB of plan.gpu"]),
        ("HeadNeckCT", {"batch_size": {"2d": 300}}, ["2d needs about"]),
        ("Hippocampus", {"batch_size": {"3d_lowres": 4}}, ["3d_lowres is not planned", "counts for nothing"]),
        ("large CT", {"patch_size": {"3d_lowres": [65, 64, 64]}}, ["3d_lowres: 65 x 64 x 64 is rounded up to"]),
    ],
)
def test_what_becomes_of_an_override_is_said(
    caplog: pytest.LogCaptureFixture, name: str, overrides: dict[str, Any], texts: list[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        planned(name, **overrides)
    assert all(text in caplog.text for text in texts), caplog.text
    assert bool(caplog.text) == bool(texts)
    assert "3d_cascade_fullres" not in caplog.text  # it takes what 3d_fullres has


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


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        ({"background": 0, "a": 1, "b": 2}, None, 3),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None, 4),
        ({"background": 0, "whole": [1, 2], "part": 2, "ignore": 3}, [1, 2], 4),
    ],
)
def test_memory_is_planned_for_every_entry_of_labels(
    tmp_path: Path, labels: dict[str, Any], order: list[int] | None, expected: int
) -> None:
    """nnU-Net counts the background of regions and the ignore label, though no output stands for them."""
    parsed = parse(labels, order, "dataset.json").to_json()
    entry = {"spacing_mm": [1.0, 1.0, 1.0], "shape_after_crop": [8, 8, 8]}
    fingerprint = {"cases": {"a": entry}, "median_relative_size_after_cropping": 1.0}
    assert Dataset.of(Cases(tmp_path, {"labels": parsed, "channel_names": ["CT"]}), fingerprint).n_classes == expected


# the file


def write(folder: Path, name: str, configurations: list[str], **changes: Any) -> Path:
    """plan.json of a dataset of the fixture."""
    settings = yaml.safe_load((REPO / "params.yaml").read_text()) | {"configurations": configurations}
    settings["plan"] = settings["plan"] | {"overrides": NONE, **changes}
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
    values = {"background": 0, **{f"class {value}": value for value in range(1, inputs["n_labels"])}}
    labels = parse(values, None, "dataset.json").to_json()
    cases = Cases(folder, {"labels": labels, "channel_names": inputs["channel_names"], "training": entries})
    planning.write(cases, folder / "fingerprint.json", Params.model_validate(settings), folder / "plan.json")
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
    ("name", "asked", "offered", "why"),
    [
        ("ACDC", "3d_lowres", "2d, 3d_fullres", "a patch of 3d_fullres sees"),
        ("ACDC", "3d_cascade_fullres", "2d, 3d_fullres", "there is no 3d_lowres"),
        ("2D, RGB", "3d_fullres", "2d", "the median case is a single slice"),
    ],
)
def test_a_configuration_that_is_not_offered_stops_the_run(
    tmp_path: Path, name: str, asked: str, offered: str, why: str
) -> None:
    with pytest.raises(SegpipeError) as error:
        write(tmp_path, name, ["2d", asked])
    assert f"found:    {asked} ({why}" in str(error.value)
    assert ("{3d_lowres: [20, 3.125, 3.125]}" in str(error.value)) == (name == "ACDC")
    assert f"expected: {offered}" in str(error.value)
    assert not (tmp_path / "plan.json").exists()
