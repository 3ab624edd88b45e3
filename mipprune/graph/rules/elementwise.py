"""Operations that work element by element, and their broadcasting."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ModelStateError
from ..context import Context, Labels, Value
from ..describe import describe
from ..registry import register_rule


def names(*operations: str) -> list[str]:
    """ATen names of operations."""
    return [f"aten.{operation}" for operation in operations]


@register_rule(*names(
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "celu", "selu", "hardtanh", "hardswish",
    "hardsigmoid", "hardshrink", "softshrink", "softplus", "softsign", "mish", "log_sigmoid", "neg", "abs", "exp",
    "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos", "tan", "atan", "sinh", "cosh",
    "square", "sign", "floor", "ceil", "round", "clamp", "clamp_min", "clamp_max", "threshold", "tanhshrink", "clone",
    "contiguous", "detach", "detach_", "alias", "to", "_to_copy", "type_as", "float", "half", "double", "bfloat16",
    "bitwise_not", "logical_not", "isnan", "isinf", "nan_to_num", "lift_fresh_copy", "zeros_like", "ones_like",
    "full_like", "empty_like", "rand_like", "randn_like", "pow.Tensor_Scalar", "remainder.Scalar", "rrelu",
    "dropout_", "_assert_tensor_metadata", "eq.Scalar", "ne.Scalar", "gt.Scalar", "lt.Scalar", "ge.Scalar",
    "le.Scalar", "real", "imag", "conj", "_conj", "_conj_physical", "resolve_conj", "angle",
))
def unary(c: Context, x: Value, *_: Any, **__: Any) -> Any:
    """Every element depends on one element: labels stay, and a parameter stays recognisable."""
    return x if x.name is None and x.source is None else Value(x.labels, None, x.origin)


@register_rule(*names("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))
def _dropout(c: Context, x: Value, p: float, train: bool) -> Any:
    if train and p > 0:
        raise ModelStateError(
            f"{describe(c.node)} is random: it is in training mode; call model.eval(), "
            f"or pass training=self.training to the functional form"
        )
    return unary(c, x)


@register_rule(*names(
    "add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "fmod", "remainder", "atan2", "where", "eq", "ne",
    "gt", "lt", "ge", "le", "logical_and", "logical_or", "bitwise_and", "bitwise_or", "__and__", "__or__", "xlogy",
    "logaddexp", "lerp", "addcmul", "addcdiv", "min.other", "max.other", "masked_fill", "floor_divide", "heaviside",
    "copysign", "polar", "complex",
))
def elementwise(c: Context, *args: Any, **_: Any) -> Any:
    """Broadcast operations of any number of tensors: units that meet are tied."""
    values = [a for a in args if isinstance(a, Value)]
    if len(values) == 1:
        return unary(c, values[0])
    shape = c.shape
    carriers = []
    for value in values:
        dim, labels = c.carry(value)
        if dim is not None:
            carriers.append((dim + len(shape) - value.labels.ndim, labels, value))
    if not carriers:
        return _parameters_only(c, values)
    dim, labels, first = carriers[0]
    for value in values:
        if value is not first:
            other = next((d for d, _, v in carriers if v is value), dim)
            if other != dim:
                c.pin(value.labels, "units along different dimensions meet")
                c.pin(labels, "units along different dimensions meet")
            c.match(dim, labels, value, len(shape))
    return c.spread(labels, dim, shape)


def _parameters_only(c: Context, values: list[Value]) -> Any:
    """No units yet: an element of a parameter combined with single numbers is still that parameter's element."""
    large = [v for v in values if v.labels.numel() > 1]
    if len(large) == 1 and large[0].origin is not None and tuple(large[0].labels.shape) == c.shape:
        return unary(c, large[0])
    return c.zeros()


@register_rule("aten.prelu.default")
def _prelu(c: Context, x: Value, weight: Value) -> Labels:
    if weight.labels.numel() > 1:
        c.attach(weight, c.features(x, 1))
    return x.labels


@register_rule("aten.glu.default")
def _glu(c: Context, x: Value, dim: int = -1) -> Labels:
    left, right = torch.chunk(x.labels, 2, dim)
    c.couple(left, right)
    return left
