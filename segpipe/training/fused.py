"""Instance norm and activation as torch.compile should see them: as few passes over a feature map as there can be.

Of 16-bit maps 6 bytes per voxel forth and 10 back, where torch's own norm, compiled, takes 11 and 14: Inductor keeps a
mask of the activation for the way back, divides long rows where no load of several numbers may begin, and gives
channels last yet more passes (docs/gpus.md).
"""

from typing import Any

import torch
from torch import Tensor

FEW_ROWS = 264  # two for each of an H200's multiprocessors; Inductor divides the rows where they are fewer
LONGEST_ROW = 8192  # voxels that one thread block adds up

# feature maps (B, C, ...); statistics (B, C) float32


def norm_and_activation(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
    """Instance norm, and below 0 a slope: 1 is no activation. Same shape, type and layout.

    x : (B, C, ...), of more than one voxel; weight, bias : (C,) float32
    """
    result: Tensor = _NormAndActivation.apply(x, weight, bias, eps, slope)
    return result


class _NormAndActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        variance, mean = _statistics(x)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, inverse, weight, bias)
        ctx.slope = slope
        scaled = _scaled(_normed(x, mean, inverse), weight, bias)
        return torch.where(scaled > 0, scaled, scaled * slope).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias = ctx.saved_tensors
        normed, grad = _normed(x, mean, inverse), grads[0].float()
        # computed again from what is read anyway, which costs less than a mask that is written and read
        grad = torch.where(_scaled(normed, weight, bias) > 0, grad, grad * ctx.slope)
        of_bias, of_weight = _sum(grad), _sum(grad * normed)
        n = x[0, 0].numel()
        of_x = _wide(weight * inverse, x) * (grad - _wide(of_bias / n, x) - normed * _wide(of_weight / n, x))
        return of_x.to(x.dtype), of_weight.sum(0), of_bias.sum(0), None, None


def _wide(numbers: Tensor, x: Tensor) -> Tensor:
    """(B, C) or (C,) beside a feature map."""
    return numbers.view(-1, x.shape[1], *[1] * (x.ndim - 2))


def _normed(x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    return (x.float() - _wide(mean, x)) * _wide(inverse, x)


def _scaled(normed: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return normed * _wide(weight, normed) + _wide(bias, normed)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean; of parts equally long first, then of these."""
    rows, voxels, parts = _rows(x)
    variances, means = torch.var_mean(rows.float(), voxels, correction=0)
    between, mean = torch.var_mean(means, parts, correction=0)
    return variances.mean(parts) + between, mean


def _sum(x: Tensor) -> Tensor:
    rows, voxels, parts = _rows(x)
    return rows.sum(voxels).sum(parts)


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """A view (B, C, parts, voxels), of channels last (B, parts, voxels, C); the axes of voxels, and then of parts."""
    n, last, parts = x[0, 0].numel(), not x.is_contiguous(), 1
    if last or x.shape[0] * x.shape[1] < FEW_ROWS:
        while n % (2 * parts) == 0 and n > LONGEST_ROW * parts:
            parts *= 2
    if last:
        return x.movedim(1, -1).reshape(len(x), parts, n // parts, x.shape[1]), 2, 1
    return x.reshape(*x.shape[:2], parts, n // parts), 3, 2
