"""What a rule gets to see and to do: labels, coupling, pins, reads, costs and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from .capture import Capture, shape_at
from .describe import computed_weight_fix, describe, module_path
from .labels import LabelSpace, Site
from .sizes import Expression, TensorSize, integers
from .values import Argument, Contraction, Labels, Masked, MaskEdge, SizeUse, Value, argument_of, batch_dim

__all__ = ["Context", "Labels", "Masked", "Value"]


class Context:
    """What a rule may do besides returning labels.  Tracing makes one; rules get it as their first argument.

    Args:
        space: the labels of the network.
        captured: its operations.
        shapes: shapes of its parameters and buffers by name.
        ignore: module paths whose operations pin what they touch.

    Attributes:
        node: the operation that the rule is asked about.
    """

    def __init__(
        self, space: LabelSpace, captured: Capture, shapes: Mapping[str, tuple[int, ...]], ignore: Sequence[str] = ()
    ) -> None:
        self.space = space
        self.ignore = tuple(ignore)
        self.captured = captured
        self.tensor_shapes = shapes
        self.edges: list[MaskEdge] = []
        self.contractions: list[Contraction] = []
        self.producers: list[tuple[str, Site]] = []
        self.sizes: list[SizeUse] = []
        self.computed: dict[tuple[str, str], int] = {}  # (module, why) -> outputs of layers with computed weights
        self.lengths: list[tuple[str, int, Labels]] = []  # node, which of its integers, what that integer counts
        self.values: dict[str, Any] = {}
        self.node: fx.Node = None  # type: ignore[assignment]  # set before every rule
        self._claimed: set[int] = set()
        self._carried: dict[str, tuple[int | None, Labels]] = {}
        self.spoken: dict[str, set[Site]] = {}

    # -- what the operation is ---------------------------------------------------------------------------------------

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the results at batch size 1."""
        value = self.node.meta["val"]
        values = value if isinstance(value, (tuple, list)) else [value]
        return [shape_at(v.shape, 1) for v in values if isinstance(v, torch.Tensor)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result at batch size 1."""
        return self.shapes[0]

    @property
    def module(self) -> str:
        """Path of the module that the operation runs in."""
        return module_path(self.node)

    # -- labels ------------------------------------------------------------------------------------------------------

    def zeros(self, shape: Sequence[int] | None = None) -> Labels:
        """Labels of something that isn't prunable; of the result's shape by default."""
        return torch.zeros(self.shape if shape is None else tuple(shape), dtype=torch.int64)

    def pin(self, labels: Labels, reason: str) -> None:
        """Units of ``labels`` can't be pruned, for this ``reason``, which users read with the operation's place."""
        self.space.pin(labels, f"{reason} ({describe(self.node, source=False)})")

    def couple(self, left: Labels, right: Labels) -> None:
        """Units of ``left`` and ``right``, entry by entry, live and die together; 0 pins its partner."""
        self.space.couple(left, right, f"tied to values that can't be pruned ({describe(self.node, source=False)})")

    def carry(self, value: Value | Labels) -> tuple[int | None, Labels]:
        """The dimension of ``value`` that units lie along, and their labels (size,); ``(None, [])`` without units."""
        labels = value.labels if isinstance(value, Value) else value
        varying = [d for d in range(labels.ndim)
                   if labels.shape[d] > 1 and bool((labels != labels.narrow(d, 0, 1)).any())]
        if len(varying) == 1:
            dim = varying[0]
            return dim, labels.movedim(dim, -1).reshape(-1, labels.shape[dim])[0]
        if bool((labels != 0).any()):
            self.pin(labels, "units lie along several dimensions here" if varying else "the layer has one unit only")
        return None, torch.zeros(0, dtype=torch.int64)

    def spread(self, labels: Labels, dim: int, shape: Sequence[int]) -> Labels:
        """A vector of labels along dimension ``dim`` of ``shape``."""
        if len(labels) == 1:
            self.pin(labels, "the layer has one unit only")
            return self.zeros(shape)
        view = [1] * len(shape)
        view[dim] = -1
        return labels.reshape(view).expand(tuple(shape))

    def features(self, value: Value, dim: int) -> Labels:
        """Labels of ``value`` along ``dim``, shape (size,); units along another dimension are pinned, and read as 0."""
        found, labels = self.carry(value)
        size = value.labels.shape[dim]
        if found == dim % value.labels.ndim:
            return labels
        if found is not None:
            self.pin(labels, "units lie along positions, not features, here")
        return torch.zeros(size, dtype=torch.int64)

    def single(self, labels: Labels, prefer: int | None = None) -> Labels:
        """Couple ``labels`` so that they vary along one dimension: ``prefer``, or the first along which they do."""
        varying = [d for d in range(labels.ndim)
                   if labels.shape[d] > 1 and bool((labels != labels.narrow(d, 0, 1)).any())]
        if len(varying) <= 1:
            return labels
        keep = prefer if prefer in varying else varying[0]
        first = labels
        for d in range(labels.ndim):
            if d != keep:
                first = first.narrow(d, 0, 1)
        first = first.expand(labels.shape)
        self.couple(labels, first)
        return first

    def along(self, value: Value, dim: int) -> Labels | None:
        """Labels of a parameter's own dimension that runs along ``dim`` of ``value``; ``None`` if there is none."""
        found = self._site(value, dim)
        return None if found is None else found[1]

    def _site(self, value: Value, dim: int) -> tuple[Site, Labels] | None:
        """The parameter dimension that runs along ``dim`` of ``value``, and its labels for the entries there."""
        found = self._find_site(value, dim)
        if found is not None:
            self.spoken.setdefault(self.node.name, set()).add(found[0])
        return found

    def _find_site(self, value: Value, dim: int) -> tuple[Site, Labels] | None:
        dim %= value.labels.ndim
        size = value.labels.shape[dim]
        if size == 1 or value.origin is None:
            return None
        if value.name is not None and value.source is None:
            return (value.name, dim), self.space.of(value.name, dim, size)
        name, elements = value.origin
        shape = self.tensor_shapes[name]
        for own, coordinate in enumerate(np.unravel_index(elements.numpy(), shape)):
            rows = np.moveaxis(coordinate, dim, -1).reshape(-1, size)
            if (rows == rows[0]).all() and (rows[0] != rows[0, 0]).any():
                return (name, own), self.space.of(name, own, shape[own])[torch.from_numpy(rows[0])]
        return None

    def attach(self, parameter: Value | None, labels: Labels) -> None:
        """A vector parameter (bias, batch-norm scale) has one entry per unit of ``labels``."""
        if parameter is None or len(labels) == 1 or not bool(labels.any()):
            return
        own = self.along(parameter, 0) if parameter.labels.ndim == 1 else None
        if own is None:
            self.pin(labels, "tied to a computed vector")
        else:
            self.couple(labels, own)

    def match(self, dim: int, labels: Labels, other: Value, ndim: int) -> None:
        """``other`` meets units that lie along ``dim`` of an ``ndim``-dimensional result, elementwise.

        A parameter gets entries tied to them; what is broadcast along ``dim`` needs nothing; anything else pins them.
        """
        own = dim - (ndim - other.labels.ndim)
        if own < 0 or other.labels.shape[own] == 1:
            return
        found, theirs = self.carry(other)
        if found == own:
            self.couple(labels, theirs)
            return
        entries = self.along(other, own)
        if entries is None:
            self.pin(labels, "combined elementwise with values that aren't units")
        else:
            self.couple(labels, entries)

    # -- reads, costs, makers ----------------------------------------------------------------------------------------

    def read(self, labels: Labels, dim: int, argument: Argument = 0, masked: Masked | None = None) -> None:
        """Units of ``labels`` along ``dim`` of argument ``argument`` are read here: the place where masks act.

        Args:
            labels: (size,), units of that dimension; 0 where there is none.
            dim: of the argument.
            argument: its position or keyword in the operation's call.
            masked: how the operation is run when being 0 isn't the same as being absent, as in an average.
        """
        if not bool(labels.any()):
            return
        source = argument_of(self.node.args, argument)
        dim %= self.values[source.name].labels.ndim
        if batch_dim(source.meta["val"]) == dim:
            self.pin(labels, "units are folded into the batch dimension where they are read")
            return
        self.edges.append(MaskEdge(self.node, self.module, dim, labels, argument, masked))

    def cost(self, outputs: Labels, factor: int, inputs: Labels | None = None) -> None:
        """Note ``factor * (inputs kept) * (outputs kept)`` multiply-adds per sample."""
        self.contractions.append(Contraction(inputs, outputs, factor, self.node.name))

    def contract(self, x: Value, dim: int, weight: Value, w_in: int, w_out: int, factor: int,
                 argument: Argument = 0) -> Labels:
        """``x`` along ``dim`` is multiplied by ``weight``: couples the columns, notes the read and the cost.

        Args:
            x: what is multiplied.
            dim: its dimension that the sum runs over.
            weight: a parameter, or computed.
            w_in, w_out: dimensions of the weight that are summed over, and that make the output's units.
            factor: multiply-adds per sample for one column and one row.
            argument: position or keyword of ``x`` in the operation's call.

        Returns:
            The labels of the weight's rows; zeros where the weight is computed, not a parameter.
        """
        columns = self.features(x, dim)
        source = argument_of(self.node.args, argument)
        if not bool(columns.any()) and batch_dim(source.meta["val"]) is not None:
            own = self.along(x, dim)  # a parameter that serves as data, such as learned queries
            columns = columns if own is None else own
        if weight.origin is None:
            reason = self._computed_weight()
            self.pin(columns, reason)
            self.pin(weight.labels, reason)
            key = self.module, f"{reason} ({describe(self.node)})"
            self.computed[key] = self.computed.get(key, 0) + weight.labels.shape[w_out]
            columns = torch.zeros_like(columns)
        elif (own := self.along(weight, w_in)) is not None:
            self.couple(columns, own)
        self.read(columns, dim, argument)
        out = self.make(weight, w_out)
        self.cost(out, factor, columns)
        return out

    def _computed_weight(self) -> str:
        """Why this operation's weight, which isn't a parameter, pins what it reads and makes; and what to do."""
        seen: set[fx.Node] = set()
        todo = [a for a in self.node.all_input_nodes if isinstance(self.values.get(a.name), Value)
                and batch_dim(a.meta["val"]) is None]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo.extend(node.all_input_nodes)
        names = [self.captured.tensors[n.name] for n in seen if n.name in self.captured.tensors]
        fix = computed_weight_fix(sorted(names))
        return f"multiplied by a computed weight{f'; call {fix} first' if fix else ''}"

    def make(self, weight: Value, dim: int) -> Labels:
        """Labels of dimension ``dim`` of ``weight``, noted as units that this operation produces."""
        found = self._site(weight, dim)
        if found is None:
            return self.zeros([weight.labels.shape[dim]])
        site, rows = found
        self.producers.append((self.module or site[0], site))
        return rows

    # -- sizes -------------------------------------------------------------------------------------------------------

    def origin(self, argument: int, item: int = 0) -> Expression | None:
        """Where integer ``item`` of the operation's argument number ``argument`` came from; ``None``: symbolic."""
        position = self._position(argument, item)
        known = self.captured.sizes.get(self.node.name)
        if known is not None and position < len(known):
            return known[position]
        own = list(integers(self.node.args, fx.Node))
        return own[position] if position < len(own) and isinstance(own[position], int) else None

    def size(self, labels: Labels, argument: int, item: int = 0) -> None:
        """Integer ``item`` of argument ``argument`` is the length of a dimension with ``labels`` along it."""
        origin = self.origin(argument, item)
        position = self._position(argument, item)
        self._claimed.add(position)
        self.lengths.append((self.node.name, position, labels))
        if origin is not None and origin != -1:
            self._use(origin, labels, position)

    def labels_of(self, size: TensorSize) -> Labels | None:
        """Labels along the dimension that a size was read from; ``None`` if the tensor isn't known."""
        name = self.captured.results.get((size.call, size.output))
        value = self.values.get(name) if name is not None else None
        if name is None or not isinstance(value, Value):
            return None
        if name not in self._carried:
            self._carried[name] = self.carry(value)
        dim, labels = self._carried[name]
        return labels if dim == size.dim else self.zeros([value.labels.shape[size.dim]])

    def _position(self, argument: int, item: int) -> int:
        return len(list(integers(self.node.args[:argument], fx.Node))) + item

    def close_sizes(self) -> None:
        """Integers of known origin that the rule didn't speak for have to keep their value."""
        for position, origin in enumerate(self.captured.sizes.get(self.node.name, ())):
            if position not in self._claimed and origin is not None and not isinstance(origin, int):
                value = list(integers((self.node.args, self.node.kwargs), fx.Node))[position]
                self._use(origin, self.zeros([max(0, value)]), position)
        self._claimed.clear()

    def _use(self, origin: Expression, labels: Labels, position: int) -> None:
        name = self.node.name
        slot, call = self.captured.slot(name, position), self.captured.calls.get(name, 0)
        self.sizes.append(SizeUse(origin, labels, describe(self.node), slot, call))
