"""``trace``: a model in, its units out."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ..errors import ModelStateError, TraceError
from . import rules  # noqa: F401 - importing them registers them
from .capture import Capture, capture, is_integer_node, shape_at
from .context import Context, Value
from .describe import computed_weight_fix, describe
from .labels import LabelSpace, Site
from .program import Program
from .registry import apply_rule
from .resolve import resolve_sizes
from .units import UnitGraph, build_units

__all__ = ["trace"]


def trace(
    model: nn.Module, example_input: torch.Tensor | tuple[torch.Tensor, ...], *, ignore: Sequence[str] = (),
    time_limit: float = 300.0, rewrite: bool = True,
) -> UnitGraph:
    """Find the prunable units of ``model``: neurons, channels and heads, tied together where the network ties them.

    Args:
        model: a network in evaluation mode.  It is neither copied nor changed.
        example_input: one tensor, or a tuple of tensors for a ``forward`` of several arguments; dimension 0 is the
            batch.  Only shapes, dtypes and device matter; one sample is enough.
        ignore: module paths in which an operation without a rule pins what reaches it, instead of being an error.
        time_limit: seconds after which tracing is given up.
        rewrite: sizes in the code of the model's own methods that would be wrong after pruning, such as
            ``y.view(B, T, C)`` or a literal, may be replaced there by attributes; the pruned network's modules then are
            of a subclass with the changed method.  ``print(graph)`` lists them.  If false, they pin the units.

    Returns:
        The :class:`UnitGraph`.  Layers that can't be pruned are listed in ``.pinned`` with the reason.

    Raises:
        TraceError: an operation has no rule (named with its module path and source line), control flow depends on
            tensor values, the batch size is hard-coded, or the time limit has passed (names where).
        ModelStateError: dropout or batch-norm in training mode, or a parameter that isn't finite.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace needs an nn.Module, got {type(model).__name__}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelStateError(f"{name!r} holds NaN or infinite values; the network can't be measured")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    deadline = time.monotonic() + time_limit
    captured = capture(model, example, deadline)
    context = _propagate(model, captured, tuple(ignore), deadline)
    return build_units(model, context, resolve_sizes(context, rewrite), Program(model, captured))


def _propagate(model: nn.Module, captured: Capture, ignore: tuple[str, ...], deadline: float) -> Context:
    """Walk the operations once, carrying labels."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    context = Context(LabelSpace(), captured, shapes, ignore)
    env = context.values
    for name, shape in zip(captured.inputs, captured.input_shapes, strict=True):
        env[name] = Value(torch.zeros(shape_at(shape, 1), dtype=torch.int64))
    canonical: dict[int, str] = {}
    for placeholder, name in captured.tensors.items():
        tensor = captured.constants.get(name, tensors.get(name))
        if tensor is None:
            raise TraceError(f"the captured network reads {name!r}, which the model doesn't have")
        own = canonical.setdefault(id(tensor), name)  # tied weights are one tensor under two names
        constant = name in captured.constants or not tensor.is_floating_point()
        env[placeholder] = Value(torch.zeros(tensor.shape, dtype=torch.int64), None if constant else own)

    def value(node: fx.Node) -> Any:
        return env[node.name]

    for node in captured.nodes:
        if time.monotonic() > deadline:
            raise TraceError(f"tracing took longer than its time_limit; it had come to {describe(node)}")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if is_integer_node(node):
            env[node.name] = _integer(node, args)
            continue
        if not _makes_tensors(node):
            env[node.name] = None
            continue
        result = apply_rule(context, node, args, kwargs)
        result = tuple(_as_value(x) for x in result) if isinstance(result, tuple) else _as_value(result)
        env[node.name] = result
        if isinstance(result, Value) and tuple(result.labels.shape) != context.shape:
            raise TraceError(f"the rule for {describe(node)} returned labels of shape {tuple(result.labels.shape)}, "
                             f"the result has shape {context.shape}")
    for node in captured.outputs:
        out: Value = env[node.name]
        context.space.pin(out.labels, "part of the network's output")
    _pin_unspoken_readers(context)
    return context


def _as_value(result: Any) -> Value:
    return result if isinstance(result, Value) else Value(result)


def _makes_tensors(node: fx.Node) -> bool:
    """Checks and bounds that torch.export writes down make none."""
    return node.target is operator.getitem or node.meta.get("val") is not None


def _integer(node: fx.Node, args: tuple[Any, ...]) -> Any:
    plain = [a.labels if isinstance(a, Value) else a for a in args]
    return node.target(*plain)  # type: ignore[operator]


def _pin_unspoken_readers(context: Context) -> None:
    """Where an operation reads a parameter and its rule said nothing of a dimension, that dimension has to stay.

    It matters for tensors that are used twice: once as a layer's weight, and once in some other way.
    """
    by_name: dict[str, list[Site]] = {}
    for site in context.space.sites:
        by_name.setdefault(site[0], []).append(site)
    for node in context.captured.nodes:
        handed_on = {v.source[0] for v in _values(context.values[node.name]) if v.source is not None}
        for value in _values([context.values.get(a.name) for a in node.all_input_nodes]):
            name = value.name if value.source is None else value.source[0]
            if name is None or name in handed_on:
                continue
            for site in by_name.get(name, ()):
                if site not in context.spoken.get(node.name, ()):
                    beside = (name, *(f"{name.removesuffix('_orig')}{end}" for end in ("_u", "_mask")))
                    fix = computed_weight_fix(n for n in beside if n in context.tensor_shapes)
                    reason = f"{name!r} is also read in a way that needs all of its dimension {site[1]}"
                    what = f"; call {fix} first" if fix else ""
                    context.space.pin(context.space.sites[site], f"{reason} ({describe(node)}){what}")


def _values(tree: Any) -> list[Value]:
    if isinstance(tree, (tuple, list)):
        return [value for item in tree for value in _values(item)]
    return [tree] if isinstance(tree, Value) else []
