"""New tensors, and operations whose results hold no units."""

from __future__ import annotations

from typing import Any

from ..context import Context, Value, register_rule
from .elementwise import names


@register_rule(*names(
    "arange", "zeros", "ones", "full", "empty", "eye", "linspace", "scalar_tensor", "tril", "triu", "new_zeros",
    "new_ones", "new_full", "new_empty", "rand", "randn", "tril_indices", "triu_indices", "one_hot", "diff",
    "bucketize", "searchsorted", "meshgrid", "isin", "diagonal", "nonzero", "masked_select", "item", "detach_copy",
    "_local_scalar_dense", "cdist", "outer", "scatter", "index_put", "index_add", "index_fill", "hann_window",
    "bernoulli", "multinomial", "where.ScalarOther",
))
def _no_units(c: Context, *args: Any, **_: Any) -> Any:
    """Whatever units reach it are pinned; what leaves it isn't prunable."""
    for arg in args:
        for value in arg if isinstance(arg, (list, tuple)) else [arg]:
            if isinstance(value, Value):
                c.pin(value.labels, f"read by {c.node.target}, whose units can't be pruned apart")
    outs = tuple(c.zeros(shape) for shape in c.shapes)
    return outs[0] if len(outs) == 1 and not isinstance(c.node.meta["val"], (tuple, list)) else outs


