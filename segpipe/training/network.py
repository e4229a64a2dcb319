"""The network of a training: the plan's U-Net or a custom one, its first weights, and what the loop asks of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segpipe import plugins
from segpipe.data.labels import Labels
from segpipe.errors import SegpipeError, problem
from segpipe.params import Train
from segpipe.prepare.plan import Configuration
from segpipe.training.resenc import ResidualBlock, ResidualEncoderUNet
from segpipe.training.unet import NEGATIVE_SLOPE, PlainConvUNet, UNet

ARCHITECTURES: dict[str, Callable[[int, int, Configuration], nn.Module]] = {
    "plain": PlainConvUNet,
    "resenc": ResidualEncoderUNet,
}


def n_inputs(n_channels: int, labels: Labels, plan: Configuration) -> int:
    """Channels that a network sees: those of the image, and one per foreground value of the stage before."""
    return n_channels + (labels.n_values - 1 if plan.previous_stage else 0)


def create(n_channels: int, n_classes: int, plan: Configuration, path: str | None) -> nn.Module:
    """The network of a configuration with whatever weights it is born with.

    n_channels : all that the network sees (`n_inputs`)
    path : import path of a custom network, called as `PlainConvUNet` is; None for the one that the plan names

    Raises SegpipeError where the path leads nowhere or to something that makes no network.
    """
    if path is None:
        return ARCHITECTURES[plan.architecture](n_channels, n_classes, plan)
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
    """Draw the weights of all convolutions anew, and set their biases to zero. Residual blocks begin as their skips.

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
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)


def outputs(network: nn.Module, x: Tensor, n_outputs: int) -> list[Tensor]:
    """Logits of the `n_outputs` finest resolutions, the finest first, each (B, n_classes, ...).

    n_outputs : at most `n_available_outputs`
    """
    supervised: Any = getattr(network, "supervised", None)
    return list(supervised(x, n_outputs)) if supervised else [network(x)]


def n_available_outputs(network: nn.Module, plan: Configuration) -> int:
    """How many resolutions `outputs` can give: one per stage of the plan's decoder, or only the full one."""
    return len(plan.strides) - 1 if hasattr(network, "supervised") else 1


def unsupervised(network: nn.Module, weights: Sequence[float]) -> list[nn.Parameter]:
    """The parameters of the heads that the loss learns nothing for, of one of the plan's networks.

    weights : of the finest outputs, the finest first
    """
    heads: Any = network.decoder.seg_layers if isinstance(network, UNet) else []
    weight_of = [*weights, *[0.0] * (len(heads) - len(weights))][::-1]
    return [
        parameter
        for head, weight in zip(heads, weight_of[-len(heads) :] if len(heads) else [], strict=True)
        if weight == 0
        for parameter in head.parameters()
    ]


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
