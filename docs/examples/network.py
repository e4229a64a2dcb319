"""The plan's U-Net with a shortcut around each stage, as residual networks have it."""

from torch import Tensor, nn

from segpipe.prepare.plan import Configuration
from segpipe.training.unet import ConvBlock, PlainConvUNet


class ResidualStage(nn.Module):
    """A stage, plus its input brought to the same shape."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        first = next(block.conv for block in stage.modules() if isinstance(block, ConvBlock))
        self.stage = stage
        self.shortcut = type(first)(first.in_channels, first.out_channels, 1, first.stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, ...) to (B, n_out, ...)."""
        return self.stage(x) + self.shortcut(x)


class ResidualUNet(PlainConvUNet):
    """Inherits `forward` and `supervised`; its weights are torch's own initial ones."""

    def __init__(self, n_channels: int, n_classes: int, plan: Configuration) -> None:
        super().__init__(n_channels, n_classes, plan)
        for stages in (self.encoder.stages, self.decoder.stages):
            for index, stage in enumerate(stages):
                stages[index] = ResidualStage(stage)
