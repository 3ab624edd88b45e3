"""Fewer and easier operations for the same function: affine maps joined, gates moved to where the units are made."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from .network import Affine, Gate, MaxPool, Node, PiecewiseLinear

__all__ = ["simplified"]


def simplified(network: PiecewiseLinear) -> PiecewiseLinear:
    """The same function of input and gates (any gates >= 0, up to rounding) with joined affine maps and early gates."""
    while True:
        smaller = _joined(_gates_moved(network))
        if len(smaller.nodes) == len(network.nodes) and _kinds(smaller) == _kinds(network):
            return smaller
        network = smaller


def _kinds(network: PiecewiseLinear) -> list[type]:
    return [type(node) for node in network.nodes]


def _joined(network: PiecewiseLinear) -> PiecewiseLinear:
    """Every affine map that only one affine map reads becomes part of it."""
    readers = network.readers()
    nodes = list(network.nodes)
    for value in range(len(nodes), 0, -1):
        node = nodes[value - 1]
        if not isinstance(node, Affine):
            continue
        parts: list[tuple[int, sp.csr_array]] = []
        bias = node.bias
        for source, matrix in zip(node.sources, node.matrices):
            inner = nodes[source - 1] if source else None
            if isinstance(inner, Affine) and len(set(readers[source])) == 1:
                bias = bias + matrix @ inner.bias
                parts += [(s, sp.csr_array(matrix @ m)) for s, m in zip(inner.sources, inner.matrices)]
            else:
                parts.append((source, matrix))
        nodes[value - 1] = affine(parts, bias)
    return without_dead(dataclasses.replace(network, nodes=tuple(nodes)))


def affine(parts: list[tuple[int, sp.csr_array]], bias: np.ndarray) -> Affine:
    """An affine map with one matrix per source."""
    together: dict[int, sp.csr_array] = {}
    for source, matrix in parts:
        together[source] = sp.csr_array(together[source] + matrix) if source in together else matrix
    return Affine(tuple(together), tuple(together.values()), bias)


def _gates_moved(network: PiecewiseLinear) -> PiecewiseLinear:
    """Gates move in front of a max pooling or a linear map without bias that only they read.

    ``g max(x) = max(g x)`` for ``g >= 0``; ``g_j sum_i W_ji x_i = sum_i W_ji (g_i x_i)`` where all outputs that read
    entry i have the same gate.
    """
    readers = network.readers()
    nodes = list(network.nodes)
    for value, node in enumerate(network.nodes, start=1):
        if not isinstance(node, Gate) or node.source == 0 or readers[node.source] != [value]:
            continue
        inner = nodes[node.source - 1]
        if isinstance(inner, MaxPool):
            pairs = [(entry, row) for row, window in enumerate(inner.windows) for entry in window if entry >= 0]
        elif isinstance(inner, Affine) and len(inner.sources) == 1 and not inner.bias.any():
            matrix = inner.matrices[0].tocoo()
            pairs = list(zip(matrix.coords[1], matrix.coords[0]))
        else:
            continue
        units = _common_units(network.sizes[inner.sources[0]], pairs, node.units)
        if units is None:
            continue
        # the two operations change places: first the gate, then the map
        nodes[node.source - 1] = Gate(inner.sources[0], units)
        if isinstance(inner, MaxPool):
            nodes[value - 1] = MaxPool(node.source, inner.windows)
        else:
            nodes[value - 1] = Affine((node.source,), inner.matrices, inner.bias)
        return dataclasses.replace(network, nodes=tuple(nodes))
    return network


def _common_units(size: int, pairs: list[tuple[int, int]], units: np.ndarray) -> np.ndarray | None:
    """The unit of every source entry, if all that read an entry agree on it; entries that nothing reads get -1."""
    found: dict[int, int] = {}
    for entry, row in pairs:
        if found.setdefault(int(entry), int(units[row])) != units[row]:
            return None
    return np.array([found.get(entry, -1) for entry in range(size)], dtype=np.int64)


def without_dead(network: PiecewiseLinear) -> PiecewiseLinear:
    """Without the operations that the output doesn't depend on."""
    needed = {len(network.nodes)}
    for value in range(len(network.nodes), 0, -1):
        if value in needed:
            needed.update(network.node_of(value).sources)
    order = [value for value in range(1, len(network.nodes) + 1) if value in needed]
    number = {0: 0} | {value: i for i, value in enumerate(order, start=1)}
    nodes = tuple(_renumbered(network.node_of(value), number) for value in order)
    return dataclasses.replace(network, nodes=nodes)


def _renumbered(node: Node, number: dict[int, int]) -> Node:
    if isinstance(node, Affine):
        return dataclasses.replace(node, sources=tuple(number[s] for s in node.sources))
    return dataclasses.replace(node, source=number[node.source])
