"""Normalisations.  Where they average over units, a masked unit is left out of the average, as after surgery."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ModelStateError
from ..context import Context, Labels, Masked, Value
from ..describe import describe
from ..masked import masked_group_norm, masked_layer_norm, masked_rms_norm, masked_softmax
from ..registry import register_rule


@register_rule("aten.batch_norm.default")
def _batch_norm(
    c: Context, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    training: bool, *_: Any,
) -> Labels:
    if training or mean is None:
        raise ModelStateError(
            f"{describe(c.node)} normalises by the statistics of the batch, so a sample's output depends on others; "
            f"call model.eval() (and give the layer track_running_stats=True)"
        )
    channels = c.features(x, 1)
    for vector in (weight, bias, mean, var):
        c.attach(vector, channels)
    return c.spread(channels, 1, c.shape)


@register_rule("aten.instance_norm.default")
def _instance_norm(
    c: Context, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None, *_: Any
) -> Labels:
    """Every channel is normalised by itself."""
    channels = c.features(x, 1)
    for vector in (weight, bias, mean, var):
        c.attach(vector, channels)
    return c.spread(channels, 1, c.shape)


@register_rule("aten.layer_norm.default")
def _layer_norm(c: Context, x: Value, shape: Any, weight: Value | None = None, bias: Value | None = None, *_: Any
                ) -> Labels:
    return _over_last(c, x, shape, [weight, bias], masked_layer_norm)


@register_rule("aten.rms_norm.default")
def _rms_norm(c: Context, x: Value, shape: Any, weight: Value | None = None, *_: Any) -> Labels:
    return _over_last(c, x, shape, [weight], masked_rms_norm)


def _over_last(c: Context, x: Value, shape: Any, parameters: list[Value | None], masked: Masked) -> Labels:
    """Normalised over the last dimensions."""
    dim, labels = c.carry(x)
    own = c.along(x, -1) if dim is None and len(shape) == 1 else None
    if own is not None:  # a parameter that serves as data, such as learned queries
        dim, labels = x.labels.ndim - 1, own
    if dim is None:
        return c.zeros()
    first = x.labels.ndim - len(shape)
    if dim < first:
        return x.labels
    for item in range(len(shape)):
        c.size(labels if first + item == dim else c.zeros([shape[item]]), 1, item)
    for parameter in parameters:
        if parameter is not None:
            c.match(dim, labels, parameter, x.labels.ndim)
    c.read(labels, dim, masked=masked)
    return x.labels if own is None else c.spread(own, dim, c.shape)


@register_rule("aten.group_norm.default")
def _group_norm(
    c: Context, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, *_: Any
) -> Labels:
    """Whole groups leave when there are many of them, else the same channels of every group."""
    channels = c.features(x, 1)
    rows = channels.reshape(groups, -1)
    if groups >= rows.shape[1]:
        c.couple(rows, rows[:, :1].expand(rows.shape))
        c.size(rows[:, 0], 1)
    else:
        c.couple(rows, rows[:1].expand(rows.shape))
        c.read(channels, 1, masked=masked_group_norm)
    for vector in (weight, bias):
        c.attach(vector, channels)
    return c.spread(channels, 1, c.shape)


@register_rule("aten.softmax.int", "aten._softmax", "aten._safe_softmax")
def _softmax(c: Context, x: Value, dim: int, *_: Any) -> Labels:
    carry, labels = c.carry(x)
    if carry == dim % x.labels.ndim:
        c.read(labels, carry, masked=masked_softmax)
    return x.labels


@register_rule("aten.log_softmax.int", "aten._log_softmax")
def _log_softmax(c: Context, x: Value, dim: int, *_: Any) -> Labels:
    carry, labels = c.carry(x)
    if carry == dim % x.labels.ndim:
        c.pin(labels, "a logarithm of class probabilities")
        return torch.zeros_like(x.labels)
    return x.labels
