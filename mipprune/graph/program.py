"""Run a captured network with units masked: prefix computed once, many coalitions in one batch, gradients in gates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .capture import Capture, int_at, is_integer_node
from .context import Argument, Masked, MaskEdge, argument_of, batch_dim
from .describe import describe

__all__ = ["Prefix", "Program"]

Gates = torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Read:
    """Units of one mask edge: the unit of every index along ``dim``, with ``n_units`` standing for "always on".

    ``batch`` is the dimension that samples lie along (None: the value is the same for all of them).
    """

    dim: int
    units: torch.Tensor
    argument: Argument = 0
    masked: Masked | None = None
    batch: int | None = 0


class Program:
    """The operations of a captured network, ready to be run with gates on the units.

    A gate multiplies what a unit's readers get: 1 keeps the unit, 0 removes its whole contribution, and values in
    between are what gate derivatives are taken at.  Gates have shape (n_units,) for all samples alike, or
    (N, n_units) for each sample its own.  The tensors of ``model`` are read at every run of what was ``captured``.
    """

    def __init__(self, model: nn.Module, captured: Capture) -> None:
        self.model = model
        self.captured = captured
        self._reads: dict[str, list[_Read]] = {}
        self.n_units = 0
        #: (node, which of its integer arguments, units along the dimension whose length it is; -1: not prunable)
        self.lengths: list[tuple[str, int, np.ndarray]] = []
        #: node -> for each of its results the dimension that units lie along and their groups; only where every entry
        #: of every result belongs to a unit
        self.carried: dict[str, list[tuple[int, frozenset[int]]]] = {}
        self.batch_dims = {n.name: _batch_dims(n.meta.get("val")) for n in captured.nodes}
        self.batch_dims |= dict.fromkeys(captured.inputs, 0)

    def bind(self, edges: Sequence[MaskEdge], units: Sequence[np.ndarray], n_units: int) -> None:
        """Tell which ``units`` every one of the ``edges`` reads (-1: not prunable), of ``n_units`` there are."""
        self.n_units = n_units
        for edge, numbers in zip(edges, units, strict=True):
            if (numbers >= 0).any():
                index = torch.from_numpy(np.where(numbers < 0, n_units, numbers))
                source = argument_of(edge.node.args, edge.argument)
                assert isinstance(source, fx.Node)
                batch = batch_dim(source.meta["val"])
                read = _Read(edge.dim, index, edge.argument, edge.masked, batch)
                self._reads.setdefault(edge.node.name, []).append(read)

    def read_of(self, node: fx.Node) -> _Read | None:
        """The units that ``node`` reads, and along which dimension of which argument; ``None``: none, or not alone."""
        reads = self._reads.get(node.name, [])
        return reads[0] if len(reads) == 1 and reads[0].masked is None else None

    def units_read(self, node: fx.Node) -> np.ndarray:
        """Numbers of all units that ``node`` reads, whichever argument they come by."""
        found = [read.units[read.units < self.n_units].numpy() for read in self._reads.get(node.name, ())]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def sums_over(self, node: fx.Node, arguments: Set[str]) -> bool:
        """Whether ``node`` reads units in each of ``arguments`` (node names) in a product: nothing counts as 0."""
        reads = self._reads.get(node.name, [])
        if any(read.masked is not None for read in reads):
            return False
        if "matmul" in str(node.target) or "einsum" in str(node.target) or "bmm" in str(node.target):
            return bool(reads)  # noted once for both factors
        return arguments <= {argument_of(node.args, read.argument).name for read in reads}

    def reads(self, node: str, units: slice) -> bool:
        """Whether the operation ``node`` reads any unit of ``units``."""
        return any(_overlaps(read, units) for read in self._reads.get(node, ()))

    @property
    def averaged(self) -> np.ndarray:
        """Units that take part in an average (a layer-norm), where being 0 isn't being absent: bool (n_units,)."""
        found = np.zeros(self.n_units + 1, dtype=bool)
        for read in itertools.chain(*self._reads.values()):
            if read.masked is not None:
                found[read.units.numpy()] = True
        return found[:-1]

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, inputs: Sequence[torch.Tensor], gates: Gates | None = None) -> torch.Tensor:
        """Output of the network for ``inputs`` under ``gates`` (all on by default).  Differentiable in the gates."""
        tensors = self.dense_tensors()
        env: dict[str, Any] = dict(zip(self.captured.inputs, inputs, strict=True))
        self._execute(self.captured.nodes, env, tensors, len(inputs[0]), gates)
        return env[self.captured.output.name]

    @torch.no_grad()
    def values(self, env: dict[str, Any], wanted: Set[str], gates: Gates | None = None) -> dict[str, Any]:
        """The values of the nodes ``wanted`` for the inputs in ``env`` (node name -> tensor; used up)."""
        batch = len(next(iter(env.values())))
        self._execute(self._needed(self.captured.nodes, set(wanted)), env, self.dense_tensors(), batch, gates, wanted)
        return {name: env[name] for name in wanted}

    @staticmethod
    def apply(
        node: fx.Node, env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int,
        lengths: dict[int, int] | None = None,
    ) -> Any:
        """Result of one operation on the values ``env`` (node name -> value) and ``tensors``, for ``batch`` samples.

        ``lengths`` replaces integer arguments by their place among them, for tensors of other sizes than the traced.
        """
        args, kwargs = _arguments(node, env, tensors, batch, lengths)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def activations(self, inputs: Sequence[torch.Tensor], units: slice) -> torch.Tensor:
        """What ``units`` hand to their first reader on ``inputs``, averaged over positions: (N, number of units)."""
        reader = next(n for n in self.captured.nodes if self.reads(n.name, units))
        read = next(r for r in self._reads[reader.name] if _overlaps(r, units))
        source = argument_of(reader.args, read.argument).name
        env: dict[str, Any] = dict(zip(self.captured.inputs, inputs, strict=True))
        nodes = self._needed(self.captured.nodes, {source})
        self._execute(nodes, env, self.dense_tensors(), len(inputs[0]), None, keep={source})
        features = env[source].movedim((0 if read.batch is None else read.batch, read.dim), (0, -1))
        features = features.reshape(len(inputs[0]), -1, features.shape[-1]).mean(1)
        own = (read.units >= units.start) & (read.units < units.stop)
        index = (read.units[own] - units.start).to(features.device)
        out = features.new_zeros(len(features), units.stop - units.start)
        counts = torch.bincount(index, minlength=out.shape[1])
        return out.index_add(1, index, features[:, own]) / counts

    def first_not_finite(self, inputs: Sequence[torch.Tensor], gates: Gates | None = None) -> str | None:
        """Module and operation whose result first holds NaN or infinity for ``inputs``; ``None`` if all are finite."""
        tensors = self.dense_tensors()
        env: dict[str, Any] = dict(zip(self.captured.inputs, inputs, strict=True))
        names = {n.name for n in self.captured.nodes}
        with torch.no_grad():
            self._execute(self.captured.nodes, env, tensors, len(inputs[0]), gates, keep=names)
        for node in self.captured.nodes:
            value = env.get(node.name)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                return describe(node)
        return None

    def prefix(self, inputs: Sequence[torch.Tensor], units: slice, kept: np.ndarray | None = None) -> Prefix:
        """Everything that doesn't depend on the gates of ``units``, computed once for ``inputs``.

        ``kept`` (bool, (n_units,)) masks the other units for good; by default they all work.
        """
        suffix = self._suffix(units)
        first = {n.name for n in suffix}
        read = {a.name for n in suffix for a in n.all_input_nodes}
        tensors = self.dense_tensors()
        env: dict[str, Any] = dict(zip(self.captured.inputs, inputs, strict=True))
        before = self._needed([n for n in self.captured.nodes if n.name not in first], read)
        base = None if kept is None else torch.tensor(np.asarray(kept)).to(inputs[0].device, _gate_dtype(inputs))
        with torch.no_grad():
            self._execute(before, env, tensors, len(inputs[0]), base, keep=read)
        boundary = {name: env[name] for name in read if name in env}
        return Prefix(self, suffix, boundary, tensors, units, len(inputs[0]), base)

    def dense_tensors(self) -> dict[str, torch.Tensor]:
        """The model's present parameters and buffers by node name."""
        out = {}
        for node, name in self.captured.tensors.items():
            if name in self.captured.constants:
                out[node] = self.captured.constants[name]
            else:
                path, _, attribute = name.rpartition(".")
                out[node] = getattr(self.model.get_submodule(path), attribute).detach()
        return out

    def _suffix(self, units: slice) -> list[fx.Node]:
        """Operations downstream of the first place where ``units`` are read, that the output depends on."""
        live: set[str] = set()
        for node in self.captured.nodes:
            if self.reads(node.name, units) or any(a.name in live for a in node.all_input_nodes):
                live.add(node.name)
        nodes = [n for n in self.captured.nodes if n.name in live and not is_integer_node(n)]
        return self._needed(nodes, {self.captured.output.name})

    @staticmethod
    def _needed(nodes: Sequence[fx.Node], targets: set[str]) -> list[fx.Node]:
        """The nodes among ``nodes`` that ``targets`` are computed from, in order."""
        wanted, out = set(targets), []
        for node in reversed(nodes):
            if node.name in wanted:
                out.append(node)
                wanted.update(a.name for a in node.all_input_nodes)
        return out[::-1]

    def _execute(
        self, nodes: Sequence[fx.Node], env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int,
        gates: Gates | None, keep: Set[str] = frozenset(), only: Set[str] | None = None,
    ) -> None:
        """Run ``nodes`` into ``env``; ``gates`` act at every read, or at the reads of the nodes ``only``.

        Values are freed after their last use, but for the network's output and those named in ``keep``.
        """
        last: dict[str, fx.Node] = {a.name: n for n in nodes for a in n.all_input_nodes}
        padded = None
        if gates is not None:
            always = torch.ones(*gates.shape[:-1], 1, dtype=gates.dtype, device=gates.device)
            padded = torch.cat([gates, always], -1)
        keep = keep | {self.captured.output.name}

        for node in nodes:
            if is_integer_node(node):
                continue
            args, kwargs = _arguments(node, env, tensors, batch)
            reads = self._reads.get(node.name)
            if padded is not None and reads is not None and (only is None or node.name in only):
                env[node.name] = _masked_call(node.target, args, kwargs, padded, reads)  # type: ignore[arg-type]
            else:
                env[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
            for a in node.all_input_nodes:
                if last[a.name] is node and a.name not in keep:
                    env.pop(a.name, None)


def _arguments(
    node: fx.Node, env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int,
    lengths: dict[int, int] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def value(node: fx.Node) -> Any:
        if node.name in tensors:
            return tensors[node.name]
        if is_integer_node(node):
            return int_at(node.meta["val"], batch)
        return env[node.name]

    given = (node.args, node.kwargs) if not lengths else _with_lengths((node.args, node.kwargs), lengths, [0])
    return fx.node.map_arg(given, value)


def _with_lengths(tree: Any, lengths: dict[int, int], seen: list[int]) -> Any:
    """``tree`` with some of its integers replaced, counted in the order of :func:`~mipprune.graph.sizes.integers`."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_with_lengths(item, lengths, seen) for item in tree)
    if isinstance(tree, dict):
        return {key: _with_lengths(item, lengths, seen) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_with_lengths(item, lengths, seen) for item in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, bool) or not (isinstance(tree, int) or (isinstance(tree, fx.Node) and is_integer_node(tree))):
        return tree
    seen[0] += 1
    return lengths.get(seen[0] - 1, tree) if isinstance(tree, int) and tree != -1 else tree


def _batch_dims(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_batch_dims(v) for v in value]
    return batch_dim(value) if isinstance(value, torch.Tensor) else None


def _overlaps(read: _Read, units: slice) -> bool:
    return bool(((read.units >= units.start) & (read.units < units.stop)).any())


def _masked_call(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], padded: torch.Tensor,
    reads: Sequence[_Read],
) -> Any:
    """The operation on what the gates leave of the arguments that are read."""
    masked = None
    for read in reads:
        x = argument_of(args, read.argument)
        gate = _gate_like(x, padded[..., read.units.to(padded.device)], read).to(x.dtype)
        if read.masked is None:
            args = _with_argument(args, read.argument, x * gate)
        else:
            masked = (read.masked, gate)
    return target(*args, **kwargs) if masked is None else masked[0](target, args, kwargs, masked[1])


def _with_argument(args: Sequence[Any], argument: Argument, value: Any) -> tuple[Any, ...]:
    """The arguments with one of them replaced."""
    if isinstance(argument, int):
        return (*args[:argument], value, *args[argument + 1 :])
    number, place = argument
    return _with_argument(args, number, [*_with_argument(args[number], place, value)])


def _gate_like(x: torch.Tensor, gates: torch.Tensor, read: _Read) -> torch.Tensor:
    """Gates (size,), or (N, size) per sample, shaped to broadcast against ``x``."""
    shape = [1] * x.ndim
    shape[read.dim] = -1
    if gates.ndim == 1:
        return gates.reshape(shape)
    batch = 0 if read.batch is None else read.batch  # a value without samples in it gets them
    if read.batch is not None and x.shape[batch] != len(gates):  # samples are the outer part of that dimension
        gates = gates.repeat_interleave(x.shape[batch] // len(gates), 0)
    shape[batch] = len(gates)
    return (gates if batch < read.dim else gates.t()).reshape(shape)


class Prefix:
    """A network whose prefix is computed; :meth:`run` finishes it for many coalitions of one group at once."""

    def __init__(
        self, program: Program, suffix: list[fx.Node], boundary: dict[str, Any], tensors: dict[str, torch.Tensor],
        units: slice, n_samples: int, base: Gates | None,
    ) -> None:
        self.program = program
        self.suffix = suffix
        self.boundary = boundary
        self.tensors = tensors
        self.units = units
        self.n_samples = n_samples
        self.base = base
        # with every other unit on, only the reads of the group itself have anything to mask
        self._only = None if base is not None else {n.name for n in suffix if program.reads(n.name, units)}

    @property
    def bytes_per_coalition(self) -> int:
        """Estimate of the memory that one more coalition in a batch takes."""
        sizes = [_numbers(n.meta["val"], self.n_samples) for n in self.suffix]
        sizes += [_numbers(v, self.n_samples) for v in self.boundary.values()]
        return 4 * 3 * max(sizes, default=1)

    @torch.no_grad()
    def run(self, coalitions: torch.Tensor) -> torch.Tensor:
        """Outputs (M, N, ...) for the float gates ``coalitions`` on the group's units.

        Their shape is (M, group size) when all samples share them, (M, N, group size) when each has its own.
        """
        m, n = len(coalitions), self.n_samples
        own = coalitions.repeat_interleave(n, 0) if coalitions.ndim == 2 else coalitions.flatten(0, 1)
        base = coalitions.new_ones(self.program.n_units) if self.base is None else self.base
        gates = base.repeat(m * n, 1)
        gates[:, self.units] = own
        env = {name: _folded(value, m, n, self.program.batch_dims[name]) for name, value in self.boundary.items()}
        self.program._execute(self.suffix, env, self.tensors, m * n, gates, only=self._only)
        out = env[self.program.captured.output.name]
        return out.reshape(m, n, *out.shape[1:])

    @torch.no_grad()
    def finish(self, reader: fx.Node, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Outputs (M, s, ...) of the samples ``rows`` from what the group's only ``reader`` gave: (M, s, ...)."""
        m, s = values.shape[:2]
        dims = self.program.batch_dims
        own = {name: _rows_of(value, rows, self.n_samples, dims[name]) for name, value in self.boundary.items()}
        env = {name: _folded(value, m, s, dims[name]) for name, value in own.items()}
        env[reader.name] = values.flatten(0, 1)
        nodes = [n for n in self.suffix if n is not reader]
        self.program._execute(nodes, env, self.tensors, m * s, self.base)
        out = env[self.program.captured.output.name]
        return out.reshape(m, s, *out.shape[1:])


def _rows_of(value: Any, rows: slice, n: int, batch: Any) -> Any:
    """The samples ``rows`` of a prefix value; along its batch dimension every sample takes an equal part."""
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_of(v, rows, n, b) for v, b in zip(value, batch))
    if not isinstance(value, torch.Tensor) or batch is None:
        return value
    each = value.shape[batch] // n
    return value.narrow(batch, rows.start * each, (rows.stop - rows.start) * each)


def _gate_dtype(inputs: Sequence[torch.Tensor]) -> torch.dtype:
    return next((x.dtype for x in inputs if x.is_floating_point()), torch.float32)


def _numbers(value: Any, batch: int) -> int:
    values = value if isinstance(value, (tuple, list)) else [value]
    total = 0
    for v in values:
        if isinstance(v, torch.Tensor):
            count = 1
            for size in v.shape:
                count *= int_at(size, batch)
            total += count
    return total


def _folded(value: Any, m: int, n: int, batch: Any) -> Any:
    """Repeat a prefix value for m coalitions along its batch dimension, if it has one."""
    if isinstance(value, (tuple, list)):
        return type(value)(_folded(v, m, n, b) for v, b in zip(value, batch))
    if not isinstance(value, torch.Tensor) or batch is None:
        return value
    size = m * value.shape[batch]
    repeated = value.unsqueeze(batch).expand(*value.shape[:batch], m, *value.shape[batch:])
    return repeated.reshape(*value.shape[:batch], size, *value.shape[batch + 1 :])
