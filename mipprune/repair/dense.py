"""What a refit needs to know of the dense network, computed once for any number of smaller ones."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import fx

from ..curvature.sensitivity import Sensitivity
from ..game.data import LabelledData
from ..graph import Layer, Program, Stream, UnitGraph, find_layers
from ..graph.capture import is_integer_node, shape_at
from ..graph.layers import Grid
from ..graph.values import batch_dim

__all__ = ["DELIVERED", "DenseRun"]

#: Share of the identity in the metric over positions.
ALIKE = 0.2
#: Rows per column that are enough for a network that is delivered: of three small networks at three budgets, three
#: seeds, the divergence after the refit rises by 1%.
DELIVERED = 32
#: How many times ``enough`` rows per column are left where samples are left out.  On a small transformer a sixteenth of
#: the samples, 17 rows per column, makes the refitted network's divergence 1.5 to 2 times as large; positions cost 1%.
PLENTY = 16

#: Samples of a batch, and of these the positions, that a layer is fitted to.
Rows = tuple[slice, Grid | None]


class DenseRun:
    """What the dense network computes on some data wherever a refit needs it, kept in memory.

    Args:
        graph: the traced dense network.
        batch_size: samples at a time.
        sensitivity: the network's, where it's known already; that of ``data`` by default.

    Attributes:
        data: what is fitted to.
        layers: node name -> layer.
        inputs: per batch, the network's inputs by node name.
        targets: per batch, node name -> dense value; layers, and the sums that they feed.
        sizes: samples of every batch.
        fitted: how many samples of every batch, the first ones, are fitted to; the others are ``judged``.
        logits: (N, ...), the dense output on ``data``.
        judged_logits: the same on the data that judge.
        enough: a layer is fitted to about that many samples times positions per column of its weight, if there are
            more; ``None`` takes them all.  A search over many networks can afford it: neighbouring positions say
            nearly the same.
        order: the operations in the order that a sweep runs them.
        place: node name -> its place in ``order``.
    """

    def __init__(
        self, graph: UnitGraph, data: LabelledData, batch_size: int = 256, enough: int | None = None,
        judged: LabelledData | None = None, sensitivity: Sensitivity | None = None,
    ) -> None:
        program = graph.program
        self.sensitivity = Sensitivity(graph, data) if sensitivity is None else sensitivity
        self.graph, self.data, self.enough = graph, data, enough
        self.layers = {layer.node.name: layer for layer in find_layers(program)}
        self.order = _execution_order(program, self.layers)
        self.place = {node.name: at for at, node in enumerate(self.order)}
        self.last = {a.name: n.name for n in self.order for a in n.all_input_nodes}
        sums = {layer.total.name for layer in self.layers.values() if layer.total is not None}
        output = program.captured.output.name
        wanted = sums | set(self.layers) | {output}
        self.inputs: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self.fitted: list[int] = []
        self.targets: list[dict[str, torch.Tensor]] = []
        logits, judged_logits = [], []
        left = len(data)
        for part in _together(data, judged).batches(batch_size):
            env = dict(zip(program.captured.inputs, part.inputs, strict=True))
            self.inputs.append(dict(env))
            self.sizes.append(len(part))
            n = min(left, len(part))
            left -= n
            self.fitted.append(n)
            values = program.values(env, wanted)
            logits.append(values[output][:n])
            judged_logits.append(values[output][n:])
            self.targets.append(values if n else {})
        self.logits, self.judged_logits = torch.cat(logits), torch.cat(judged_logits)
        self._columns: dict[tuple[Any, ...], torch.Tensor] = {}
        self._roots: dict[tuple[str, Grid | None], torch.Tensor] = {}

    def memory(self) -> int:
        """Bytes of the dense values."""
        return sum(value.nbytes for targets in self.targets for value in targets.values())

    def rows(self, layer: Layer, columns: int, batch: int) -> list[Rows]:
        """What to look at in a batch for a ``layer`` whose weight has so many ``columns``.

        Every second position along each dimension, other ones in each part, if that leaves enough; then fewer samples,
        if that leaves PLENTY times enough: neighbouring positions say nearly the same, samples don't.
        """
        n = self.fitted[batch]
        everything: list[Rows] = [(slice(0, n), None)]
        if self.enough is None or n == 0:
            return everything
        dense = self.targets[batch][layer.node.name]
        positions = dense.numel() // (dense.shape[layer.channel_dim] * self.sizes[batch])
        spare = len(self.data) * positions // max(1, self.enough * columns)
        parts = everything
        ways = 2 ** len(layer.stride)
        if not layer.is_linear and min(dense.shape[2:]) >= 2 and spare >= ways:
            spare //= ways
            cuts = [n * i // ways for i in range(ways + 1)]
            starts = [tuple((i + batch) >> d & 1 for d in range(len(layer.stride))) for i in range(ways)]
            parts = [(slice(a, b), Grid(2, s)) for a, b, s in zip(cuts, cuts[1:], starts, strict=False) if b > a]
        fewer = 1 << max(spare // PLENTY, 1).bit_length() - 1  # a power of two, so that few selections are ever made
        # one sample in so many, not the first ones: data may be sorted by class
        return [(slice(p.start, p.stop, fewer if fewer > 1 else None), grid) for p, grid in parts]

    def select(self, value: torch.Tensor, node: fx.Node, layer: Layer, batch: int, rows: Rows) -> torch.Tensor:
        """The samples and positions ``rows`` of a value that ``node`` has."""
        samples, grid = rows
        if samples != slice(0, self.sizes[batch]):
            dim = batch_dim(node.meta["val"]) or 0
            # positions may lie along the same dimension
            value = value.unflatten(dim, (self.sizes[batch], value.shape[dim] // self.sizes[batch]))
            value = value[(slice(None),) * dim + (samples,)].flatten(dim, dim + 1)
        return layer.on_grid(value, grid)

    def target(self, node: fx.Node, layer: Layer, batch: int, rows: Rows) -> torch.Tensor:
        """Dense values of ``node`` as columns (m, R) at these ``rows``, in the order of ``layer``'s outputs."""
        key = (node.name, batch, rows[0].start, rows[0].stop, rows[0].step, rows[1])
        if key not in self._columns:
            value = self.select(self.targets[batch][node.name], node, layer, batch, rows)
            self._columns[key] = layer.outputs(value, 1)[0].contiguous()
        return self._columns[key]

    def position_root(self, goal: fx.Node, layer: Layer, grid: Grid | None) -> torch.Tensor | None:
        """Square root (P, P) of the metric over the positions of ``grid`` that ``layer`` is fitted to ``goal`` at.

        Of :func:`~mipprune.curvature.output_metric.position_metrics`, blended with the identity: the smaller network's
        later layers aren't quite the dense one's.  ``None``: all alike.
        """
        metric = self.sensitivity.positions.get(goal.name)
        if metric is None:
            return None
        key = (goal.name, grid)
        if key not in self._roots:
            metric = (1 - ALIKE) * metric + ALIKE * torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
            if grid is not None:
                shape = shape_at(layer.node.meta["val"].shape, 1)
                numbers = torch.arange(len(metric), device=metric.device).reshape(1, 1, *shape[2:])
                chosen = layer.on_grid(numbers, grid).flatten()
                metric = metric[chosen][:, chosen]
            value, vector = torch.linalg.eigh(metric)
            root = vector * value.clamp_min(0).sqrt() @ vector.T
            self._roots[key] = root.to(self.logits.dtype)
        return self._roots[key]

    @property
    def streams(self) -> list[tuple[Stream, torch.Tensor]]:
        """The residual streams and their directions."""
        return self.sensitivity.streams

    @functools.cached_property
    def first_touched(self) -> np.ndarray:
        """Where each group first makes a difference: int64 (G,), indices into ``order``; ``len(order)`` if nowhere."""
        program = self.graph.program
        names = program.captured.tensors
        group_of = np.append(self.graph.costs.group_of_unit, -1)
        found = np.full(len(self.graph.groups), len(self.order), dtype=np.int64)
        sites: dict[str, set[int]] = {}
        for (name, _), units in self.graph.unit_sites.items():
            sites.setdefault(name, set()).update(group_of[units].tolist())
        lengths: dict[str, set[int]] = {}  # node -> groups that change what it does
        for name, _, units in program.lengths:
            lengths.setdefault(name, set()).update(group_of[units].tolist())
        for number, unit in enumerate(self.graph.coarse):
            for branch in unit.branches:
                # a layer that is added to the branch is fitted to the whole sum where the branch is gone
                beside = [n for n, x in self.layers.items() if x.other is not None and x.other.name in branch.nodes]
                for name in (*branch.nodes, branch.add.name, *beside):
                    lengths.setdefault(name, set()).add(int(group_of[number]))
        for at, node in enumerate(self.order):
            touched = set(group_of[program.units_read(node)].tolist()) | lengths.get(node.name, set())
            for _, groups in program.carried.get(node.name, ()):
                touched |= set(groups)
            for a in node.all_input_nodes:
                touched |= sites.get(names[a.name], set()) if a.name in names else set()
            for group in touched - {-1}:
                found[group] = min(found[group], at)
        return found

    @functools.cached_property
    def stops(self) -> frozenset[int]:
        """Where a sweep may start again: the places of :attr:`first_touched`."""
        return frozenset(self.first_touched.tolist()) - {0, len(self.order)}


def _together(data: LabelledData, judged: LabelledData | None) -> LabelledData:
    if judged is None:
        return data
    inputs = tuple(torch.cat(pair) for pair in zip(data.inputs, judged.inputs, strict=True))
    return LabelledData(inputs, torch.cat([data.targets, judged.targets]))


def _execution_order(program: Program, layers: dict[str, Layer]) -> list[fx.Node]:
    """The operations in an order that runs, of two branches that are added the one with fewer layers first."""
    nodes = set(program.captured.nodes)
    depth: dict[fx.Node, int] = {}
    for node in program.captured.nodes:
        depth[node] = max((depth.get(a, 0) for a in node.all_input_nodes), default=0) + (node.name in layers)
    order: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack: list[tuple[fx.Node, bool]] = [(program.captured.output, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen and node in nodes and not is_integer_node(node):
            seen.add(node)
            stack.append((node, True))
            stack.extend((a, False) for a in sorted(node.all_input_nodes, key=lambda a: -depth.get(a, 0)))
    return order
