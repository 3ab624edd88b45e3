"""Operations that sum up, average, pool, or look along a dimension."""

from __future__ import annotations

from typing import Any

import torch

from ..context import Context, Labels, Masked, Value
from ..masked import masked_mean, masked_var
from ..registry import register_rule
from .elementwise import names


def _dims(dims: Any, ndim: int) -> list[int]:
    if dims is None or dims == []:
        return list(range(ndim))
    return sorted({d % ndim for d in ([dims] if isinstance(dims, int) else dims)})


def _reduced(c: Context, x: Value, dims: list[int], masked: Masked | None, reads: bool) -> Labels:
    """Labels after a reduction; one over the units themselves reads them, or pins them when ``reads`` is false."""
    carry, labels = c.carry(x)
    if carry is None:
        return c.zeros()
    if carry in dims:
        if reads:
            c.read(labels, carry, masked=masked)
        else:
            c.pin(labels, "compared with one another")
        return c.zeros()
    kept = len(c.shape) == x.labels.ndim
    return c.spread(labels, carry if kept else carry - sum(d < carry for d in dims), c.shape)


@register_rule(*names("mean.dim", "mean.default"))
def _mean(c: Context, x: Value, dims: Any = None, *_: Any, **__: Any) -> Labels:
    return _reduced(c, x, _dims(dims, x.labels.ndim), masked_mean, True)


@register_rule(*names("sum.dim_IntList", "sum.default"))
def _sum(c: Context, x: Value, dims: Any = None, *_: Any, **__: Any) -> Labels:
    return _reduced(c, x, _dims(dims, x.labels.ndim), None, True)


@register_rule(*names("var.dim", "var.correction", "std.dim", "std.correction"))
def _var(c: Context, x: Value, dims: Any = None, *_: Any, **__: Any) -> Labels:
    return _reduced(c, x, _dims(dims, x.labels.ndim), masked_var, True)


@register_rule("aten.linalg_vector_norm.default")
def _norm(c: Context, x: Value, order: Any = 2, dims: Any = None, *_: Any, **__: Any) -> Labels:
    return _reduced(c, x, _dims(dims, x.labels.ndim), None, order > 0)


@register_rule(*names("amax", "amin", "argmax", "argmin", "logsumexp", "prod.dim_int", "prod.default", "any.dim",
                      "all.dim", "any.default", "all.default", "var.default", "std.default"))
def _compare(c: Context, x: Value, dims: Any = None, *_: Any, **__: Any) -> Labels:
    return _reduced(c, x, _dims(dims, x.labels.ndim), None, False)


@register_rule(*names("max.dim", "min.dim", "topk", "sort", "kthvalue", "median.dim", "mode"))
def _extreme(c: Context, x: Value, *args: Any, **_: Any) -> Any:
    """Values and indices along one dimension."""
    name = str(c.node.target)
    own = args[1:] if ("topk" in name or "kthvalue" in name) else args
    dim = own[0] if own else -1
    labels = _reduced(c, x, _dims(dim, x.labels.ndim), None, False)
    return tuple(labels for _ in c.shapes)


@register_rule(*names("max.default", "min.default", "median.default"))
def _extreme_of_all(c: Context, x: Value) -> Labels:
    c.pin(x.labels, "compared with one another")
    return c.zeros()


@register_rule(*names("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"))
def _cumulative(c: Context, x: Value, dim: int, **_: Any) -> Any:
    carry, labels = c.carry(x)
    out = x.labels
    if carry == dim % x.labels.ndim:
        if "cumsum" in str(c.node.target):
            c.read(labels, carry)
        else:
            c.pin(labels, "compared with one another")
            out = torch.zeros_like(out)
    return out if len(c.shapes) == 1 else (out,) * len(c.shapes)


@register_rule(*names(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "lp_pool2d",
    "grid_sampler", "grid_sampler_2d", "_adaptive_avg_pool2d", "upsample_nearest_exact2d",
))
def _pool(c: Context, x: Value, *_: Any, **__: Any) -> Any:
    """Positions change, channels don't."""
    shapes = c.shapes
    labels = c.spread(c.features(x, 1), 1, shapes[0])
    return labels if len(shapes) == 1 else (labels,) * len(shapes)


@register_rule(*names("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
                      "replication_pad2d", "zero_pad2d"))
def _pad(c: Context, x: Value, widths: Any, *_: Any) -> Labels:
    carry, labels = c.carry(x)
    if carry is None:
        return c.zeros()
    if c.shape[carry] == x.labels.shape[carry]:
        return c.spread(labels, carry, c.shape)
    before = widths[2 * (x.labels.ndim - 1 - carry)]
    if ("constant" not in str(c.node.target) and "zero" not in str(c.node.target) and "aten.pad." not in str(
            c.node.target)) or before < 0 or c.shape[carry] < x.labels.shape[carry] + before:
        c.pin(labels, "padded with copies of units")
        return c.zeros()
    padded = torch.zeros(c.shape[carry], dtype=torch.int64)
    padded[before : before + len(labels)] = labels
    return c.spread(padded, carry, c.shape)


@register_rule("aten.im2col", "aten.unfold")
def _windows(c: Context, x: Value, *_: Any) -> Labels:
    """Sliding windows: channel c becomes rows c * kernel ... of im2col; along units themselves they can't be cut."""
    carry, labels = c.carry(x)
    if carry is None:
        return c.zeros()
    if "im2col" in str(c.node.target) and carry == 1:
        return c.spread(labels.repeat_interleave(c.shape[1] // len(labels)), 1, c.shape)
    if "unfold" in str(c.node.target) and c.shape[carry] == x.labels.shape[carry]:
        return c.spread(labels, carry, c.shape)
    c.pin(labels, "cut into windows along the units")
    return c.zeros()
