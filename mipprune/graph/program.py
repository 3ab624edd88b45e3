"""Run a captured network with units masked: prefix computed once, many coalitions in one batch, gradients in gates."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .capture import Capture, is_integer_node
from .describe import describe
from .masking import Gates, Read, arguments, batch_dims, masked_call, overlaps
from .prefix import Prefix
from .values import MaskEdge, argument_of, batch_dim

__all__ = ["Prefix", "Program"]


class Program:
    """The operations of a captured network, ready to be run with gates on the units.

    A gate multiplies what a unit's readers get: 1 keeps the unit, 0 removes its whole contribution, and values in
    between are what gate derivatives are taken at.  Gates have shape (n_units,) for all samples alike, or
    (N, n_units) for each sample its own.  The tensors of ``model`` are read at every run of what was ``captured``.
    """

    def __init__(self, model: nn.Module, captured: Capture) -> None:
        self.model = model
        self.captured = captured
        self._reads: dict[str, list[Read]] = {}
        self.n_units = 0
        #: (node, which of its integer arguments, units along the dimension whose length it is; -1: not prunable)
        self.lengths: list[tuple[str, int, np.ndarray]] = []
        #: node -> for each of its results the dimension that units lie along and their groups; only where every entry
        #: of every result belongs to a unit
        self.carried: dict[str, list[tuple[int, frozenset[int]]]] = {}
        self.macs: dict[str, int] = {}  # node -> multiply-adds per sample in the dense network, where there are any
        self.batch_dims = {n.name: batch_dims(n.meta.get("val")) for n in captured.nodes}
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
                read = Read(edge.dim, index, edge.argument, edge.masked, batch)
                self._reads.setdefault(edge.node.name, []).append(read)

    def read_of(self, node: fx.Node) -> Read | None:
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
        return any(overlaps(read, units) for read in self._reads.get(node, ()))

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

    @torch.no_grad()
    def resume(
        self, inputs: Sequence[torch.Tensor], values: Mapping[str, Any], units: slice, gates: Gates
    ) -> torch.Tensor:
        """Output for ``inputs`` where ``gates`` act on ``units`` alone, from the dense ``values`` of all operations."""
        suffix = self._suffix(units)
        reading = {node.name for node in suffix if self.reads(node.name, units)}
        own = torch.ones_like(gates)
        own[..., units] = gates[..., units]
        env: dict[str, Any] = {**dict(zip(self.captured.inputs, inputs, strict=True)), **values}
        self._execute(suffix, env, self.dense_tensors(), len(inputs[0]), own, only=reading)
        return env[self.captured.output.name]

    @staticmethod
    def apply(
        node: fx.Node, env: dict[str, Any], tensors: dict[str, torch.Tensor], batch: int,
        lengths: dict[int, int] | None = None,
    ) -> Any:
        """Result of one operation on the values ``env`` (node name -> value) and ``tensors``, for ``batch`` samples.

        ``lengths`` replaces integer arguments by their place among them, for tensors of other sizes than the traced.
        """
        args, kwargs = arguments(node, env, tensors, batch, lengths)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def activations(self, inputs: Sequence[torch.Tensor], units: slice) -> torch.Tensor:
        """What ``units`` hand to their first reader on ``inputs``, averaged over positions: (N, number of units)."""
        reader = next(n for n in self.captured.nodes if self.reads(n.name, units))
        read = next(r for r in self._reads[reader.name] if overlaps(r, units))
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
            args, kwargs = arguments(node, env, tensors, batch)
            reads = self._reads.get(node.name)
            if padded is not None and reads is not None and (only is None or node.name in only):
                env[node.name] = masked_call(node.target, args, kwargs, padded, reads)  # type: ignore[arg-type]
            else:
                env[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
            for a in node.all_input_nodes:
                if last[a.name] is node and a.name not in keep:
                    env.pop(a.name, None)


def _gate_dtype(inputs: Sequence[torch.Tensor]) -> torch.dtype:
    return next((x.dtype for x in inputs if x.is_floating_point()), torch.float32)
