"""Make core_oracle.npz and network_shapes.json: nnU-Net's networks, losses, tiles and exports for given inputs.

Runs in an environment of its own with nnunetv2 2.8.1 and dynamic_network_architectures
(python tests/data/make_core_oracle.py); the tests only read the files.
"""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

HERE = Path(__file__).parent

# channels, classes, features, kernels, strides, patch
NETWORKS = {
    "3d": (1, 3, [4, 8, 16], [[3, 3, 3]] * 3, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [8, 8, 12]),
    "2d": (2, 2, [4, 8, 8, 8], [[3, 3]] * 4, [[1, 1]] + [[2, 2]] * 3, [16, 24]),
    "anisotropic": (
        1,
        2,
        [4, 8, 12, 12],
        [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
        [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]],
        [6, 16, 8],
    ),
}
# image, tile, step
WINDOWS = [(64, 64, 0.5), (110, 64, 0.5), (65, 64, 0.5), (200, 48, 0.5), (97, 40, 0.3), (41, 16, 1.0), (33, 17, 0.75)]
# file shape, crop, file spacing, network's spacing, transposition; the second and third have a coarse axis
EXPORTS = {
    "isotropic": ((9, 12, 10), ((1, 9), (2, 11), (0, 10)), (2.0, 1.0, 1.5), (1.4, 1.4, 1.4), (0, 1, 2)),
    "coarse": ((6, 12, 10), ((1, 6), (0, 12), (1, 10)), (6.0, 1.0, 1.2), (5.0, 1.3, 1.3), (0, 1, 2)),
    "turned": ((10, 12, 6), ((0, 5), (1, 10), (2, 12)), (1.2, 1.0, 6.0), (5.0, 1.3, 1.3), (2, 0, 1)),
}


def wave(*shape: int, seed: float = 1.0) -> torch.Tensor:
    """The numbers of tests/tiny.py."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.sin(np.arange(n, dtype=np.float64) * 1.7 * seed + seed)).float().view(shape)


def main() -> None:
    torch.set_num_threads(1)
    shapes, arrays = {}, {}
    for name, settings in NETWORKS.items():
        shapes[name], arrays[f"network_{name}"] = network(*settings)
    arrays |= losses()
    for image, tile, step in WINDOWS:
        (starts,) = compute_steps_for_sliding_window((image,), (tile,), step)
        arrays[f"starts_{image}_{tile}_{step}"] = np.array(starts)
    gaussian = compute_gaussian((8, 12, 16), value_scaling_factor=1, dtype=torch.float64, device=torch.device("cpu"))
    arrays["gaussian"] = gaussian[3:6].numpy()
    for name, settings in EXPORTS.items():
        arrays |= {f"export_{name}_{key}": value for key, value in export(*settings).items()}
    np.savez_compressed(HERE / "core_oracle.npz", **arrays)
    (HERE / "network_shapes.json").write_text(json.dumps(shapes, indent=1) + "\n")


def network(channels, classes, features, kernels, strides, patch):
    """Names and shapes of nnU-Net's network, and its outputs (the first half along the first axis) of a wave."""
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(patch) == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    peer = PlainConvUNet(
        channels,
        len(features),
        features,
        conv,
        kernels,
        strides,
        [2] * len(features),
        classes,
        [2] * (len(features) - 1),
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    ).eval()
    state = {
        key: value
        for key, value in peer.state_dict().items()
        if ".all_modules." not in key and not key.startswith("decoder.encoder.")
    }
    for number, key in enumerate(sorted(state)):
        state[key].copy_(wave(*state[key].shape, seed=1 + number / 7) / 3)
    with torch.no_grad():
        outputs = peer(wave(1, channels, *patch))
    finest = torch.cat([output[0, :, : output.shape[2] // 2].flatten() for output in outputs[:2]])
    return {key: list(value.shape) for key, value in state.items()}, finest.numpy()


def losses():
    """Loss of three outputs for both kinds of Dice; class 2 is missing in one sample, class 3 everywhere."""
    label = (wave(2, 1, 8, 8, 8, seed=0.3) * 2.4).round().abs().clamp_max(2)
    label[1][label[1] == 2] = 0
    outputs = [2 * wave(2, 4, n, n, n, seed=0.2 + n) for n in (8, 4, 2)]
    targets = [nn.functional.interpolate(label, (n, n, n), mode="nearest-exact") for n in (8, 4, 2)]
    arrays = {}
    for batch_dice in (False, True):
        dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
        one = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
        weights = np.array([1, 0.5, 0])
        several = DeepSupervisionWrapper(one, weights / weights.sum())
        arrays[f"loss_{batch_dice}"] = np.array([float(one(outputs[0], targets[0])), float(several(outputs, targets))])
    return arrays


def export(shape, crop, spacing, target, forward):
    """Probabilities and segmentation of a wave of three classes on the file's grid. Crop in the plan's axis order."""
    cropped = [stop - start for start, stop in crop]
    turned = [spacing[axis] for axis in forward]
    logits = 3 * wave(3, *(round(n * a / b) for n, a, b in zip(cropped, turned, target, strict=True)), seed=0.37)
    resample = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    segmentation, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.numpy(),
        SimpleNamespace(transpose_forward=forward, transpose_backward=list(np.argsort(forward))),
        SimpleNamespace(spacing=target, resampling_fn_probabilities=resample),
        LabelManager({"background": 0, "a": 1, "b": 2}, None),
        {
            "spacing": spacing,
            "shape_after_cropping_and_before_resampling": cropped,
            "shape_before_cropping": [shape[axis] for axis in forward],
            "bbox_used_for_cropping": [list(side) for side in crop],
        },
        return_probabilities=True,
        num_threads_torch=1,
    )
    return {"segmentation": segmentation, "probabilities": probabilities.astype(np.float32)}


if __name__ == "__main__":
    main()
