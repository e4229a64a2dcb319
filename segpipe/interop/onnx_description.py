"""preprocessing.json: what another program needs so that it segments a raw image as `segpipe predict` does.

Its numbers are those that prediction itself takes: of the checkpoints, and of the modules that have the rules. What the
keys mean is in docs/interop.md; docs/examples/predict_onnx.py is a program that follows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from segpipe import digest
from segpipe.data.formats.grid import SLICE_THICKNESS_2D
from segpipe.data.labels import Labels
from segpipe.evaluation import summary
from segpipe.inference.models import Ensemble
from segpipe.inference.predict import Model
from segpipe.inference.presets import PRESETS
from segpipe.inference.tiles import SIGMA
from segpipe.prepare.normalise import EPSILON
from segpipe.prepare.resample import TIE
from segpipe.prepare.spacing import ANISOTROPY

FORMAT_VERSION = 1  # raised when a program that follows it would go wrong
OPSET = 18  # known to onnxruntime since 1.14
INPUT, OUTPUT = "image", "logits"
GAUSSIAN_TRUNCATE = 4.0  # of scipy.ndimage.gaussian_filter1d, which cuts the weights off there
WAY = PRESETS["accurate"]


@dataclass(frozen=True)
class Written:
    """One network's file.

    checkpoint : digest of the file it is from
    largest_difference : between onnxruntime's and torch's logits of one random patch; largest_logit : of torch's
    """

    fold: str
    file: str
    checkpoint: str
    largest_difference: float
    largest_logit: float


def of(ensemble: Ensemble, written: Mapping[str, Sequence[Written]], kind: str, tolerance: float) -> dict[str, Any]:
    """All of preprocessing.json, plain data.

    written : the files of each configuration; kind : final or best
    tolerance : for `largest_difference`, as a share of `largest_logit`
    """
    content = ensemble.content
    any_model = ensemble.models[ensemble.counted[0]]
    return {
        "format": "segpipe-onnx",
        "format_version": FORMAT_VERSION,
        "dataset": content["dataset"]["dataset"],
        "trained": {"checkpoint": kind, "weights": any_model.weights},
        "image": _image(content),
        "labels": labels(ensemble.labels),
        "crop": "box of the voxels where any channel is not 0",
        "resampling": _resampling(),
        "window": _window(),
        "configurations": [_configuration(ensemble, name, written[name]) for name in ensemble.models],
        "mean": {"tiles_mirrored_versions_folds": "logits", "configurations": "probabilities"},
        "tolerance": tolerance,
        "versions": {**summary.versions(), **_versions(), "opset": OPSET, "predict_code": digest.of_code("predict")},
    }


def labels(known: Labels) -> dict[str, Any]:
    """The outputs of a network in order, and what becomes of them.

    values : of the training that belong to an output; paints : the one that its voxels get
    """
    order = known.regions_order or range(len(known.heads))
    return {
        "activation": "sigmoid" if known.has_regions else "softmax",
        "outputs": [
            {"name": name, "values": list(values), "paints": paints}
            for (name, values), paints in zip(known.heads.items(), order, strict=True)
        ],
        "decision": "paint each above 0.5, one over the other" if known.has_regions else "the first of the largest",
        "values_in_files": list(known.file_values),
        "ignore": known.ignore,
    }


def normalisation(scheme: str, use_mask: bool, intensities: Mapping[str, float]) -> dict[str, Any]:
    """How a channel is normalised, with the numbers that `normalise.normalise` takes.

    intensities : the plan's, of the channel
    """
    least = {"least_divisor": EPSILON}
    numbers: dict[str, Any] = {
        "ct": {
            "clip": [intensities.get("percentile_00_5"), intensities.get("percentile_99_5")],
            "mean": intensities.get("mean"),
            "std": intensities.get("std"),
            **least,
        },
        "zscore": {"within_mask": use_mask, **least},
        "rescale_to_0_1": least,
        "rgb_to_0_1": {"divisor": 255.0},
        "none": {},
    }
    return {"scheme": scheme, **numbers[scheme]}


def _image(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "axes": ["channel", "z", "y", "x"],
        "orientation": content["dataset"]["orientation"],
        "channels": list(content["channel_names"]),
        "file_ending": content["dataset"]["file_ending"],
        "slice_thickness_2d": SLICE_THICKNESS_2D,
    }


def _resampling() -> dict[str, Any]:
    """Orders of the splines: those of `resample_image`, `resample_label` and `regrid.pieces`."""
    return {
        "image": {"order": 3, "clip_to_range": True},
        "logits": {"order": 1},
        "segmentation": {
            "order": 1,
            "of": "each label's mask; the largest wins, the nearest of equal ones",
            "tie": TIE,
        },
        "beyond_edge": "nearest",
        "grid_mode": True,
        "separate_axis": {"spacing_ratio_above": ANISOTROPY, "order": 0},
    }


def _window() -> dict[str, Any]:
    return {
        "step_size": WAY.step_size,
        "pad_value": 0.0,
        "gaussian": {"sigma": SIGMA, "truncate": GAUSSIAN_TRUNCATE, "largest": 1.0},
        "mirroring": WAY.mirroring,
    }


def _configuration(ensemble: Ensemble, name: str, written: Sequence[Written]) -> dict[str, Any]:
    """One configuration, in the order of prediction: a stage before comes first."""
    model = ensemble.models[name]
    plan, planned = model.content["plan"], model.planned
    patch, n_axes = list(planned.patch_size), len(planned.patch_size)
    channels = [*model.content["channel_names"], *_of_previous(model)]
    schemes = zip(planned.normalisation, planned.use_mask_for_norm, strict=True)
    return {
        "name": name,
        "share": ensemble.weights.get(name, 0.0),
        "previous_stage": planned.previous_stage,
        "transpose_forward": list(plan["transpose_forward"]),
        "transpose_backward": list(plan["transpose_backward"]),
        "spacing_mm": [*[None] * (3 - n_axes), *planned.spacing_mm],
        "normalisation": [
            normalisation(*scheme, plan["intensities"][str(index)]) for index, scheme in enumerate(schemes)
        ],
        "input": {"name": INPUT, "shape": ["batch", len(channels), *patch], "channels": channels},
        "output": {"name": OUTPUT, "shape": ["batch", len(model.labels.heads), *patch]},
        "mirror_axes": [axis + 2 for axis in model.mirror_axes(WAY.mirroring)],
        "networks": [asdict(one) for one in written],
    }


def _of_previous(model: Model) -> list[str]:
    """A channel for each value that the stage before may find: 1 where it did, else 0."""
    stage = model.planned.previous_stage
    return [f"{stage} is {value}" for value in range(1, model.labels.n_values)] if stage else []


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnx", "onnxruntime")}
