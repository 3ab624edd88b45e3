"""Turn an exported graph into plain operations: regions are written out, in-place operations become functional."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from .describe import describe

__all__ = ["functionalise", "inline_regions", "mutated_argument"]

#: Operations that may hand back their input itself although their schema doesn't say so.
_MAY_ALIAS = {"dropout", "reshape", "contiguous", "flatten", "to", "type_as", "expand_as"}


def inline_regions(module: fx.GraphModule) -> None:
    """Write out the bodies of ``torch.no_grad()`` and disabled autocast regions, which export keeps as sub-graphs."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        kind = node.target.name()
        body = next((a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"), None)
        if body is None or kind not in {"wrap_with_autocast", "wrap_with_set_grad_enabled"}:
            raise TraceError(f"{describe(node)}: control flow inside the graph ({kind}) isn't supported; write it with "
                             f"torch.where, or trace the part of the model without it")
        if kind == "wrap_with_autocast" and node.args[2]:
            raise TraceError(f"{describe(node)} turns autocast on inside forward; trace the model without it")
        region = getattr(module, str(body.target))
        inline_regions(region)
        inputs = node.args[node.args.index(body) + 1 :]
        placeholders = [n for n in region.graph.nodes if n.op == "placeholder"]
        values: dict[fx.Node, Any] = dict(zip(placeholders, inputs, strict=True))
        with graph.inserting_before(node):
            outputs = graph.graph_copy(region.graph, values)
        _replace_outputs(graph, node, outputs)
        graph.erase_node(node)
    for node in [n for n in graph.nodes if n.op == "get_attr" and not n.users]:
        graph.erase_node(node)


def _replace_outputs(graph: fx.Graph, node: fx.Node, outputs: Any) -> None:
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
        return
    for user in list(node.users):
        assert user.target is operator.getitem, user
        user.replace_all_uses_with(outputs[user.args[1]])
        graph.erase_node(user)


def mutated_argument(node: fx.Node) -> str | None:
    """Name of the node that ``node`` writes to in place, if any."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return value.name if isinstance(value, fx.Node) else None
    return None


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if schema.name.removeprefix("aten::") in _MAY_ALIAS:
        return True
    return any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)


def functionalise(graph: fx.Graph) -> None:
    """Replace every in-place operation by its functional twin, and later reads of the tensor by the result.

    (``ExportedProgram.run_decompositions`` would do it too, but it rewrites ``flatten`` into a view with literal
    sizes, and then a hard-coded size in the user's code could no longer be told from a harmless one.)
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or (name := mutated_argument(node)) is None:
            continue
        target = next(n for n in order if n.name == name)
        aliases = [u for u in target.users if u is not node and _is_view(u)]
        late = any(order.get(use, 0) > order[node] for view in aliases for use in view.users)
        if late or (_is_view(target) and any(order.get(u, 0) > order[node] for u in target.all_input_nodes[0].users)):
            raise TraceError(f"{describe(node)} writes in place to a tensor that is also read through a view; "
                             f"use the out-of-place operation there")
        packet = node.target.name().removeprefix("aten::").partition(".")[0]
        functional = getattr(torch.ops.aten, packet.removesuffix("_"), None)
        overload = getattr(functional, node.target._overloadname, None) or getattr(functional, "default", None)
        if overload is None or overload._schema.is_mutable:
            raise TraceError(f"{describe(node)} works in place and has no out-of-place twin; rewrite it out of place")
        node.target = overload
        target.replace_all_uses_with(node, delete_user_cb=lambda use, at=order[node]: order.get(use, 0) > at)
