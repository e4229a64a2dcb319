"""Make augment_oracle.npz: what batchgeneratorsv2 0.3.6 makes of given inputs with given parameters.

Runs in an environment of its own with nnunetv2 2.8.1 (python tests/data/make_augment_oracle.py); the tests only read
the file.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

# name: (patch, edges of the box that is read, angles, factor); one slice stands for 2d
SPATIAL = {
    "turned": ((10, 11, 12), (13, 15, 14), (0.3, -0.5, 0.2), 1.0),
    "larger": ((10, 11, 12), (13, 15, 14), (0.0, 0.0, 0.0), 0.73),
    "smaller": ((10, 11, 12), (13, 15, 14), (-0.4, 0.1, 0.5), 1.38),
    "flat": ((4, 14, 15), (4, 15, 14), (0.1, 0.2, 2.3), 1.1),
    "slice": ((1, 14, 13), (1, 15, 14), (0.1, 0.2, -1.2), 1.2),
}
PATCHES = [
    [40, 56, 40],
    [128, 128, 128],
    [20, 320, 256],
    [64, 192, 160],
    [16, 16, 16],
    [256, 256],
    [512, 192],
    [48, 224, 224],
]


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 13, 15, 14)).astype(np.float32).round(3)
    label = np.kron(rng.integers(-1, 4, (5, 5, 5)), np.ones((3, 3, 3), int))[:13, :15, :14].astype(np.int16)
    arrays = {"image": image, "label": label}
    for name, (patch, box, angles, factor) in SPATIAL.items():
        moved = spatial(patch, image[:, : box[0]], label[: box[0]], angles, factor)
        arrays[f"{name}_image"], arrays[f"{name}_label"] = moved
        arrays[f"{name}_parameters"] = np.array([*angles, factor])
    arrays |= intensity(torch.from_numpy(image[:, :10, :9, :11]))
    for patch in PATCHES:
        trainer = SimpleNamespace(
            configuration_manager=SimpleNamespace(patch_size=patch), print_to_log_file=lambda *_: None
        )
        rotation, dummy, initial, _ = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
        name = "reach_" + "x".join(map(str, patch))
        arrays[name] = np.array([*initial, rotation[1], dummy], np.float64)
    np.savez_compressed(Path(__file__).with_name("augment_oracle.npz"), **arrays)


def spatial(patch, image, label, angles, factor):
    """nnU-Net's spatial transform of one box: in 3d, or slice by slice for flat patches."""
    flat = patch[0] == image.shape[1]
    transform = SpatialTransform(
        patch[1:] if flat else patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=1,
        rotation=lambda image, dim: angles[2] if flat else angles[dim],
        p_scaling=1,
        scaling=(factor, factor),
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    data = {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(label)[None]}
    data = Convert2DTo3DTransform()(**transform(**Convert3DTo2DTransform()(**data))) if flat else transform(**data)
    return data["image"].numpy(), data["segmentation"][0].numpy()


def intensity(image):
    """Each intensity transform of a patch with two channels."""
    both = {"apply_to_channel": torch.arange(2)}
    second = {"apply_to_channel": torch.tensor([False, True])}
    gamma = GammaTransform(1, 0, False, 1, 1)
    stats = {"retain_stats": torch.ones(2), "gamma": torch.tensor([0.72, 1.43])}
    low = SimulateLowResolutionTransform((0.5, 1), False, True, None)
    blur = GaussianBlurTransform((0.5, 1.0), benchmark=False)
    values = {
        "blur": blur._apply_to_image(image.clone(), **second, sigmas=[[0.55, 0.75, 0.97]]),
        "blur_2d": blur._apply_to_image(image[:, 0].clone(), **second, sigmas=[[0.62, 0.91]])[:, None],
        "brightness": MultiplicativeBrightnessTransform(1, False)._apply_to_image(
            image.clone(), **both, multipliers=torch.tensor([0.8, 1.2])
        ),
        "contrast": ContrastTransform(1, True, False)._apply_to_image(
            image.clone(), **both, multipliers=torch.tensor([0.78, 1.24])
        ),
        "low_resolution": low._apply_to_image(
            image.clone(), apply_to_channel=torch.tensor([1]), scales=torch.tensor([[0.57] * 3])
        ),
        "low_resolution_in_plane": low._apply_to_image(
            image.clone(), apply_to_channel=torch.tensor([1]), scales=torch.tensor([[1, 0.57, 0.57]])
        ),
        "gamma": gamma._apply_to_image(image.clone(), **both, **stats, invert_image=torch.zeros(2)),
        "gamma_inverted": gamma._apply_to_image(image.clone(), **both, **stats, invert_image=torch.ones(2)),
    }
    return {"patch": image.numpy(), **{name: value.numpy() for name, value in values.items()}}


if __name__ == "__main__":
    main()
