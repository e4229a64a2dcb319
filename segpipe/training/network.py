"""The network of a training: the plan's plain U-Net or a custom one.

The plain U-Net has the module names of dynamic_network_architectures, so that nnU-Net's weights load.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segpipe import plugins
from segpipe.errors import SegpipeError, problem
from segpipe.params import Train
from segpipe.prepare.plan import Configuration

NEGATIVE_SLOPE = 1e-2


class ConvBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU; the stride is in the convolution."""

    def __init__(self, n_in: int, n_out: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(kernel) == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        padding = tuple((edge - 1) // 2 for edge in kernel)
        self.conv = conv(n_in, n_out, tuple(kernel), tuple(stride), padding)  # type: ignore[arg-type]
        self.norm = norm(n_out, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        result: Tensor = self.nonlin(self.norm(self.conv(x)))
        return result


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


class PlainConvUNet(nn.Module):
    """nnU-Net's default network."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__()
        self.encoder = Encoder(n_channels, plan)
        self.decoder = Decoder(n_classes, plan)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to logits (B, n_classes, ...)."""
        return self.supervised(x, 1)[0]

    def supervised(self, x: Tensor, n_outputs: int) -> list[Tensor]:
        """Logits of the `n_outputs` finest stages, for deep supervision."""
        logits: list[Tensor] = self.decoder(self.encoder(x), n_outputs)
        return logits


def create(n_channels: int, n_classes: int, plan: Configuration, path: str | None) -> nn.Module:
    """The network of a configuration with whatever weights it is born with.

    path : import path of a custom network, called as `PlainConvUNet` is; None for `PlainConvUNet` itself

    Raises SegpipeError where the path leads nowhere or to something that makes no network.
    """
    if path is None:
        return PlainConvUNet(n_channels, n_classes, plan)
    network = plugins.load(path, "train.network")(n_channels, n_classes, plan)
    if not isinstance(network, nn.Module):
        raise SegpipeError(
            problem(
                "the custom network is none",
                where="params.yaml: train.network",
                found=f"{path!r} returned an object of type {type(network).__name__}",
                expected="a torch.nn.Module",
                cure="return the network from it; docs/extending.md shows one",
            )
        )
    return network


def build(n_channels: int, n_classes: int, plan: Configuration, settings: Train) -> nn.Module:
    """A network whose weights are decided by settings alone, whatever random numbers were drawn before.

    The plan's own network gets `settings.initialisation`; a custom one initialises itself, with torch's random numbers
    seeded by `settings.seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # not torch.manual_seed: it would seed the devices as well
        network = create(n_channels, n_classes, plan, settings.network)
    if settings.network is None:
        _initialise(network, settings.initialisation, settings.seed)
    return network


def _initialise(network: nn.Module, scheme: str, seed: int) -> None:
    """Draw the weights of all convolutions anew, and set their biases to zero.

    he : normal, for the leaky ReLU's slope, and xavier : uniform (dynamic_network_architectures/initialization)
    orthogonal : with the leaky ReLU's gain
    """
    generator = torch.Generator().manual_seed(seed)
    gain = nn.init.calculate_gain("leaky_relu", NEGATIVE_SLOPE)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear):
            if scheme == "he":
                nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            elif scheme == "xavier":
                nn.init.xavier_uniform_(module.weight, generator=generator)
            else:
                nn.init.orthogonal_(module.weight, gain, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def outputs(network: nn.Module, x: Tensor, n_outputs: int) -> list[Tensor]:
    """Logits of the `n_outputs` finest resolutions, the finest first, each (B, n_classes, ...).

    n_outputs : at most `n_available_outputs`
    """
    supervised: Any = getattr(network, "supervised", None)
    return list(supervised(x, n_outputs)) if supervised else [network(x)]


def n_available_outputs(network: nn.Module, plan: Configuration) -> int:
    """How many resolutions `outputs` can give: one per stage of the plan's decoder, or only the full one."""
    return len(plan.strides) - 1 if hasattr(network, "supervised") else 1


def require_shape(logits: Tensor, label: Tensor, n_classes: int) -> None:
    """Refuse a network, one of the user's, whose finest output does not fit the label.

    logits : (B, classes, ...); label : (B, ...)
    Raises SegpipeError.
    """
    expected = (label.shape[0], n_classes, *label.shape[1:])
    if tuple(logits.shape) != expected:
        raise SegpipeError(
            problem(
                "the network's output does not fit the label",
                where="params.yaml: train.network",
                found=f"logits of shape {tuple(logits.shape)}",
                expected=f"{expected}, classes and then the shape of the patch",
                cure="pad its convolutions, and give it n_classes outputs (docs/extending.md)",
            )
        )


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a segmentation head, by its name."""
    return "seg_layers" in name.split(".")
