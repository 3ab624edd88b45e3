"""New tensors, and operations whose results hold no units."""

from __future__ import annotations

from typing import Any

from ..context import Context, Labels, Value
from ..registry import opaque, register_rule
from ..sizes import AttributeSize
from .elementwise import names

register_rule(*names(
    "arange", "eye", "linspace", "scalar_tensor", "tril", "triu", "tril_indices", "triu_indices", "one_hot", "diff",
    "bucketize", "searchsorted", "meshgrid", "isin", "diagonal", "nonzero", "masked_select", "item", "detach_copy",
    "_local_scalar_dense", "cdist", "outer", "scatter", "index_put", "index_add", "index_fill", "hann_window",
    "bernoulli", "multinomial", "_weight_norm", "bilinear", "mv", "dot", "vdot",
))(opaque)


@register_rule(*names("zeros", "ones", "full", "empty", "rand", "randn"))
def _filled(c: Context, sizes: Any, *_: Any, **__: Any) -> Labels:
    return _sized(c, 0)


@register_rule(*names("new_zeros", "new_ones", "new_full", "new_empty"))
def _filled_like(c: Context, x: Value, sizes: Any, *_: Any, **__: Any) -> Labels:
    return _sized(c, 1)


def _sized(c: Context, argument: int) -> Labels:
    """A size taken from an attribute, or else a tensor, can follow the units: the last such one carries labels."""
    shape = c.shape
    origins = {item: c.origin(argument, item) for item in range(len(shape)) if shape[item] > 1}
    free = [item for item, origin in origins.items() if origin is not None and not isinstance(origin, int)]
    if not free:
        return c.zeros()
    item = max(free, key=lambda i: (isinstance(origins[i], AttributeSize), i))
    labels = c.space.fresh(shape[item])
    c.size(labels, argument, item)
    return c.spread(labels, item, shape)
