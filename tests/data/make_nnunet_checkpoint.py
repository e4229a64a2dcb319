"""Make nnunet_checkpoint.pth, a checkpoint as nnU-Net writes it, and nnunet_checkpoint.npy, what its network answers.

Runs in an environment of its own with nnunetv2 2.8.1 and dynamic_network_architectures
(python tests/data/make_nnunet_checkpoint.py); the tests only read the files.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

HERE = Path(__file__).parent
FEATURES, STRIDES, PATCH, CLASSES = [2, 4, 4], [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [8, 8, 8], 3


def wave(*shape: int, seed: float = 1.0) -> torch.Tensor:
    """The numbers of tests/tiny.py."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.sin(np.arange(n, dtype=np.float64) * 1.7 * seed + seed)).float().view(shape)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = PlainConvUNet(
        1,
        len(FEATURES),
        FEATURES,
        nn.Conv3d,
        [[3] * 3] * len(FEATURES),
        STRIDES,
        [2] * len(FEATURES),
        CLASSES,
        [2] * (len(FEATURES) - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    sum(output.square().mean() for output in network(wave(1, 1, *PATCH))).backward()
    optimizer.step()
    nnUNetTrainer.save_checkpoint(trainer(network, optimizer), str(HERE / "nnunet_checkpoint.pth"))
    with torch.no_grad():
        np.save(HERE / "nnunet_checkpoint.npy", network.eval()(wave(1, 1, *PATCH))[0].numpy())


def trainer(network, optimizer):
    """What save_checkpoint asks of a trainer, after one epoch; the logged values are of the types it logs."""
    logger = LocalLogger()
    logged = {
        "mean_fg_dice": np.float64(0.25),
        "ema_fg_dice": np.float64(0.25),
        "dice_per_class_or_region": [np.float32(0.5), np.float64(0.0)],
        "train_losses": np.float32(-0.125),
        "val_losses": np.float32(-0.0625),
        "lrs": 1e-2,
        "epoch_start_timestamps": 1.0,
        "epoch_end_timestamps": 2.0,
    }
    for key, value in logged.items():
        logger.log(key, value, 0)
    return SimpleNamespace(
        local_rank=0,
        disable_checkpointing=False,
        is_ddp=False,
        network=network,
        optimizer=optimizer,
        grad_scaler=torch.amp.GradScaler("cpu"),
        logger=logger,
        _best_ema=logger.get_value("ema_fg_dice", step=-1),
        current_epoch=0,
        my_init_kwargs={
            "plans": {"dataset_name": "Dataset000_Phantoms", "configurations": {"3d_fullres": {"patch_size": PATCH}}},
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": {"labels": {"background": 0, "a": 1, "b": 2}},
            "device": torch.device("cuda"),
        },
        inference_allowed_mirroring_axes=(0, 1, 2),
    )


if __name__ == "__main__":
    main()
