"""A traced network as a :class:`PiecewiseLinear`: every affine operation turned into a sparse matrix."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import fx

from ..errors import TraceError
from ..graph import Program, UnitGraph
from ..graph.capture import int_at, is_integer_node, shape_at
from ..graph.describe import describe
from .fold import folded
from .network import Affine, Gate, Layer, MaxPool, Node, PiecewiseLinear, Relu
from .simplify import affine, simplified

__all__ = ["piecewise_linear"]

#: Operations that are affine in all their activations together.
_AFFINE = {
    "linear", "conv1d", "conv2d", "conv3d", "batch_norm", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum", "flatten", "view", "reshape",
    "permute", "transpose", "squeeze", "unsqueeze", "cat", "add", "sub", "neg", "flip", "roll", "select", "slice",
    "constant_pad_nd", "upsample_nearest2d",
}
#: Operations that hand on what they get.
_SAME = {"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias"}
_CONTRACTIONS = {"linear", "conv1d", "conv2d", "conv3d"}
_OTHERS = "; for other networks, mipprune.prune bounds the accuracy that is lost, on held-out data"
#: Basis vectors at a time.
_CHUNK = 256


def piecewise_linear(graph: UnitGraph, joined: bool = True) -> PiecewiseLinear:
    """The traced network as affine maps, ReLUs, max poolings and gates, in float64.

    Any composition of linear layers, convolutions, batch-norm, average and max pooling, ReLU, residual sums,
    concatenations and operations that move elements.  An affine operation is applied to a basis: one forward pass of
    it per entry of its input, whatever its kind; meant for networks of up to some ten thousand activations.

    Args:
        graph: the traced network.
        joined: neighbouring affine maps become one and gates move to where the units are made.  Otherwise only
            batch-norms are folded, gates stay in front of what reads them, and layers know their weights
            (:class:`~mipprune.bounds.network.Layer`).

    Raises:
        TraceError: an operation that is neither affine nor ReLU nor max pooling (named with its module and source
            line), or a network with several inputs.
    """
    graph.require_fine("a bound")
    return _Extraction(graph.program).run(joined)


class _Extraction:
    """One walk over a program's operations."""

    def __init__(self, program: Program) -> None:
        self.program = program
        if len(program.captured.inputs) != 1:
            raise TraceError(f"bounds need a network with one input, this one has {program.captured.inputs}")
        tensors = program.dense_tensors()
        self.tensors = {n: t.double().cpu() if t.is_floating_point() else t.cpu() for n, t in tensors.items()}
        self.nodes: list[Node] = []
        self.sizes = [math.prod(shape_at(program.captured.input_shapes[0], 1)[1:])]
        self.value_of = {program.captured.inputs[0]: 0}
        self.shape_of = {program.captured.inputs[0]: shape_at(program.captured.input_shapes[0], 1)[1:]}
        self.gates: dict[tuple[int, bytes], int] = {}

    def run(self, joined: bool) -> PiecewiseLinear:
        wanted = self.program._needed(self.program.captured.nodes, {self.program.captured.output.name})
        for node in wanted:
            if not is_integer_node(node) and any(a.name in self.value_of for a in node.all_input_nodes):
                self.value_of[node.name] = self._value(node)
                self.shape_of[node.name] = shape_at(node.meta["val"].shape, 1)[1:]
            elif not is_integer_node(node):
                raise TraceError(f"{describe(node)} doesn't depend on the input; bounds have no rule for that{_OTHERS}")
        output = self.value_of[self.program.captured.output.name]
        size = self.sizes[output]  # the output has to be the last value, and affine
        self._add(Affine((output,), (sp.eye_array(size, format="csr"),), np.zeros(size)))
        network = PiecewiseLinear(self.sizes[0], self.program.n_units, tuple(self.nodes))
        return simplified(network) if joined else folded(network)

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        self.sizes.append(node.size)
        return len(self.nodes)

    def _value(self, node: fx.Node) -> int:
        """The number of the value that ``node`` computes."""
        name = _name(node)
        sources = {a.name: self.value_of[a.name] for a in node.all_input_nodes if a.name in self.value_of}
        first = node.args[0]
        read = self.program.read_of(node)
        if read is not None:
            source = node.args[read.argument] if isinstance(read.argument, int) else None
            if read.masked is not None or read.batch != 0 or not isinstance(source, fx.Node):
                raise TraceError(f"bounds can't gate what {describe(node)} reads")
            sources[source.name] = self._gated(source, read.dim, read.units.numpy())
        only = next(iter(sources.values())) if len(sources) == 1 else -1
        if name in _SAME:
            return only
        if name == "relu":
            return self._add(Relu(only, self.sizes[only]))
        if name in {"max_pool1d", "max_pool2d"} and isinstance(first, fx.Node):
            return self._add(MaxPool(only, self._windows(node, self.shape_of[first.name])))
        activations = [a for a in node.args if isinstance(a, fx.Node) and a.name in sources]
        scaled = name == "mul" or (name == "div" and activations == [first])
        if name in _AFFINE or (scaled and len(activations) == 1):
            return self._add(self._affine(node, sources))
        raise TraceError(f"bounds and the ReLU programs know affine operations, ReLU and max pooling; no rule for "
                         f"{describe(node)}{_OTHERS}")

    def _gated(self, source: fx.Node, dim: int, units: np.ndarray) -> int:
        """The value that a reader of units gets."""
        shape = self.shape_of[source.name]
        view = [1] * len(shape)
        view[dim - 1] = -1
        numbers = np.where(units == self.program.n_units, -1, units).reshape(view)
        spread = np.broadcast_to(numbers, shape).ravel().astype(np.int64)
        key = (self.value_of[source.name], spread.tobytes())
        if key not in self.gates:
            self.gates[key] = self._add(Gate(key[0], spread))
        return self.gates[key]

    def _affine(self, node: fx.Node, sources: dict[str, int]) -> Affine:
        """Matrices and bias of an affine operation, from what it does to zeros and to basis vectors."""
        zeros = {name: torch.zeros(1, *self.shape_of[name], dtype=torch.float64) for name in sources}
        bias = self._call(node, zeros, 1)[0]
        # a contraction's weights come out exactly without its bias; elsewhere the bias is subtracted again
        exact = _name(node) in _CONTRACTIONS
        matrices = []
        for name in sources:
            shape = self.shape_of[name]
            size, columns = math.prod(shape), []
            for start in range(0, size, _CHUNK):
                stop = min(start + _CHUNK, size)
                batch = {n: z.expand(stop - start, *z.shape[1:]) for n, z in zeros.items()}
                basis = torch.zeros(stop - start, size, dtype=torch.float64)
                basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
                batch[name] = basis.reshape(stop - start, *shape)
                rows = self._call(node, batch, stop - start, drop_bias=exact) - (0.0 if exact else bias)
                columns.append(sp.csc_array(rows.T))
            matrices.append(sp.csr_array(sp.hstack(columns)))
        found = affine(list(zip(sources.values(), matrices)), bias)
        layer = self._layer(node, found) if exact and len(sources) == 1 else None
        return dataclasses.replace(found, layer=layer)

    def _layer(self, node: fx.Node, found: Affine) -> Layer | None:
        """Which weight every entry of a contraction's matrix is: the same operation on the weights' numbers."""
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.name not in self.program.captured.tensors:
            return None
        dense = self.tensors[weight.name]
        numbers = torch.arange(1, dense.numel() + 1, dtype=torch.float64).reshape(dense.shape)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = self.shape_of[source.name]
        size, columns = math.prod(shape), []
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            basis = torch.zeros(stop - start, size, dtype=torch.float64)
            basis[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
            rows = self._call(node, {source.name: basis.reshape(stop - start, *shape), weight.name: numbers},
                              stop - start, drop_bias=True)
            columns.append(sp.csc_array(np.rint(rows).astype(np.int64).T))
        index = sp.csr_array(sp.hstack(columns))
        index.sort_indices()
        geometry = None
        if _name(node) != "linear":
            spatial = dense.ndim - 2
            dilation = _times(_argument(node, 5, "dilation", 1), spatial)
            padding = _argument(node, 4, "padding", 0)
            if isinstance(padding, str):  # "same": no more than the whole reach of the kernel on either side
                padding = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, dense.shape[2:])]
            geometry = shape[1:], _times(padding, spatial), dilation
        name = self.program.captured.tensors[weight.name]
        return Layer(name, tuple(dense.shape), index, np.ones(found.size), geometry)

    def _call(
        self, node: fx.Node, activations: dict[str, torch.Tensor], batch: int, drop_bias: bool = False
    ) -> np.ndarray:
        """What the operation makes of ``activations``: float64 (batch, size)."""

        def value(argument: fx.Node) -> Any:
            if argument.name in activations:
                return activations[argument.name]
            if argument.name in self.tensors:
                return self.tensors[argument.name]
            return int_at(argument.meta["val"], batch)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if drop_bias and len(args) > 2:
            args = (*args[:2], None, *args[3:])
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        if not isinstance(result, torch.Tensor) or result.ndim == 0 or len(result) != batch:
            raise TraceError(f"{describe(node)} mixes samples or returns no tensor; bounds have no rule for that")
        return np.asarray(result.reshape(batch, -1).numpy())

    def _windows(self, node: fx.Node, shape: tuple[int, ...]) -> np.ndarray:
        """Which entries of the source each output of a max pooling looks at."""
        arguments = _pool_arguments(node)
        numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
        if len(shape) == 2:  # one-dimensional pooling is two-dimensional on images of height 1
            numbers = numbers[:, :, None]
            arguments = {k: (neutral, v[0]) for (k, v), neutral in zip(arguments.items(), (1, 1, 0, 1))}
        if len(shape) not in (2, 3):
            raise TraceError(f"{describe(node)}: bounds know max pooling of samples of shape (C, L) or (C, H, W)")
        columns = F.unfold(numbers.movedim(1, 0), **arguments)  # (C, width, positions)
        return columns.movedim(1, 2).reshape(-1, columns.shape[1]).numpy().astype(np.int64) - 1


def _name(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _times(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * n if len(values) == 1 else values


def _pool_arguments(node: fx.Node) -> dict[str, tuple[int, ...]]:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, node.args[1:])) | dict(node.kwargs)
    if given.get("ceil_mode"):
        raise TraceError(f"{describe(node)}: bounds don't know max pooling with ceil_mode=True")
    stride = given.get("stride") or given["kernel_size"]
    found = {"kernel_size": given["kernel_size"], "stride": stride, "padding": given.get("padding", 0),
             "dilation": given.get("dilation", 1)}
    return {k: _pair(v, node) for k, v in found.items()}


def _pair(value: Any, node: fx.Node) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    dims = 1 if "1d" in str(node.target) else 2
    return values * dims if len(values) == 1 else values
