"""plans.json of nnU-Net, plan.file: every form is read, what segpipe cannot do is refused, the way back is the same."""

import json
import logging
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tiny import DATA

from segpipe.errors import SegpipeError
from segpipe.prepare import plan_file
from segpipe.prepare.nnunet_plans import from_nnunet, to_nnunet
from segpipe.prepare.plan import Configuration

# What nnU-Net 2.8.1 wrote of `large CT` and ResEncM; see data/make_nnunet_plans.py.
PLANS = json.loads((DATA / "nnunet_plans_file.json").read_text())
EXPECTED = json.loads((DATA / "nnunet_plans.json").read_text())["large CT"]["expected"]["ResEncM"]
DATASET = "Dataset001_Fixture"


def old_form(configuration: dict[str, Any], network: str) -> dict[str, Any]:
    """A configuration as nnU-Net 2.0 to 2.3 wrote it."""
    values = {key: value for key, value in configuration.items() if key != "architecture"}
    kwargs = configuration["architecture"]["arch_kwargs"]
    return values | {
        "UNet_class_name": network,
        "UNet_base_num_features": 32,
        "unet_max_num_features": 320 if len(configuration["patch_size"]) == 3 else 512,
        "n_conv_per_stage_encoder": kwargs["n_blocks_per_stage"],
        "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [5, 5, 5],
        "pool_op_kernel_sizes": kwargs["strides"],
        "conv_kernel_sizes": kwargs["kernel_sizes"],
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plans with one value changed; `path` as `configurations/2d/architecture/arch_kwargs/nonlin`."""
    plans = deepcopy(PLANS)
    *parents, key = path.split("/")
    block = plans
    for parent in parents:
        block = block[parent]
    block[key] = value
    return plans


def without_reasons(plan: dict[str, Any]) -> dict[str, Any]:
    configurations = {name: replace(value, reasons=[]) for name, value in plan["configurations"].items()}
    return {**plan, "configurations": configurations, "reasons": []}


# from nnU-Net


def test_what_nnunet_wrote_is_read() -> None:
    found = from_nnunet(PLANS)
    assert found["transpose_forward"] == EXPECTED["transpose_forward"]
    assert found["transpose_backward"] == EXPECTED["transpose_backward"]
    assert found["intensities"] == {"0": {"mean": 10.5, "std": 2.0, "percentile_00_5": 1.0, "percentile_99_5": 20.0}}
    assert found["configurations"].keys() == EXPECTED["configurations"].keys()
    for name, expected in EXPECTED["configurations"].items():
        assert asdict(found["configurations"][name]) == {**expected, "reasons": ["planned by nnU-Net"]}


@pytest.mark.parametrize(("network", "architecture"), [("PlainConvUNet", "plain"), ("ResidualEncoderUNet", "resenc")])
def test_plans_of_the_first_releases_are_read(network: str, architecture: str) -> None:
    plans = deepcopy(PLANS)
    found = plans["configurations"]
    for name, value in found.items():
        if "inherits_from" not in value:
            found[name] = old_form(value, network)
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    expected = without_reasons(from_nnunet(PLANS))
    for name, value in expected["configurations"].items():
        expected["configurations"][name] = replace(value, architecture=architecture)
    assert without_reasons(from_nnunet(plans)) == expected


def test_one_number_counts_for_every_stage_and_axis() -> None:
    plans = changed("configurations/3d_fullres/architecture/arch_kwargs/kernel_sizes", 3)
    n_stages = len(EXPECTED["configurations"]["3d_fullres"]["strides"])
    assert from_nnunet(plans)["configurations"]["3d_fullres"].kernel_sizes == [[3, 3, 3]] * n_stages


def test_a_child_of_a_child_inherits_from_both(caplog: pytest.LogCaptureFixture) -> None:
    plans = deepcopy(PLANS)
    plans["configurations"]["mine"] = {"inherits_from": "3d_fullres", "batch_size": 7, "patch_size": [64, 64, 64]}
    plans["configurations"]["3d_cascade_fullres"] = {
        "inherits_from": "mine",
        "previous_stage": "3d_lowres",
        "batch_size": 9,
    }
    with caplog.at_level(logging.WARNING):
        found = from_nnunet(plans)["configurations"]
    assert (found["3d_cascade_fullres"].batch_size, found["3d_cascade_fullres"].patch_size) == (9, [64, 64, 64])
    assert found["3d_cascade_fullres"].spacing_mm == found["3d_fullres"].spacing_mm
    assert "left out mine" in caplog.text


def test_resampling_in_torch_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        from_nnunet(changed("configurations/2d/resampling_fn_data", "resample_torch_fornnunet"))
    assert "configurations.2d: data is resampled" in caplog.text
    assert "not by resample_torch_fornnunet" in caplog.text


NETWORK = "configurations/2d/architecture"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("label_manager", "Mine", "found:    Mine"),
        ("configurations", {"mine": {}}, "expected: 2d or 3d_fullres"),
        ("configurations/3d_fullres", {"inherits_from": "none"}, "an unknown parent"),
        ("configurations/3d_fullres", {"inherits_from": "3d_cascade_fullres"}, "inherit in a circle"),
        ("configurations/2d/resampling_fn_data", "no_resampling_hack", "no_resampling_hack"),
        ("configurations/2d/resampling_fn_seg_kwargs", {"is_seg": True, "order": 0}, "'order': 0"),
        ("configurations/2d/preprocessor_name", "Mine", "configurations.2d: preprocessor_name"),
        ("configurations/2d/normalization_schemes", ["Mine"], "unknown normalization_schemes"),
        ("configurations/2d/previous_stage", "3d_fullres", "expected: None or 3d_lowres"),
        (f"{NETWORK}/network_class_name", "a.b.SwinUNETR", "found:    a.b.SwinUNETR"),
        (f"{NETWORK}/arch_kwargs/norm_op", "torch.nn.BatchNorm2d", "found:    BatchNorm2d"),
        (f"{NETWORK}/arch_kwargs/conv_bias", False, "configurations.2d: conv_bias"),
        (f"{NETWORK}/arch_kwargs/nonlin", "torch.nn.ReLU", "expected: LeakyReLU"),
        (f"{NETWORK}/arch_kwargs/dropout_op", "torch.nn.Dropout2d", "found:    Dropout2d"),
        (f"{NETWORK}/arch_kwargs", {"features_per_stage": [8]}, "configurations.2d: norm_op"),
        ("configurations/2d", {"patch_size": [8, 8]}, "normalization_schemes"),
    ],
)
def test_what_segpipe_does_not_do_is_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(SegpipeError) as error:
        from_nnunet(changed(path, value), "model/plans.json")
    assert said in str(error.value)
    assert "model/plans.json" in str(error.value)


# to nnU-Net


def test_there_and_back_is_the_same() -> None:
    plan = from_nnunet(PLANS)
    assert without_reasons(from_nnunet(to_nnunet(plan, DATASET))) == without_reasons(plan)


def test_written_is_what_nnunet_wrote() -> None:
    """Up to numbers of the dataset that nothing depends on, and to inheritance, which is resolved."""
    written, theirs = to_nnunet(from_nnunet(PLANS), DATASET), deepcopy(PLANS)
    cascade = theirs["configurations"]["3d_cascade_fullres"]
    del cascade["inherits_from"]
    identifier = {"data_identifier": "nnUNetPlans_3d_cascade_fullres"}
    theirs["configurations"]["3d_cascade_fullres"] = theirs["configurations"]["3d_fullres"] | cascade | identifier
    for name in ("original_median_spacing_after_transp", "original_median_shape_after_transp"):
        assert len(written.pop(name)) == len(theirs.pop(name)) == 3
    assert (written.pop("experiment_planner_used"), theirs.pop("experiment_planner_used")) == (
        "ResEncUNetPlanner",
        "nnUNetPlannerResEncM",
    )
    for name, value in theirs["configurations"].items():
        assert written["configurations"][name] == value
    assert written == theirs


def test_a_plan_of_slices_has_three_axes_for_nnunet() -> None:
    plan = from_nnunet(PLANS)
    plan["configurations"] = {"2d": plan["configurations"]["2d"]}
    written = to_nnunet(plan, DATASET, "NaturalImage2DIO")
    assert written["original_median_shape_after_transp"][0] == 1
    assert len(written["original_median_spacing_after_transp"]) == 3
    assert written["image_reader_writer"] == "NaturalImage2DIO"


# plan.file


def own(**changes: Any) -> dict[str, Any]:
    """plan.json with a configuration of one stage."""
    values = {
        "architecture": "plain",
        "spacing_mm": [1.0, 1.0],
        "patch_size": [8, 12],
        "batch_size": 2,
        "median_shape": [8.0, 12.0],
        "features_per_stage": [4, 8],
        "kernel_sizes": [[3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [2, 2],
        "n_conv_per_stage_decoder": [2],
        "normalisation": ["zscore"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "previous_stage": None,
        "reasons": ["mine"],
    }
    return {
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "configurations": {"2d": {**values, **changes}},
        "intensities": {"0": {"mean": 1.0}},
    }


def file(folder: Path, content: Any) -> Path:
    path = folder / "given.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_plan_of_segpipe_is_taken_as_it_is(tmp_path: Path) -> None:
    content = own()
    written = deepcopy(content)
    written["unknown"], written["configurations"]["2d"]["unknown"] = 1, 2
    found = plan_file.read(file(tmp_path, written), ["MRI"])
    assert found["configurations"] == content["configurations"]
    assert {key: found[key] for key in ("transpose_forward", "transpose_backward", "intensities")} == {
        key: content[key] for key in ("transpose_forward", "transpose_backward", "intensities")
    }
    assert "unknown" not in found
    assert "taken from given.json" in found["reasons"][0]


def test_a_plan_of_nnunet_is_taken_as_it_is(tmp_path: Path) -> None:
    found = plan_file.read(file(tmp_path, PLANS), ["CT"])
    for name, expected in EXPECTED["configurations"].items():
        assert found["configurations"][name] == {**expected, "reasons": ["planned by nnU-Net"]}
        Configuration(**found["configurations"][name])


@pytest.mark.parametrize(
    ("content", "channels", "said"),
    [
        ("{", ["MRI"], "the file is no plan"),
        ("[1]", ["MRI"], "without `configurations`"),
        (own(), ["T1", "T2"], "2: one per channel of the dataset"),
        (own(), ["T1", "T2"], "none of T2"),
        (own(batch_size="two"), ["MRI"], "configurations.2d.batch_size"),
        (own(patch_size=[8, 13]), ["MRI"], "along axis 1 a multiple of 2"),
        (own(patch_size=[8, 8, 8]), ["MRI"], "2: one per axis"),
        (own(strides=[[1, 1]]), ["MRI"], "2: one per stage"),
        (own(n_conv_per_stage_decoder=[2, 2]), ["MRI"], "1: one per stage of the decoder"),
        (own(normalisation=["robust"]), ["MRI"], "found:    robust"),
        (own(architecture="swin"), ["MRI"], "plain or resenc"),
        (own(previous_stage="3d_lowres"), ["MRI"], "configurations.2d.previous_stage"),
        ({**own(), "transpose_backward": [0, 1, 2]}, ["MRI"], "the axes are no order"),
        ({**own(), "configurations": {"mine": own()["configurations"]["2d"]}}, ["MRI"], "configurations.mine.name"),
        (PLANS, ["T1", "T2"], "2: one per channel of the dataset"),
        (own(batch_size=0), ["MRI"], "configurations.2d.batch_size\n  found:    0"),
        (own(spacing_mm=[0.0, 1.0]), ["MRI"], "found:    [0.0, 1.0]\n  expected: numbers above 0"),
        (own(strides=[[1, 1], [0, 2]]), ["MRI"], "expected: numbers above 0"),
        (own(strides=[[1, 1, 1], [2, 2, 2]]), ["MRI"], "2 numbers per stage"),
        (own(normalisation=["ct"]), ["MRI"], "no std, percentile_00_5, percentile_99_5 of MRI"),
        ({**own(), "intensities": None}, ["MRI"], "given.json: intensities"),
        ({**own(), "configurations": {"2d": 5}}, ["MRI"], "given.json: configurations.2d"),
        (changed("configurations/3d_fullres/patch_size", 5), ["CT"], "a value of the plan is wrong"),
        (changed("configurations/3d_fullres/normalization_schemes", None), ["CT"], "a value of the plan is wrong"),
        (changed("configurations/3d_fullres/batch_size", None), ["CT"], "configurations.3d_fullres.batch_size"),
        (changed("configurations/3d_fullres/spacing", [1.0, -1.0, 1.0]), ["CT"], "found:    [1.0, -1.0, 1.0]"),
    ],
)
def test_a_file_that_is_no_plan_for_the_dataset_is_refused(
    tmp_path: Path, content: Any, channels: list[str], said: str
) -> None:
    with pytest.raises(SegpipeError) as error:
        plan_file.read(file(tmp_path, content), channels)
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegpipeError, match=r"params\.yaml: plan\.file") as error:
        plan_file.read(tmp_path / "none.json", ["MRI"])
    assert f"no file {tmp_path / 'none.json'}" in str(error.value)
