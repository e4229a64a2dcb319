"""Make resenc_oracle.npz: names, shapes and outputs of nnU-Net's residual encoder U-Nets for given weights and images.

Runs in an environment of its own with dynamic_network_architectures, which nnunetv2 2.8.1 brings
(python tests/data/make_resenc_oracle.py); the tests only read the file.
"""

from pathlib import Path

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

TARGET = Path(__file__).with_name("resenc_oracle.npz")
# channels, classes, features, kernels, strides, blocks, convolutions of the decoder, patch
NETWORKS = {
    "3d": (2, 3, [4, 8, 8], [[3, 3, 3]] * 3, [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [1, 3, 2], [1, 1], [8, 8, 12]),
    "2d": (1, 2, [4, 8, 8, 8], [[3, 3]] * 4, [[1, 1]] + [[2, 2]] * 3, [1, 3, 4, 6], [1, 1, 1], [16, 24]),
    "anisotropic": (
        1,
        4,
        [4, 8, 12],
        [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
        [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        [2, 1, 2],
        [2, 1],
        [4, 16, 8],
    ),
}


def wave(*shape: int, seed: float = 1.0) -> torch.Tensor:
    """The numbers of tests/tiny.py."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.sin(np.arange(n, dtype=np.float64) * 1.7 * seed + seed)).float().view(shape)


def main() -> None:
    torch.set_num_threads(1)
    arrays = {}
    for name, settings in NETWORKS.items():
        arrays |= {f"{name}_{key}": value for key, value in network(*settings).items()}
    np.savez_compressed(TARGET, **arrays)


def network(channels, classes, features, kernels, strides, blocks, convs, patch):
    """`names` and `shapes` of the tensors, `zeros` after nnU-Net's initialisation, `outputs` of all stages in a row."""
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(patch) == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    peer = ResidualEncoderUNet(
        channels,
        len(features),
        features,
        conv,
        kernels,
        strides,
        blocks,
        classes,
        convs,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    ).eval()
    peer.apply(peer.initialize)
    doubled = ("all_modules", "decoder.encoder")  # second names of the same tensors
    state = {key: value for key, value in peer.state_dict().items() if not any(part in key for part in doubled)}
    zeros = [key for key, value in state.items() if not value.any()]
    for number, key in enumerate(sorted(state)):
        state[key].copy_(wave(*state[key].shape, seed=1 + number / 7) / 3)
    with torch.no_grad():
        outputs = peer(wave(1, channels, *patch))
    return {
        "names": np.array(list(state)),
        "shapes": np.array([str(list(value.shape)) for value in state.values()]),
        "zeros": np.array(zeros),
        "outputs": torch.cat([output.flatten() for output in outputs]).numpy(),
    }


if __name__ == "__main__":
    main()
