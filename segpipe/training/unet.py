"""nnU-Net's default network, and the decoder that its networks share.

The modules have the names of dynamic_network_architectures, so that nnU-Net's weights load.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segpipe.prepare.plan import Configuration
from segpipe.training.fused import norm_and_activation

NEGATIVE_SLOPE = 1e-2


def require_voxels(x: Tensor) -> None:
    """Raise ValueError for feature maps of one voxel."""
    if x[0, 0].numel() == 1:
        raise ValueError(f"a feature map of one voxel, {tuple(x.shape)}, whose norm is 0: use a larger patch")


class _AnyLayout:
    """Instance norm that leaves the layout as it is: torch's turns channels-last feature maps into contiguous ones."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape, type and layout."""
        if x.is_contiguous():
            return self.flat(x).view(x.shape)
        variance, mean = torch.var_mean(x.float(), tuple(range(2, x.ndim)), correction=0, keepdim=True)
        shape = (-1, *(1,) * (x.ndim - 2))
        scale = (variance + self.eps).rsqrt() * self.weight.view(shape)  # type: ignore[attr-defined]
        return ((x.float() - mean) * scale + self.bias.view(shape)).to(x.dtype)  # type: ignore[attr-defined]

    def flat(self, x: Tensor) -> Tensor:
        """Of a contiguous (B, C, ...), as torch computes it: (1, B C, ...). Raises ValueError for maps of one voxel."""
        require_voxels(x)
        scale, shift = self.weight.repeat(len(x)), self.bias.repeat(len(x))  # type: ignore[attr-defined]
        samples = x.reshape(1, -1, *x.shape[2:])
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled():
            # a quarter of batch_norm's time there; its gradient is less exact, and in bf16 neither is faster
            return torch.group_norm(samples, samples.shape[1], scale, shift, self.eps)  # type: ignore[attr-defined]
        return torch.batch_norm(samples, scale, shift, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled)  # type: ignore[attr-defined]


class InstanceNorm2d(_AnyLayout, nn.InstanceNorm2d):
    """Of (B, C, Y, X)."""


class InstanceNorm3d(_AnyLayout, nn.InstanceNorm3d):
    """Of (B, C, Z, Y, X)."""


class ConvBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU; the stride is in the convolution."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        bias: bool = True,
        nonlinear: bool = True,
    ) -> None:
        super().__init__()
        conv, norm = (nn.Conv3d, InstanceNorm3d) if len(kernel) == 3 else (nn.Conv2d, InstanceNorm2d)
        padding = tuple((edge - 1) // 2 for edge in kernel)
        self.conv = conv(n_in, n_out, tuple(kernel), tuple(stride), padding, bias=bias)  # type: ignore[arg-type]
        self.norm = norm(n_out, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True) if nonlinear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        if torch.compiler.is_dynamo_compiling() and self._is_as_made():
            return self.compiled(x)
        x = self.conv(x)
        if not x.is_contiguous():
            result: Tensor = self.nonlin(self.norm(x))
            return result
        # activated before it has its shape: after work in place on a view autograd copies the map four times
        return self.nonlin(self.norm.flat(x)).view(x.shape)

    def compiled(self, x: Tensor) -> Tensor:
        """The same, for torch.compile, but for the bias of the convolution, which the norm would take away again.

        Its gradient is 0, as it is but for rounding. Adding it is a pass over the map, its gradient another.
        """
        x = self.conv._conv_forward(x, self.conv.weight, None)
        require_voxels(x)
        bias = self.norm.bias if self.conv.bias is None else self.norm.bias + 0 * self.conv.bias
        slope = self.nonlin.negative_slope if isinstance(self.nonlin, nn.LeakyReLU) else 1.0
        return norm_and_activation(x, self.norm.weight, bias, self.norm.eps, slope)

    def _is_as_made(self) -> bool:
        """Whether nobody has put a module of another kind into it, as a network that builds on these may."""
        kinds = nn.Conv2d | nn.Conv3d, _AnyLayout, nn.LeakyReLU | nn.Identity
        parts = self.conv, self.norm, self.nonlin
        return all(isinstance(part, kind) for part, kind in zip(parts, kinds, strict=True))


class StackedConvBlocks(nn.Module):
    """Several convolutions; only the first one strides and changes the number of channels."""

    def __init__(self, n_convs: int, n_in: int, n_out: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        one = [1] * len(kernel)
        later = [ConvBlock(n_out, n_out, kernel, one) for _ in range(n_convs - 1)]
        self.convs = nn.Sequential(ConvBlock(n_in, n_out, kernel, stride), *later)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        result: Tensor = self.convs(x)
        return result


class Encoder(nn.Module):
    """Feature maps of every stage, the finest first."""

    def __init__(self, n_channels: int, plan: Configuration) -> None:
        super().__init__()
        n_in = [n_channels, *plan.features_per_stage[:-1]]
        stages = zip(plan.n_conv_per_stage, n_in, plan.features_per_stage, plan.kernel_sizes, plan.strides, strict=True)
        self.stages = nn.ModuleList(nn.Sequential(StackedConvBlocks(*stage)) for stage in stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, ...) to one feature map per stage."""
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Back up to full resolution, with a segmentation head at every stage."""

    def __init__(self, n_classes: int, plan: Configuration) -> None:
        super().__init__()
        n_axes = len(plan.patch_size)
        conv, up = (nn.Conv3d, nn.ConvTranspose3d) if n_axes == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        below, skip = plan.features_per_stage[:0:-1], plan.features_per_stage[-2::-1]
        strides, kernels = plan.strides[:0:-1], plan.kernel_sizes[-2::-1]
        self.transpconvs = nn.ModuleList(
            up(n_in, n_out, tuple(stride), tuple(stride))  # type: ignore[arg-type]
            for n_in, n_out, stride in zip(below, skip, strides, strict=True)
        )
        self.stages = nn.ModuleList(
            StackedConvBlocks(n_convs, 2 * n, n, kernel, [1] * n_axes)
            for n_convs, n, kernel in zip(plan.n_conv_per_stage_decoder, skip, kernels, strict=True)
        )
        self.seg_layers = nn.ModuleList(conv(n, n_classes, 1) for n in skip)

    def forward(self, skips: list[Tensor], n_outputs: int) -> list[Tensor]:
        """Logits of the `n_outputs` finest stages, the finest first."""
        x, outputs = skips[-1], []
        first = len(self.stages) - n_outputs
        for index, (up, stage, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            x = stage(torch.cat((up(x), skips[-(index + 2)]), 1))
            if index >= first:
                outputs.append(head(x))
        return outputs[::-1]


class UNet(nn.Module):
    """An encoder, and the decoder that fits it.

    encoder : (B, C, ...) to one feature map per stage of the plan, the finest first
    """

    def __init__(self, encoder: nn.Module, n_classes: int, plan: Configuration) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Decoder(n_classes, plan)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to logits (B, n_classes, ...)."""
        return self.supervised(x, 1)[0]

    def supervised(self, x: Tensor, n_outputs: int) -> list[Tensor]:
        """Logits of the `n_outputs` finest stages, for deep supervision."""
        logits: list[Tensor] = self.decoder(self.encoder(x), n_outputs)
        return logits


class PlainConvUNet(UNet):
    """nnU-Net's default network."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__(Encoder(n_channels, plan), n_classes, plan)
