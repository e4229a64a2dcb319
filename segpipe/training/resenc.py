"""nnU-Net's residual encoder U-Net: blocks of ResNet-D in the encoder, the plain decoder.

The modules have the names of dynamic_network_architectures (residual.py, residual_encoders.py), so that nnU-Net's
weights load.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segpipe.prepare.plan import Configuration
from segpipe.training.unet import NEGATIVE_SLOPE, ConvBlock, StackedConvBlocks, UNet


class MeanPool(nn.Module):
    """Means of blocks of voxels. Not nn.AvgPool3d, whose gradient is refused on CUDA in deterministic mode."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to (B, C, ... / stride), in the same layout."""
        channels_last = not x.is_contiguous()
        for axis, step in enumerate(self.stride, start=2):
            if step > 1:
                x = x.unflatten(axis, (-1, step)).mean(axis + 1)
        if channels_last:
            return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, which averages where they stride and projects where they change the channels."""

    def __init__(self, n_in: int, n_out: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        one = [1] * len(kernel)
        self.conv1 = ConvBlock(n_in, n_out, kernel, stride)
        self.conv2 = ConvBlock(n_out, n_out, kernel, one, nonlinear=False)
        self.nonlin2 = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
        self.skip = nn.Sequential()
        if any(step != 1 for step in stride):
            self.skip.append(MeanPool(stride))
        if n_in != n_out:
            self.skip.append(ConvBlock(n_in, n_out, one, one, bias=False, nonlinear=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        result: Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return result


class StackedResidualBlocks(nn.Module):
    """Several residual blocks; only the first one strides and changes the number of channels."""

    def __init__(self, n_blocks: int, n_in: int, n_out: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        one = [1] * len(kernel)
        later = [ResidualBlock(n_out, n_out, kernel, one) for _ in range(n_blocks - 1)]
        self.blocks = nn.Sequential(ResidualBlock(n_in, n_out, kernel, stride), *later)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        result: Tensor = self.blocks(x)
        return result


class ResidualEncoder(nn.Module):
    """Feature maps of every stage, the finest first; a convolution before the first stage."""

    def __init__(self, n_channels: int, plan: Configuration) -> None:
        super().__init__()
        kernel, features = plan.kernel_sizes[0], plan.features_per_stage
        self.stem = StackedConvBlocks(1, n_channels, features[0], kernel, [1] * len(kernel))
        n_in = [features[0], *features[:-1]]
        stages = zip(plan.n_conv_per_stage, n_in, features, plan.kernel_sizes, plan.strides, strict=True)
        self.stages = nn.Sequential(*(StackedResidualBlocks(*stage) for stage in stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, ...) to one feature map per stage."""
        skips, x = [], self.stem(x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class ResidualEncoderUNet(UNet):
    """The network of nnU-Net's ResEnc presets."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__(ResidualEncoder(n_channels, plan), n_classes, plan)
