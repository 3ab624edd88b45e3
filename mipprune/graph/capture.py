"""Capture a model as a list of ATen operations with ``torch.export``, free of in-place operations.

Why torch.export: it sees through any Python, keeps composite operations (linear, conv2d, attention) whole, says for
every operation which module and source line it comes from, and ends in about a second on every network tried.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind

from ..errors import DataError, ModelStateError, TraceError
from .describe import user_line
from .functional import functionalise, inline_regions, mutated_argument
from .sizes import AttributeSize, Expression, Origin, OutOfTime, Recorder, instrumented, integers
from .source import CallSite, Slot

__all__ = ["Capture", "capture", "is_integer_node", "packet_of", "shape_at"]


@dataclasses.dataclass(frozen=True)
class Capture:
    """A captured forward pass.

    Attributes:
        nodes: the operations in execution order (fx ``call_function`` nodes).
        inputs: names of the user's tensor inputs, in call order.
        tensors: node name -> fully qualified name of the parameter, buffer or constant it stands for.
        constants: fully qualified name -> tensor, for tensors that belong to no module.
        output: the node whose value is the network's output (the first tensor that ``forward`` returns).
        outputs: all nodes that ``forward`` returns.
        sizes: node name -> where each integer among its arguments came from, in order (None: symbolic).
        results: (recorded call, output) -> name of the node that holds it.
        numeric: sizes whose value also enters the computation as a number.
        attributes: every integer attribute of every module, with its value.
        calls: node name -> the recorded call that made it, where their integers are the same in order.
        sites: recorded call -> where it stands in the code of a module's method; ``methods``: those methods.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[Any, ...], ...]
    tensors: dict[str, str]
    constants: dict[str, torch.Tensor]
    output: fx.Node
    outputs: tuple[fx.Node, ...]
    sizes: dict[str, list[Expression | None]]
    results: dict[tuple[int, int | None], str]
    numeric: frozenset[Expression]
    attributes: dict[AttributeSize, int]
    calls: dict[str, int]
    sites: dict[int, CallSite]
    methods: dict[CallSite, Callable[..., Any]]

    def slot(self, node: str, position: int) -> Slot | None:
        """Where integer ``position`` of a node's arguments stands in the code of a module's method, if it does."""
        site = self.sites.get(self.calls.get(node, 0))
        return None if site is None else Slot(site, position)


def capture(model: nn.Module, example: tuple[torch.Tensor, ...], deadline: float = float("inf")) -> Capture:
    """Export ``model`` on ``example`` with a free batch dimension (dimension 0 of every input).

    Args:
        deadline: value of ``time.monotonic()`` at which to give up.

    Raises:
        TraceError: torch.export can't follow the model, the batch size is hard-coded, or no tensor is returned.
        ModelStateError: a batch-norm layer is in training mode (its buffers would be written to).
    """
    if not example or not all(isinstance(x, torch.Tensor) and x.ndim >= 1 for x in example):
        raise DataError("example_input: expected a tensor, or a tuple of tensors, with a batch dimension first")
    if any(len(x) == 0 for x in example):
        raise DataError("example_input holds no sample")
    # torch.export takes a dimension of size 1 for a constant, so it is shown a batch of two
    example = tuple(torch.cat([x[:1], x[:1]]) for x in example)
    _try_run(model, example)
    recorder = Recorder(deadline)
    recorded = instrumented(model, recorder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                recorded, example, dynamic_shapes=tuple({0: Dim.AUTO} for _ in example)
            )
    except OutOfTime:
        raise
    except Exception as error:  # torch.export raises many kinds, all of them its word for "can't be captured"
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TraceError(
            f"torch.export can't capture {type(model).__name__}{user_line(error, recorded)}: {first}\n"
            f"Python control flow that looks at tensor values is the usual cause. "
            f"Rewrite it with torch.where / torch.cond, or trace the sub-module before it."
        ) from error
    graph = exported.graph
    inline_regions(exported.graph_module)
    _refuse_buffer_updates(graph, exported)
    functionalise(graph)
    tensors: dict[str, str] = {}
    constants: dict[str, torch.Tensor] = {}
    inputs: list[str] = []
    for spec in exported.graph_signature.input_specs:
        name = str(getattr(spec.arg, "name", ""))
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(name)
        elif spec.target is not None:
            tensors[name] = spec.target
            if spec.kind is InputKind.CONSTANT_TENSOR:
                constants[spec.target] = exported.constants[spec.target]
    placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    inputs = [name for name in inputs if isinstance(placeholders[name].meta.get("val"), torch.Tensor)]
    shapes = tuple(tuple(placeholders[name].meta["val"].shape) for name in inputs)
    for name, shape in zip(inputs, shapes, strict=True):
        if isinstance(shape[0], int) or not shape[0].node.expr.free_symbols:
            raise TraceError(
                f"the batch size is hard-coded (input {name!r} is specialised to {shape[0]} samples): in forward, "
                f"use x.shape[0] or -1 instead of a number (or of len(x), which is one) where the batch "
                f"dimension is meant"
            )
    output_node = next(n for n in graph.nodes if n.op == "output")
    outputs = [n for n in output_node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if not outputs:
        raise TraceError(f"{type(model).__name__}.forward returns no tensor that depends on its input")
    nodes = tuple(n for n in graph.nodes if n.op == "call_function")
    sizes, results = _origins(nodes, recorder)
    calls = {n.name: call for n in nodes if (call := (n.meta.get("custom") or {}).get("call")) is not None
             and _same_integers(n, recorder.arguments[call])}
    types = {path: type(module) for path, module in model.named_modules()}
    methods = {site: getattr(types[site.module], site.method) for site in recorder.sites.values()
               if hasattr(types[site.module], site.method)}
    return Capture(nodes, tuple(inputs), shapes, tensors, constants, outputs[0], tuple(outputs), sizes, results,
                   frozenset(recorder.numeric), recorder.attributes, calls, recorder.sites, methods)


def _origins(
    nodes: tuple[fx.Node, ...], recorder: Recorder
) -> tuple[dict[str, list[Expression | None]], dict[tuple[int, int | None], str]]:
    """Where the integers of every node came from, and which node holds the result of every recorded call."""
    sizes: dict[str, list[Expression | None]] = {}
    results: dict[tuple[int, int | None], str] = {}
    calls = {node: (node.meta.get("custom") or {}).get("call") for node in nodes
             if node.target is operator.getitem or node.meta.get("val") is not None}  # checks copy their input's notes
    made = collections.Counter(call for node, call in calls.items() if node.target is not operator.getitem)
    for node, call in calls.items():
        if call is None:
            continue
        alone = made[call] == 1 or recorder.names[call] == "__getitem__"
        sizes[node.name] = _aligned(node, recorder.arguments[call], alone)
        if node.target is operator.getitem:
            results[call, node.args[1]] = node.name  # type: ignore[index]
        else:
            results[call, None] = node.name
    for result, before in recorder.same.items():  # export drops operations that change nothing, in order
        if result not in results and before in results:
            results[result] = results[before]
    return sizes, results


def _aligned(node: fx.Node, recorded: list[Origin], alone: bool) -> list[Expression | None]:
    """Origin of every integer among the arguments of ``node``, in order; a plain int where nothing is known.

    ``alone``: the recorded call made this node only, so that equal numbers in another order can be told apart.
    """
    values = [x if isinstance(x, int) else None for x in integers((node.args, node.kwargs), symbols=fx.Node)]
    if _same_integers(node, recorded):
        return [None if v is None else e for v, (_, e) in zip(values, recorded)]
    if not alone:
        return list(values)
    out: list[Expression | None] = []
    for value in values:  # another order of arguments: a value that has one origin only is still known
        origins = {expression for v, expression in recorded if v == value}
        out.append(None if value is None else origins.pop() if len(origins) == 1 else value)
    return out


def _same_integers(node: fx.Node, recorded: list[Origin]) -> bool:
    """Whether the integers of ``node`` are the recorded ones, in the same order."""
    values = [x if isinstance(x, int) else None for x in integers((node.args, node.kwargs), symbols=fx.Node)]
    given = [value for value, _ in recorded]
    return len(values) == len(given) and all(a == b or a is None or b is None for a, b in zip(values, given))


def _try_run(model: nn.Module, example: tuple[torch.Tensor, ...]) -> None:
    """Run the model once, so that an input that doesn't fit is told apart from a model that can't be captured."""
    trial = copy.deepcopy(model) if any(m.training for m in model.modules()) else model  # batch-norm would learn
    try:
        with torch.no_grad():
            trial(*example)
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join(str(tuple(x.shape)) for x in example)
        if _runs(trial, tuple(x[:1] for x in example)):
            raise TraceError(
                f"the batch size is hard-coded: {type(model).__name__} runs on one sample, not on two"
                f"{user_line(error, trial)}: {error}\nUse x.shape[0] or -1 where the batch dimension is meant"
            ) from error
        raise TraceError(f"{type(model).__name__} doesn't run on inputs of shape {shapes}: {error}") from error


def _runs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> bool:
    try:
        with torch.no_grad():
            model(*example)
    except Exception:  # whatever the user's forward raises
        return False
    return True


def shape_at(shape: tuple[Any, ...], batch: int) -> tuple[int, ...]:
    """A traced shape with the number ``batch`` put in for the batch symbol."""
    return tuple(int_at(size, batch) for size in shape)


def int_at(value: Any, batch: int) -> int:
    """A traced integer (an int or a SymInt) at a batch size."""
    if isinstance(value, int):
        return value
    return _substituted(value.node.expr, batch)


@functools.lru_cache(maxsize=4096)
def _substituted(expression: Any, batch: int) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


_ARITHMETIC = {operator.mul, operator.add, operator.sub, operator.floordiv, operator.truediv}


def packet_of(node: fx.Node) -> str:
    """The operation's name without namespace and overload: ``"add"`` of ``aten.add.Tensor``."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def is_integer_node(node: fx.Node) -> bool:
    """A node whose value is a size, not a tensor."""
    value = node.meta.get("val")
    return node.target in _ARITHMETIC or isinstance(value, (int, torch.SymInt))


def _refuse_buffer_updates(graph: fx.Graph, exported: torch.export.ExportedProgram) -> None:
    buffers = exported.graph_signature.inputs_to_buffers
    for node in graph.nodes:
        if node.op == "call_function" and mutated_argument(node) in buffers:
            name = buffers[mutated_argument(node)]
            raise ModelStateError(
                f"the forward pass writes to buffer {name!r}: module {name.rpartition('.')[0]!r} is in training mode, "
                f"so its output depends on the batch; call model.eval() before tracing"
            )
