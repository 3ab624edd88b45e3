"""Operations with a weight matrix: linear, convolution, embedding, and products with a free parameter."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...errors import TraceError
from ..context import Context, Labels, Value
from ..describe import describe
from ..registry import register_rule


@register_rule("aten.linear.default")
def _linear(c: Context, x: Value, weight: Value, bias: Value | None = None) -> Labels:
    out = c.contract(x, x.labels.ndim - 1, weight, 1, 0, math.prod(c.shape[:-1]))
    c.attach(bias, out)
    return c.spread(out, len(c.shape) - 1, c.shape)


@register_rule("aten.addmm.default")
def _addmm(c: Context, bias: Value, x: Value, weight: Value, **_: Any) -> Labels:
    out = c.contract(x, 1, weight, 0, 1, c.shape[0], argument=1)
    c.attach(bias, out)
    return c.spread(out, 1, c.shape)


@register_rule("aten.embedding.default")
def _embedding(c: Context, weight: Value, *_: Any) -> Labels:
    return c.spread(c.make(weight, 1), len(c.shape) - 1, c.shape)


@register_rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def _conv(
    c: Context, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Labels:
    _needs_batch(c, weight)
    positions = math.prod(c.shape[2:]) * math.prod(weight.labels.shape[2:])
    if groups == 1:
        out = c.contract(x, 1, weight, 1, 0, positions)
    else:
        out = _grouped(c, x, weight, 1, 0, groups, positions)
    c.attach(bias, out)
    return c.spread(out, 1, c.shape)


@register_rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def _conv_transpose(
    c: Context, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Labels:
    _needs_batch(c, weight)
    positions = math.prod(x.labels.shape[2:]) * math.prod(weight.labels.shape[2:])
    if groups == 1:
        out = c.contract(x, 1, weight, 0, 1, positions)
    else:
        out = _grouped_transpose(c, x, weight, groups, positions)
    c.attach(bias, out)
    return c.spread(out, 1, c.shape)


def _needs_batch(c: Context, weight: Value) -> None:
    if len(c.shape) != weight.labels.ndim:
        raise TraceError(f"{describe(c.node)}: the input has no batch dimension")


def _grouped(c: Context, x: Value, weight: Value, w_in: int, w_out: int, groups: int, positions: int) -> Labels:
    """A grouped convolution loses whole groups when there are many, else the same channels in every group."""
    columns = c.features(x, 1)
    per_group = weight.labels.shape[w_in]
    out = c.make(weight, w_out)
    if groups >= per_group:  # depthwise and ResNeXt-like
        first = columns.reshape(groups, per_group)[:, 0]
        c.couple(columns.reshape(groups, per_group), first[:, None].expand(groups, per_group))
        c.couple(out.reshape(groups, -1), first[:, None].expand(groups, len(out) // groups))
        c.size(first, 6)
        c.cost(out, positions * per_group)
        return out
    own = c.along(weight, w_in)
    inner = c.zeros([per_group]) if own is None else own
    c.couple(columns.reshape(groups, per_group), inner.expand(groups, per_group))
    made = out.reshape(groups, -1)
    c.couple(made, made[:1].expand(made.shape))
    c.read(columns, 1)
    c.cost(out, positions, inner)
    return out


def _grouped_transpose(c: Context, x: Value, weight: Value, groups: int, positions: int) -> Labels:
    """The weight is (inputs, outputs per group): whole groups leave together."""
    columns = c.features(x, 1).reshape(groups, -1)
    first = columns[:, :1]
    c.couple(columns, first.expand(columns.shape))
    rows = c.along(weight, 0)
    c.couple(columns, c.zeros(columns.shape) if rows is None else rows.reshape(groups, -1))
    per_group = weight.labels.shape[1]
    c.size(first[:, 0], 6)
    out = first.expand(groups, per_group).reshape(-1)
    c.cost(columns.reshape(-1), positions * per_group)
    if rows is not None and weight.name is not None:
        c.make(weight, 0)
    return out


@register_rule("aten.matmul", "aten.bmm", "aten.mm")
def _matmul(c: Context, x: Value, y: Value) -> Labels:
    if x.labels.ndim < 2 or y.labels.ndim < 2:
        return _vector_product(c, x, y)
    rows = math.prod(c.shape) // c.shape[-1]
    if y.origin is not None and y.labels.ndim == 2:
        return c.spread(c.contract(x, x.labels.ndim - 1, y, 0, 1, rows), len(c.shape) - 1, c.shape)
    if x.origin is not None and x.labels.ndim == 2:
        out = c.contract(y, y.labels.ndim - 2, x, 1, 0, math.prod(c.shape) // c.shape[-2], argument=1)
        return c.spread(out, len(c.shape) - 2, c.shape)
    return _product(c, x, y)


def _product(c: Context, x: Value, y: Value) -> Labels:
    """Batched product of two activations, (..., M, K) by (..., K, N)."""
    ndim = len(c.shape)
    inner, total = x.labels.shape[-1], math.prod(c.shape)
    dim_x, labels_x = c.carry(x)
    dim_y, labels_y = c.carry(y)
    role_x = None if dim_x is None else dim_x + ndim - x.labels.ndim
    role_y = None if dim_y is None else dim_y + ndim - y.labels.ndim
    if role_x == ndim - 1 or role_y == ndim - 2:  # summed over
        summed = labels_x if role_x == ndim - 1 else labels_y
        if role_x == ndim - 1 and role_y == ndim - 2:
            c.couple(labels_x, labels_y)
        else:
            c.pin(torch.cat([labels_x, labels_y]), "multiplied by values that aren't units")
            summed = torch.zeros_like(summed)
        c.read(summed, x.labels.ndim - 1)
        c.cost(summed, total)
        return c.zeros()
    if role_x is not None and role_y is not None and role_x != role_y:
        c.pin(torch.cat([labels_x, labels_y]), "a product of units with units")
        role_x = role_y = None
    role = role_x if role_x is not None else role_y
    if role is None:
        c.cost(c.zeros([1]), total * inner)
        return c.zeros()
    labels = labels_x if role_x is not None else labels_y
    if role < ndim - 2:
        for other in [y] if role_x is not None else [x]:
            c.match(role, labels, other, ndim)
    c.cost(labels, total // c.shape[role] * inner)
    return c.spread(labels, role, c.shape)


def _vector_product(c: Context, x: Value, y: Value) -> Labels:
    for value in (x, y):
        c.pin(value.labels, "multiplied with a vector")
    c.cost(c.zeros([1]), max(1, math.prod(c.shape)) * x.labels.shape[-1])
    return c.zeros()
