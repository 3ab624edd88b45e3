"""Layers that lost all their inputs or outputs: torch's kernels refuse width 0, or get it wrong.

They keep their class (by inheritance), parameters and attributes, so that files, optimizers and ``isinstance`` work as
before.  None of them looks at its input's values: exported and compiled graphs drop what was computed for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["conv_shape", "hollow_out"]

Tensor = torch.Tensor


class HollowLinear(nn.Linear):
    """A linear layer that reads nothing (puts out its bias) or makes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return _constant(self, x, (*x.shape[:-1], self.weight.shape[0]), -1)


class _HollowConv(nn.modules.conv._ConvNd):
    def forward(self, x: Tensor) -> Tensor:
        return _constant(self, x, conv_shape(self, x, self.weight.shape[0]), -len(self.kernel_size) - 1)


class HollowConv1d(_HollowConv, nn.Conv1d):
    """See :class:`HollowLinear`."""


class HollowConv2d(_HollowConv, nn.Conv2d):
    """See :class:`HollowLinear`."""


class HollowConv3d(_HollowConv, nn.Conv3d):
    """See :class:`HollowLinear`."""


class _HollowConvTranspose(nn.modules.conv._ConvTransposeNd):
    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        n = len(self.kernel_size)
        spatial = list(output_size)[-n:] if output_size is not None else [
            (size - 1) * self.stride[d] - 2 * int(self.padding[d]) + self.dilation[d] * (self.kernel_size[d] - 1)
            + self.output_padding[d] + 1 for d, size in enumerate(x.shape[-n:])
        ]
        return _constant(self, x, (*x.shape[: -n - 1], self.weight.shape[1] * self.groups, *spatial), -n - 1)


class HollowConvTranspose1d(_HollowConvTranspose, nn.ConvTranspose1d):
    """See :class:`HollowLinear`."""


class HollowConvTranspose2d(_HollowConvTranspose, nn.ConvTranspose2d):
    """See :class:`HollowLinear`."""


class HollowConvTranspose3d(_HollowConvTranspose, nn.ConvTranspose3d):
    """See :class:`HollowLinear`."""


class _HollowBatchNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x


class HollowBatchNorm1d(_HollowBatchNorm, nn.BatchNorm1d):
    """See :class:`HollowLinear`."""


class HollowBatchNorm2d(_HollowBatchNorm, nn.BatchNorm2d):
    """See :class:`HollowLinear`."""


class HollowBatchNorm3d(_HollowBatchNorm, nn.BatchNorm3d):
    """See :class:`HollowLinear`."""


_HOLLOW: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HollowLinear, nn.Conv1d: HollowConv1d, nn.Conv2d: HollowConv2d, nn.Conv3d: HollowConv3d,
    nn.ConvTranspose1d: HollowConvTranspose1d, nn.ConvTranspose2d: HollowConvTranspose2d,
    nn.ConvTranspose3d: HollowConvTranspose3d, nn.BatchNorm1d: HollowBatchNorm1d, nn.BatchNorm2d: HollowBatchNorm2d,
    nn.BatchNorm3d: HollowBatchNorm3d,
}


def hollow_out(module: nn.Module) -> None:
    """Make a layer without weights one that runs; other modules, and subclasses of a forward of their own, stay."""
    kind = _HOLLOW.get(type(module))
    if kind is not None:
        vector = module.weight if module.weight is not None else module.running_mean
        if isinstance(vector, Tensor) and vector.numel() == 0:
            module.__class__ = kind


def conv_shape(conv: nn.modules.conv._ConvNd, x: Tensor, channels: int) -> tuple[int, ...]:
    """Shape of what the convolution makes of ``x``, with that many ``channels``."""
    n = len(conv.kernel_size)
    return (*x.shape[: -n - 1], channels, *(_length(conv, d, size) for d, size in enumerate(x.shape[-n:])))


def _length(conv: nn.modules.conv._ConvNd, d: int, size: int) -> int:
    span = conv.dilation[d] * (conv.kernel_size[d] - 1)
    padding = {"same": span, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else 2 * conv.padding[d]
    return (size + padding - span - 1) // conv.stride[d] + 1


def _constant(layer: nn.Linear | nn.modules.conv._ConvNd, x: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """The bias along ``dim`` of ``shape``; memory of its own, since the next operation may work in place."""
    zeros = x.new_zeros(shape, dtype=layer.weight.dtype)
    if layer.bias is None or len(layer.bias) == 0:
        return zeros
    return zeros + layer.bias.reshape([-1 if d == len(shape) + dim else 1 for d in range(len(shape))])
