"""Operations run as if some units weren't there, for those where a zero is not the same as an absence.

A mean over channels, a layer-norm or a softmax divides by how many entries there are.  After surgery there are fewer;
so under a mask every entry counts with its gate.  At gates of 0 and 1 this is exactly the smaller network; in between
it is its smooth interpolation, which gate derivatives are taken of.  All functions have the signature of
:data:`~mipprune.graph.context.Masked`: the gate broadcasts against the argument that is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["masked_group_norm", "masked_layer_norm", "masked_mean", "masked_rms_norm", "masked_softmax", "masked_var"]

Target = Callable[..., Any]
Tensor = torch.Tensor


def _weighted_mean(x: Tensor, gate: Tensor, dims: list[int]) -> Tensor:
    """Mean over ``dims`` with weights ``gate``, dims kept; 0 where all weights are 0."""
    weight = gate.expand(torch.broadcast_shapes(gate.shape, x.shape))
    total = weight.sum(dims, keepdim=True)
    return (weight * x).sum(dims, keepdim=True) / torch.where(total > 0, total, 1.0)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def masked_layer_norm(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Layer-norm over the kept entries."""
    x, shape, weight, bias, eps = (*args, None, None, 1e-5)[:5] if len(args) < 5 else args[:5]
    dims = list(range(x.ndim - len(shape), x.ndim))
    centred = x - _weighted_mean(x, gate, dims)
    return _affine(centred * torch.rsqrt(_weighted_mean(centred**2, gate, dims) + eps), weight, bias)


def masked_rms_norm(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Root-mean-square norm over the kept entries."""
    x, shape, weight, eps = (*args, None, None)[:4]
    dims = list(range(x.ndim - len(shape), x.ndim))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * torch.rsqrt(_weighted_mean(x**2, gate, dims) + eps), weight, None)


def masked_group_norm(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Group-norm over the kept entries of every group."""
    x, groups, weight, bias, eps = (*args, None, None, 1e-5)[:5] if len(args) < 5 else args[:5]
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    weights = gate.expand(gate.shape[0], *x.shape[1:2], *[1] * (x.ndim - 2))
    weights = weights.reshape(gate.shape[0], groups, -1, *[1] * (x.ndim - 2))
    dims = list(range(2, grouped.ndim))
    centred = grouped - _weighted_mean(grouped, weights, dims)
    out = (centred * torch.rsqrt(_weighted_mean(centred**2, weights, dims) + eps)).reshape(x.shape)
    view = [1, -1, *[1] * (x.ndim - 2)]
    return _affine(out, None if weight is None else weight.reshape(view), None if bias is None else bias.reshape(view))


def masked_mean(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Mean over the kept entries."""
    x, dims, keepdim = (*args, False)[:3]
    dims = sorted({d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim))})
    out = _weighted_mean(x, gate, dims)
    return out if keepdim else out.reshape([s for d, s in enumerate(out.shape) if d not in dims])


def masked_var(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Variance (or standard deviation) over the kept entries, with torch's correction."""
    x, dims = args[0], args[1]
    dims = sorted({d % x.ndim for d in ([dims] if isinstance(dims, int) else dims or range(x.ndim))})
    if "correction" in str(target):
        correction = kwargs.get("correction", 1)
    else:
        correction = int(args[2] if len(args) > 2 else kwargs.get("unbiased", True))
    keepdim = kwargs.get("keepdim", args[3] if len(args) > 3 else False)
    weight = gate.expand(torch.broadcast_shapes(gate.shape, x.shape))
    total = weight.sum(dims, keepdim=True) - (1 if correction is None else correction)
    centred = x - _weighted_mean(x, gate, dims)
    out = (weight * centred**2).sum(dims, keepdim=True) / torch.where(total > 0, total, 1.0)
    out = out.sqrt() if "std" in str(target) else out
    return out if keepdim else out.reshape([s for d, s in enumerate(out.shape) if d not in dims])


def masked_softmax(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], gate: Tensor) -> Tensor:
    """Softmax over the kept entries."""
    x, dim = args[0], args[1]
    raised = torch.exp(x - x.amax(dim, keepdim=True).detach()) * gate
    total = raised.sum(dim, keepdim=True)
    return raised / torch.where(total > 0, total, 1.0)
