"""``trace``: a model in, its units out."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelStateError, TraceError
from .capture import Capture, capture, describe, shape_at
from .labels import LabelSpace
from .program import Program
from .rules import Context, Value, apply_rule, is_integer_node
from .units import UnitGraph, build_units

__all__ = ["trace"]


def trace(model: nn.Module, example_input: torch.Tensor | tuple[torch.Tensor, ...]) -> UnitGraph:
    """Find the prunable units of ``model``: neurons and channels, tied together where the network ties them.

    Args:
        model: a network in evaluation mode.  It is neither copied nor changed.
        example_input: one tensor, or a tuple of tensors for a ``forward`` of several arguments; dimension 0 is the
            batch.  Only shapes, dtypes and device matter; one sample is enough.

    Returns:
        The :class:`UnitGraph`.  Layers that can't be pruned are listed in ``.pinned`` with the reason.

    Raises:
        TraceError: an operation has no rule (named with its module path and source line), control flow depends on
            tensor values, or the batch size is hard-coded.
        ModelStateError: dropout or batch-norm in training mode, or a parameter that isn't finite.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace needs an nn.Module, got {type(model).__name__}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelStateError(f"{name!r} holds NaN or infinite values; the network can't be measured")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    captured = capture(model, example)
    context = _propagate(model, captured)
    return build_units(model, context, Program(model, captured))


def _propagate(model: nn.Module, captured: Capture) -> Context:
    """Walk the operations once, carrying labels."""
    context = Context(LabelSpace())
    env: dict[str, Any] = {}
    for name, shape in zip(captured.inputs, captured.input_shapes, strict=True):
        env[name] = Value(torch.zeros(shape_at(shape, 1), dtype=torch.int64))
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    canonical: dict[int, str] = {}
    for placeholder, name in captured.tensors.items():
        tensor = captured.constants.get(name, tensors.get(name))
        if tensor is None:
            raise TraceError(f"the captured network reads {name!r}, which the model doesn't have")
        own = canonical.setdefault(id(tensor), name)  # tied weights are one tensor under two names
        constant = name in captured.constants
        env[placeholder] = Value(torch.zeros(tensor.shape, dtype=torch.int64), None if constant else own)

    def value(node: fx.Node) -> Any:
        return env[node.name]

    for node in captured.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if is_integer_node(node):
            env[node.name] = _integer(node, args)
            continue
        labels = apply_rule(context, node, args, kwargs)
        env[node.name] = tuple(Value(x) for x in labels) if isinstance(labels, tuple) else Value(labels)
        if not isinstance(labels, tuple) and tuple(labels.shape) != context.shapes[0]:
            raise TraceError(f"the rule for {describe(node)} returned labels of shape {tuple(labels.shape)}, "
                             f"the result has shape {context.shapes[0]}")
    for node in captured.outputs:
        out: Value = env[node.name]
        context.space.pin(out.labels, "part of the network's output")
    return context


def _integer(node: fx.Node, args: tuple[Any, ...]) -> int:
    plain = [a.labels if isinstance(a, Value) else a for a in args]
    return int(node.target(*plain))  # type: ignore[operator]
