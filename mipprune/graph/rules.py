"""What every operation does to labels.  One small function per kind of operation, registered by ATen name.

A rule gets a :class:`Context` and the operation's arguments, where every tensor is a :class:`Value`, and returns the
labels of the result (a tensor of the result's shape at batch size 1, or a tuple of them).  See :func:`register_rule`
for how to add one.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..errors import ModelStateError, TraceError
from .capture import describe, module_path, shape_at
from .labels import LabelSpace, Site

__all__ = ["Context", "Contraction", "MaskEdge", "Value", "register_rule"]

Labels = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor during tracing: its labels (batch size 1), and its name if it is a parameter or buffer itself."""

    labels: Labels
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class MaskEdge:
    """A place where units are read: ``labels`` run along dimension ``dim`` of the first argument of ``node``."""

    node: fx.Node
    module: str
    dim: int
    labels: Labels


@dataclasses.dataclass(frozen=True)
class Contraction:
    """An operation that costs ``factor * (inputs kept) * (outputs kept)`` multiply-adds per sample.

    ``inputs`` is ``None`` for an operation whose cost is linear in the outputs (depthwise convolution).
    """

    inputs: Labels | None
    outputs: Labels
    factor: int


class Context:
    """What a rule may do besides returning labels: look up parameter labels, couple, pin, and note costs and reads."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self.edges: list[MaskEdge] = []
        self.contractions: list[Contraction] = []
        self.producers: list[tuple[str, Site]] = []
        self.node: fx.Node = None  # type: ignore[assignment]  # set before every rule

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results at batch size 1."""
        value = self.node.meta["val"]
        values = value if isinstance(value, (tuple, list)) else [value]
        return [shape_at(v.shape, 1) for v in values if isinstance(v, torch.Tensor)]

    def pin(self, labels: Labels, reason: str) -> None:
        self.space.pin(labels, f"{reason} ({describe(self.node, source=False)})")

    def couple(self, left: Labels, right: Labels) -> None:
        self.space.couple(left, right, f"tied to values that can't be pruned ({describe(self.node, source=False)})")

    def features(self, value: Value, dim: int) -> Labels:
        """Labels along ``dim``, shape (size,); units that differ between positions are pinned and read as 0."""
        rows = value.labels.movedim(dim, -1).reshape(-1, value.labels.shape[dim])
        same = (rows == rows[0]).all(0)
        if not bool(same.all()):
            self.pin(rows[:, ~same], "units lie along positions, not features, here")
        return torch.where(same, rows[0], 0)

    def spread(self, labels: Labels, dim: int, shape: tuple[int, ...]) -> Labels:
        """A vector of labels along dimension ``dim`` of ``shape``."""
        view = [1] * len(shape)
        view[dim] = -1
        return labels.reshape(view).expand(shape)

    def contract(self, x: Value, dim: int, weight: Value, w_in: int, w_out: int, factor: int) -> Labels:
        """``x`` along ``dim`` is multiplied by ``weight``: couples the columns, notes the read and the cost."""
        if weight.name is None:
            raise TraceError(f"{describe(self.node)}: the weight is computed, not a parameter; no rule describes that")
        columns = self.features(x, dim)
        size_in, size_out = weight.labels.shape[w_in], weight.labels.shape[w_out]
        self.couple(columns, self.space.of(weight.name, w_in, size_in))
        out = self.space.of(weight.name, w_out, size_out)
        module = module_path(self.node) or weight.name
        self.edges.append(MaskEdge(self.node, module, dim, columns))
        self.contractions.append(Contraction(columns, out, factor))
        self.producers.append((module, (weight.name, w_out)))
        return out

    def attach(self, parameter: Value | None, labels: Labels) -> None:
        """A vector parameter (bias, batch-norm scale) has one entry per unit of ``labels``."""
        if parameter is None:
            return
        if parameter.name is None:
            self.pin(labels, "tied to a computed vector")
            return
        self.couple(labels, self.space.of(parameter.name, 0, len(labels)))


Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations, such as ``"aten.relu"`` (all overloads) or ``"aten.mean.dim"`` (one).

    The rule is called as ``rule(context, *args, **kwargs)`` with the operation's own arguments, tensors replaced by
    :class:`Value`; it returns the labels of the result at batch size 1.  A later registration wins.
    """

    def add(rule: Rule) -> Rule:
        for name in names:
            _RULES[name] = rule
        return rule

    return add


def apply_rule(context: Context, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Labels of ``node``'s result; without a rule a :class:`TraceError` names module, operation and source line."""
    context.node = node
    name = str(node.target)
    rule = _RULES.get(name) or _RULES.get(name.rpartition(".")[0])
    if rule is None:
        raise TraceError(
            f"no rule for {describe(node)}.\n"
            f"mipprune doesn't guess what an unknown operation does to units. Add a rule with "
            f"@mipprune.graph.register_rule({name!r}), or trace the part of the model without it."
        )
    return rule(context, *args, **kwargs)


def _names(*operations: str) -> list[str]:
    return [f"aten.{op}" for op in operations]


@register_rule("aten.linear.default")
def _linear(c: Context, x: Value, weight: Value, bias: Value | None = None) -> Labels:
    shape = c.shapes[0]
    out = c.contract(x, x.labels.ndim - 1, weight, 1, 0, math.prod(shape[:-1]))
    c.attach(bias, out)
    return c.spread(out, len(shape) - 1, shape)


@register_rule(*_names("conv1d", "conv2d", "conv3d"))
def _conv(
    c: Context, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Labels:
    shape = c.shapes[0]
    if len(shape) != weight.labels.ndim:
        raise TraceError(f"{describe(c.node)}: the input has no batch dimension")
    positions = math.prod(shape[2:])
    kernel = math.prod(weight.labels.shape[2:])
    n_out = weight.labels.shape[0]
    if groups == 1:
        out = c.contract(x, 1, weight, 1, 0, positions * kernel)
    elif weight.name is not None and groups == n_out == x.labels.shape[1]:  # depthwise: one filter per channel
        out = c.space.of(weight.name, 0, n_out)
        c.couple(c.features(x, 1), out)
        c.contractions.append(Contraction(None, out, positions * kernel))
    else:
        c.pin(x.labels, f"a convolution with {groups} groups reads it")
        n_in = weight.labels.shape[1]
        out = torch.zeros(n_out, dtype=torch.int64)
        c.contractions.append(Contraction(None, out, positions * kernel * n_in))
        return c.spread(out, 1, shape)
    c.attach(bias, out)
    return c.spread(out, 1, shape)


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
    return x.labels


@register_rule(*_names("dropout", "feature_dropout", "alpha_dropout"))
def _dropout(c: Context, x: Value, p: float, train: bool) -> Labels:
    if train and p > 0:
        raise ModelStateError(
            f"{describe(c.node)} is random: it is in training mode; call model.eval(), "
            f"or pass training=self.training to the functional form"
        )
    return x.labels


@register_rule(*_names(
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "celu", "selu", "hardtanh", "hardswish",
    "hardsigmoid", "softplus", "mish", "log_sigmoid", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "erf",
    "sin", "cos", "square", "clamp", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "pow.Tensor_Scalar",
))
def _elementwise(c: Context, x: Value, *_: Any, **__: Any) -> Labels:
    return x.labels


@register_rule(*_names("add", "sub", "mul", "div", "maximum", "minimum"))
def _binary(c: Context, x: Any, y: Any, **_: Any) -> Labels:
    values = [v for v in (x, y) if isinstance(v, Value)]
    tensors = [v for v in values if v.labels.numel() > 1 or v.name is None]
    shape = c.shapes[0]
    if not tensors:
        return torch.zeros(shape, dtype=torch.int64)
    if len(tensors) == 1:
        return tensors[0].labels.expand(shape)
    activations = [v for v in tensors if v.name is None]
    parameters = [v for v in tensors if v.name is not None]
    if not activations:
        return torch.zeros(shape, dtype=torch.int64)
    labels = activations[0].labels.expand(shape)
    for other in activations[1:]:
        c.couple(labels, other.labels.expand(shape))
    for parameter in parameters:
        _couple_parameter(c, labels, parameter)
    return labels


@register_rule("aten.prelu.default")
def _prelu(c: Context, x: Value, weight: Value) -> Labels:
    if weight.labels.numel() > 1:
        c.attach(weight, c.features(x, 1))
    return x.labels


def _couple_parameter(c: Context, labels: Labels, parameter: Value) -> None:
    """A parameter is added or multiplied elementwise: one of its dimensions runs along the units."""
    padded = (1,) * (labels.ndim - parameter.labels.ndim) + tuple(parameter.labels.shape)
    for dim in range(labels.ndim):
        rows = labels.movedim(dim, -1).reshape(-1, labels.shape[dim])
        if bool((rows == rows[0]).all()) and padded[dim] == labels.shape[dim] and labels.shape[dim] > 1:
            own = dim - (labels.ndim - parameter.labels.ndim)
            c.couple(rows[0], c.space.of(parameter.name or "", own, labels.shape[dim]))
            return
    if bool((labels != 0).any()) and any(size > 1 for size in padded):
        c.pin(labels, f"no dimension of parameter {parameter.name!r} runs along the units")


@register_rule(*_names(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
))
def _pool(c: Context, x: Value, *_: Any, **__: Any) -> Any:
    shapes = c.shapes
    labels = c.spread(c.features(x, 1), 1, shapes[0])
    return labels if len(shapes) == 1 else (labels,) * len(shapes)


@register_rule(*_names("mean.dim", "sum.dim_IntList", "amax", "amin"))
def _reduce(c: Context, x: Value, dims: Any = None, keepdim: bool = False, **_: Any) -> Labels:
    n = x.labels.ndim
    dims = range(n) if not dims and dims != 0 else [dims] if isinstance(dims, int) else dims
    dims = sorted(d % n for d in dims)
    labels = x.labels
    for dim in dims:
        first = labels.narrow(dim, 0, 1)
        if bool((labels != first).any()):
            c.pin(labels, "units are summed over")
            first = torch.zeros_like(first)
        labels = first
    return labels if keepdim else labels.reshape([s for d, s in enumerate(labels.shape) if d not in dims])


_MOVES_WITH_SIZES = ("view", "reshape", "_unsafe_view", "unflatten")


@register_rule(*_names(
    *_MOVES_WITH_SIZES, "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "slice", "select",
    "cat", "stack", "split", "chunk", "unbind", "flip", "roll", "movedim", "narrow", "split_with_sizes",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "repeat", "expand_as", "view_as",
))
def _move(c: Context, *args: Any, **kwargs: Any) -> Any:
    """Elements only move: run the very operation on the labels."""
    plain = [[v.labels if isinstance(v, Value) else v for v in a] if isinstance(a, (list, tuple)) else
             a.labels if isinstance(a, Value) else a for a in args]
    out = c.node.target(*plain, **kwargs)  # type: ignore[operator]
    if c.node.target.name().removeprefix("aten::").partition(".")[0] in _MOVES_WITH_SIZES:  # type: ignore[union-attr]
        _pin_literal_sizes(c, args[0].labels, out)
    return tuple(out) if isinstance(out, (list, tuple)) else out


def _pin_literal_sizes(c: Context, before: Labels, after: Labels) -> None:
    """A size written as a number stays that number in the smaller model, so units along it can't go."""
    sizes = [a for a in c.node.args[1:] if isinstance(a, (list, tuple))][-1]
    offset = after.ndim - len(sizes)
    for position, size in enumerate(sizes):
        dim = position + offset
        if not isinstance(size, int) or size == -1 or after.shape[dim] <= 1:
            continue
        if after.ndim == before.ndim and before.shape[dim:] == after.shape[dim:] and not bool((before != after).any()):
            continue
        rows = after.movedim(dim, -1).reshape(-1, after.shape[dim])
        varies = rows != rows[:, :1]
        if bool(varies.any()):
            c.pin(after, f"reshaped to the literal size {size}; use -1 or a size taken from the tensor")
            return


@register_rule("<built-in function getitem>")
def _getitem(c: Context, values: Any, index: Any) -> Labels:
    return values[index].labels if isinstance(values[index], Value) else values[index]


@register_rule(*_names(
    "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax", "_softmax", "_log_softmax",
    "embedding", "cumsum", "max.dim", "zeros_like", "ones_like", "full_like", "logsumexp", "linalg_vector_norm",
    "where.self", "prod.dim_int", "var.dim", "std.dim", "mean.default", "sum.default",
))
def _opaque(c: Context, *args: Any, **_: Any) -> Any:
    """Known operations that mix units: everything that reaches them is pinned, what leaves them is not prunable."""
    for arg in args:
        for value in arg if isinstance(arg, (list, tuple)) else [arg]:
            if isinstance(value, Value):
                c.pin(value.labels, f"read by {c.node.target}, whose units can't be pruned apart")
    shapes = c.shapes
    outs = tuple(torch.zeros(shape, dtype=torch.int64) for shape in shapes)
    return outs[0] if len(outs) == 1 and not isinstance(c.node.meta["val"], (tuple, list)) else outs


@register_rule(*_names("matmul", "bmm", "mm"))
def _matmul(c: Context, x: Value, y: Value) -> Labels:
    _constant_cost(c, math.prod(c.shapes[0]) * x.labels.shape[-1])
    return _opaque(c, x, y)


@register_rule("aten.scaled_dot_product_attention.default")
def _attention(c: Context, query: Value, key: Value, value: Value, *_: Any, **__: Any) -> Labels:
    positions = math.prod(query.labels.shape[:-1]) * key.labels.shape[-2]
    _constant_cost(c, positions * (query.labels.shape[-1] + value.labels.shape[-1]))
    return _opaque(c, query, key, value)


def _constant_cost(c: Context, macs: int) -> None:
    c.contractions.append(Contraction(None, torch.zeros(1, dtype=torch.int64), macs))


_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv, operator.truediv}


def is_integer_node(node: fx.Node) -> bool:
    """A node whose value is a size, not a tensor."""
    value = node.meta.get("val")
    return node.target in _ARITHMETIC or isinstance(value, (int, torch.SymInt))
