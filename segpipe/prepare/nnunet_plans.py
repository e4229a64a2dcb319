"""nnU-Net's plans.json and our plan: each from the other.

Read is every form that nnU-Net 2.x wrote, the one without `architecture` of its first releases included; written is
that of 2.8 (nnunetv2/utilities/plans_handling/plans_handler.py).
"""

import typing
from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any

from segpipe.errors import SegpipeError, problem, raise_all
from segpipe.params import Configuration as Name
from segpipe.prepare.plan import Configuration

log = getLogger(__name__)

NAMES = typing.get_args(Name)
PLANS_NAME = "nnUNetPlans"
NORMALISATIONS = {
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
ARCHITECTURES = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "resenc"}
ENCODER = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}  # what the encoder's depth is called
PLANNERS = {"plain": "ExperimentPlanner", "resenc": "ResEncUNetPlanner"}
RESAMPLING = "resample_data_or_seg_to_shape"
ORDERS = {"data": 3, "seg": 1, "probabilities": 1}
FURTHER = {"order_z": 0, "force_separate_z": None}
NEAR = ("resample_torch_fornnunet", "resample_torch_simple")  # linear or nearest, in torch
# What our networks are. Absent keys are nnU-Net's defaults, which mean the same but for those of REQUIRED.
FIXED: dict[str, tuple[Any, ...]] = {
    "conv_bias": (True,),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d"),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "dropout_op": (None,),
    "nonlin": ("LeakyReLU",),
    "nonlin_kwargs": ({"inplace": True}, {}, None),
    "nonlin_first": (False,),
    "block": (None, "BasicBlockD"),
    "bottleneck_channels": (None,),
    "stem_channels": (None,),
}
REQUIRED = ("conv_bias", "norm_op", "norm_op_kwargs", "nonlin")
INTENSITIES = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")


def from_nnunet(plans: Mapping[str, Any], where: object = "plans.json") -> dict[str, Any]:
    """Our plan with the `Configuration`s of nnU-Net's; those of other names than ours are left out, with a message.

    where : the file, for messages
    Raises SegpipeError, for everything at once, where the plans ask for what segpipe does not do.
    """
    raise_all(str(where), _unknown_parts(plans, where))
    found = _taken(plans, "configurations", where)
    others = [name for name in found if name not in NAMES]
    if others:
        log.warning("%s: left out %s; known are %s", where, ", ".join(others), ", ".join(NAMES))
    configurations = {
        name: _configuration(_resolved(found, name, where), f"{where}: configurations.{name}")
        for name in NAMES
        if name in found
    }
    if not configurations:
        cure = "rename one of them, in the file and in the folder of its model"
        raise _error("no configuration of a known name", where, ", ".join(others), " or ".join(NAMES), cure)
    return {
        "transpose_forward": _taken(plans, "transpose_forward", where),
        "transpose_backward": _taken(plans, "transpose_backward", where),
        "reasons": [f"planned by nnU-Net ({plans.get('experiment_planner_used', 'planner unknown')})"],
        "not_planned": {},
        "configurations": configurations,
        "intensities": dict(_taken(plans, next((key for key in INTENSITIES if key in plans), INTENSITIES[0]), where)),
    }


def to_nnunet(plan: Mapping[str, Any], dataset_name: str, image_reader_writer: str = "SimpleITKIO") -> dict[str, Any]:
    """plans.json of nnU-Net 2.8 for a plan of ours.

    plan : as `plan.read` gives it
    dataset_name : as `Dataset004_Hippocampus`
    image_reader_writer : nnU-Net's class that reads the dataset's files (NaturalImage2DIO for PNG)
    """
    configurations: dict[str, Configuration] = plan["configurations"]
    finest = configurations.get("3d_fullres") or next(iter(configurations.values()))
    of_2d = len(finest.spacing_mm) == 2
    return {
        "dataset_name": dataset_name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": [*([999.0] if of_2d else []), *finest.spacing_mm],
        "original_median_shape_after_transp": [*([1] if of_2d else []), *map(round, finest.median_shape)],
        "image_reader_writer": image_reader_writer,
        "transpose_forward": plan["transpose_forward"],
        "transpose_backward": plan["transpose_backward"],
        "configurations": {name: _as_nnunet(name, value, configurations) for name, value in configurations.items()},
        "experiment_planner_used": PLANNERS[finest.architecture],
        "label_manager": "LabelManager",
        INTENSITIES[0]: plan["intensities"],
    }


def _unknown_parts(plans: Mapping[str, Any], where: object) -> list[str]:
    manager = plans.get("label_manager", "LabelManager")
    if manager == "LabelManager":
        return []
    return [_problem("an own label manager", f"{where}: label_manager", manager, "LabelManager", "export it with that")]


def _resolved(configurations: Mapping[str, Any], name: str, where: object) -> dict[str, Any]:
    """A configuration with all that it inherits."""
    values: dict[str, Any] = {}
    heirs = [name]
    while True:
        if name not in configurations:
            expected = ", ".join(configurations)
            raise _error("an unknown parent", f"{where}: configurations.{heirs[-2]}", name, expected, "correct it")
        values = {**configurations[name], **values}
        parent = configurations[name].get("inherits_from")
        if parent is None:
            return values
        if parent in heirs:
            raise _error(
                "configurations inherit in a circle", where, " > ".join([*heirs, parent]), "an end", "correct it"
            )
        name = parent
        heirs.append(name)


def _configuration(values: Mapping[str, Any], where: str) -> Configuration:
    raise_all(where, [*_resampling_problems(values, where), *_preprocessing_problems(values, where)])
    architecture, network = _network(values, where)
    n_stages, n_axes = len(_taken(network, "features_per_stage", where)), len(_taken(values, "patch_size", where))
    return Configuration(
        architecture=architecture,
        spacing_mm=[float(edge) for edge in _taken(values, "spacing", where)],
        patch_size=list(values["patch_size"]),
        batch_size=_taken(values, "batch_size", where),
        median_shape=[float(edge) for edge in _taken(values, "median_image_size_in_voxels", where)],
        features_per_stage=list(network["features_per_stage"]),
        kernel_sizes=[_spread(kernel, n_axes) for kernel in _spread(_taken(network, "kernel_sizes", where), n_stages)],
        strides=[_spread(stride, n_axes) for stride in _spread(_taken(network, "strides", where), n_stages)],
        n_conv_per_stage=_spread(_taken(network, ENCODER[architecture], where), n_stages),
        n_conv_per_stage_decoder=_spread(_taken(network, "n_conv_per_stage_decoder", where), n_stages - 1),
        normalisation=[NORMALISATIONS[scheme] for scheme in values["normalization_schemes"]],
        use_mask_for_norm=list(_taken(values, "use_mask_for_norm", where)),
        batch_dice=_taken(values, "batch_dice", where),
        previous_stage=values.get("previous_stage"),
        reasons=["planned by nnU-Net"],
    )


def _network(values: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    """Which of our networks, and its numbers in the terms of nnU-Net's `arch_kwargs`.

    Raises SegpipeError for any other network.
    """
    if "architecture" in values:
        described = values["architecture"]
        network, named = _taken(described, "arch_kwargs", where), _taken(described, "network_class_name", where)
    else:
        network, named = _old_network(values, where), _taken(values, "UNet_class_name", where)
    architecture = ARCHITECTURES.get(named.split(".")[-1])
    if architecture is None:
        expected = " or ".join(ARCHITECTURES)
        raise _error("an unknown network", where, named, expected, "segpipe cannot run it; take another model")
    raise_all(where, _network_problems(network, where))
    return architecture, network


def _old_network(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What plans without `architecture` say of the network, as newer ones say it."""
    depths = _taken(values, "n_conv_per_stage_encoder", where)
    base, most = (_taken(values, key, where) for key in ("UNet_base_num_features", "unet_max_num_features"))
    return {
        "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
        "kernel_sizes": _taken(values, "conv_kernel_sizes", where),
        "strides": _taken(values, "pool_op_kernel_sizes", where),
        **dict.fromkeys(ENCODER.values(), depths),
        "n_conv_per_stage_decoder": _taken(values, "n_conv_per_stage_decoder", where),
        **{key: FIXED[key][0] for key in REQUIRED},
    }


def _network_problems(network: Mapping[str, Any], where: str) -> list[str]:
    found = {key: network[key] for key in FIXED if key in network} | {
        key: None for key in REQUIRED if key not in network
    }
    short = {key: value.split(".")[-1] if isinstance(value, str) else value for key, value in found.items()}
    return [
        _problem("a network built otherwise", f"{where}: {key}", value, FIXED[key][0], "segpipe cannot run it")
        for key, value in short.items()
        if value not in FIXED[key]
    ]


def _resampling_problems(values: Mapping[str, Any], where: str) -> list[str]:
    """What resampling other than nnU-Net's own is asked for; near equals get a warning only."""
    problems = []
    for part, order in ORDERS.items():
        name, settings = values.get(f"resampling_fn_{part}", RESAMPLING), values.get(f"resampling_fn_{part}_kwargs", {})
        expected = {"is_seg": part == "seg", "order": order, **FURTHER}
        if name in NEAR:
            log.warning("%s: %s is resampled as by %s, not by %s: nearly equal", where, part, RESAMPLING, name)
        elif name != RESAMPLING or any(value != expected.get(key) for key, value in settings.items()):
            found = f"{name} {settings}"
            cure = "segpipe resamples in nnU-Net's default way alone; plan without this"
            problems.append(_problem("another resampling", where, found, f"{RESAMPLING} {expected}", cure))
    return problems


def _preprocessing_problems(values: Mapping[str, Any], where: str) -> list[str]:
    known: dict[str, tuple[list[Any], list[Any]]] = {
        "preprocessor_name": ([values.get("preprocessor_name", "DefaultPreprocessor")], ["DefaultPreprocessor"]),
        "previous_stage": ([values.get("previous_stage")], [None, "3d_lowres"]),
        "normalization_schemes": (_taken(values, "normalization_schemes", where), list(NORMALISATIONS)),
    }
    return [
        _problem(f"an unknown {key}", f"{where}: {key}", value, " or ".join(map(str, expected)), "segpipe has no other")
        for key, (found, expected) in known.items()
        for value in found
        if value not in expected
    ]


def _as_nnunet(name: str, planned: Configuration, all_of_them: Mapping[str, Configuration]) -> dict[str, Any]:
    n_axes, schemes = len(planned.patch_size), {ours: theirs for theirs, ours in NORMALISATIONS.items()}
    network = next(theirs for theirs, ours in ARCHITECTURES.items() if ours == planned.architecture)
    following = [other for other, value in all_of_them.items() if value.previous_stage == name]
    resampling = {
        key: value
        for part, order in ORDERS.items()
        for key, value in {
            f"resampling_fn_{part}": RESAMPLING,
            f"resampling_fn_{part}_kwargs": {"is_seg": part == "seg", "order": order, **FURTHER},
        }.items()
    }
    return {
        "data_identifier": f"{PLANS_NAME}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": planned.batch_size,
        "patch_size": planned.patch_size,
        "median_image_size_in_voxels": planned.median_shape,
        "spacing": planned.spacing_mm,
        "normalization_schemes": [schemes[scheme] for scheme in planned.normalisation],
        "use_mask_for_norm": planned.use_mask_for_norm,
        **resampling,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": _arch_kwargs(planned, n_axes),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": planned.batch_dice,
        **({"previous_stage": planned.previous_stage} if planned.previous_stage else {}),
        **({"next_stage": following[0]} if following else {}),
    }


def _arch_kwargs(planned: Configuration, n_axes: int) -> dict[str, Any]:
    return {
        "n_stages": len(planned.features_per_stage),
        "features_per_stage": planned.features_per_stage,
        "conv_op": f"torch.nn.modules.conv.Conv{n_axes}d",
        "kernel_sizes": planned.kernel_sizes,
        "strides": planned.strides,
        ENCODER[planned.architecture]: planned.n_conv_per_stage,
        "n_conv_per_stage_decoder": planned.n_conv_per_stage_decoder,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{n_axes}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _spread(value: Any, n: int) -> list[Any]:
    """One value for all of `n`, or a list as it is."""
    return list(value) if isinstance(value, Sequence) else [value] * n


def _taken(values: Mapping[str, Any], key: str, where: object) -> Any:
    if key not in values:
        raise _error("missing key", f"{where}: {key}", "nothing", "a value", "take the complete plans.json of a model")
    return values[key]


def _problem(what: str, where: object, found: object, expected: object, cure: str) -> str:
    return problem(what, where=where, found=found, expected=expected, cure=cure)


def _error(what: str, where: object, found: object, expected: object, cure: str) -> SegpipeError:
    return SegpipeError(_problem(what, where, found, expected, cure))
