"""Scaled dot-product attention."""

from __future__ import annotations

import math

import torch

from ..context import Context, Labels, Value
from ..registry import register_rule


@register_rule("aten.scaled_dot_product_attention.default")
def _attention(
    c: Context, query: Value, key: Value, value: Value, mask: Value | None = None, p: float = 0.0,
    causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Labels:
    """Units are whole heads, or, in attention without heads, entries of queries with keys, and of values."""
    ndim = query.labels.ndim
    found = [c.carry(v) for v in (query, key, value)]
    heads = next((dim for dim, _ in found if dim is not None and dim < ndim - 2), None)
    pairs = query.labels.shape[-2] * key.labels.shape[-2]
    if heads is not None:
        return _heads(c, [query, key, value], mask, heads, pairs)
    for v, (dim, labels) in zip((query, key, value), found):
        if dim == v.labels.ndim - 2:
            c.pin(labels, "units are the tokens of an attention")
    batch = math.prod(query.labels.shape[:-2])
    entries, entries_k, entries_v = (
        labels if dim == ndim - 1 else c.zeros([v.labels.shape[-1]])
        for v, (dim, labels) in zip((query, key, value), found)
    )
    c.couple(entries, entries_k)
    if scale is None:
        c.pin(entries, "the attention's scale depends on their number; pass scale= to scaled_dot_product_attention")
    c.read(entries, ndim - 1)
    c.cost(entries, batch * pairs)
    c.cost(entries_v, batch * pairs)
    return c.spread(entries_v, ndim - 1, c.shape)


def _heads(c: Context, values: list[Value], mask: Value | None, dim: int, pairs: int) -> Labels:
    """Heads leave whole; with grouped queries, a key-value head leaves with all its queries."""
    ndim = values[0].labels.ndim
    labels = [_vector(c, v, dim) for v in values]
    count = len(labels[0])
    for other in labels[1:]:
        c.couple(labels[0], other.repeat_interleave(count // len(other)))
    if mask is not None:
        c.match(dim, labels[0], mask, ndim)
    entries = values[0].labels.shape[-1] + values[2].labels.shape[-1]
    others = math.prod(values[0].labels.shape[:-2]) // count
    c.cost(labels[0], others * pairs * entries)
    return c.spread(labels[0], dim, c.shape)


def _vector(c: Context, value: Value, dim: int) -> Labels:
    found, labels = c.carry(value)
    if found == dim:
        return labels
    if found is not None:
        c.pin(labels, "some of queries, keys and values are cut by heads, others otherwise")
    return torch.zeros(value.labels.shape[dim], dtype=torch.int64)
