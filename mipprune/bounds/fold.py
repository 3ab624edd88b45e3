"""Batch-norms folded into the layers before them, operations that only relabel taken out; layers stay recognisable."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from .network import Affine, Node, PiecewiseLinear
from .simplify import without_dead

__all__ = ["folded"]


def folded(network: PiecewiseLinear) -> PiecewiseLinear:
    """The same function, with every diagonal map made part of the affine map it alone reads, identities dropped."""
    nodes: list[Node] = list(network.nodes)
    readers = network.readers()
    for value in range(1, len(nodes) + 1):
        node = nodes[value - 1]
        if not isinstance(node, Affine) or len(node.sources) != 1 or node.sources[0] == 0:
            continue
        diagonal = _diagonal(node)
        inner = nodes[node.sources[0] - 1]
        if diagonal is None or not isinstance(inner, Affine) or len(set(readers[node.sources[0]])) != 1:
            continue
        layer = inner.layer
        if layer is not None:
            layer = dataclasses.replace(layer, scale=diagonal * layer.scale)
        matrices = tuple(sp.csr_array(sp.diags_array(diagonal) @ m) for m in inner.matrices)
        nodes[value - 1] = Affine(inner.sources, matrices, diagonal * inner.bias + node.bias, layer)
    for value, node in enumerate(nodes, start=1):  # identities that are left: their readers read what they read
        if value < len(nodes) and isinstance(node, Affine) and _is_identity(node):
            nodes = [_reading(n, value, node.sources[0]) for n in nodes]
    return without_dead(dataclasses.replace(network, nodes=tuple(nodes)))


def _diagonal(node: Affine) -> np.ndarray | None:
    matrix = node.matrices[0]
    if matrix.shape[0] != matrix.shape[1]:
        return None
    diagonal = matrix.diagonal()
    return diagonal if matrix.nnz == np.count_nonzero(diagonal) else None


def _is_identity(node: Affine) -> bool:
    diagonal = _diagonal(node) if len(node.sources) == 1 else None
    return diagonal is not None and bool((diagonal == 1).all()) and not node.bias.any()


def _reading(node: Node, old: int, new: int) -> Node:
    if isinstance(node, Affine):
        return dataclasses.replace(node, sources=tuple(new if s == old else s for s in node.sources))
    return dataclasses.replace(node, source=new) if node.source == old else node
