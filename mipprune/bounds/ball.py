"""T1 for every input of bounded norm: one row of coefficients that needs no data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from torch import nn

from ..errors import BudgetError
from ..graph import UnitGraph, trace
from ..records import frozen_array
from .extract import piecewise_linear
from .gap import NeuronGap, backward_gains, map_into, unit_columns
from .network import Affine, Gate, MaxPool, PiecewiseLinear
from .norms import node_norms

__all__ = ["neuron_gap_on_ball"]


def neuron_gap_on_ball(model: nn.Module | UnitGraph, example: Any, norm: float) -> NeuronGap:
    """T1 for *every* input with ``|x| <= norm``: one row of coefficients.

    Norms of values are carried forward (``|W| |h| + |b|``; ReLU, gates and pooling as in :func:`backward_gains`), and
    beside them a bound on each entry's size, ``min(|W_i| n + |b_i|, |W_i| a + |b_i|)`` from the norm n and the entries'
    bounds a of what it reads.  They take the place of h in T1.  O(weights x outputs), and a norm for each unit.

    Args:
        example: input tensors for the tracer (not looked at if ``model`` is a traced graph): only shapes matter.
        norm: r, in input units, at least 0.

    Returns:
        :class:`NeuronGap` with coefficients of shape (1, n), no factors and no margins: ``deterministic``, ``random``
        and :class:`mipprune.surrogates.WorstRow` take it, what speaks about samples doesn't.

    Raises:
        BudgetError: a norm that is negative or not finite.
        TraceError: an operation that is neither affine nor ReLU nor max pooling.
        ModelStateError: a weight that isn't finite.
    """
    if not (norm >= 0 and math.isfinite(norm)):
        raise BudgetError(f"norm: expected a number of at least 0, got {norm}")
    graph = model if isinstance(model, UnitGraph) else trace(model, example)
    network = piecewise_linear(graph, joined=False)
    gains, paths = backward_gains(network)
    sizes = _entry_bounds(network, norm)
    readers = network.readers()
    row = np.zeros(network.n_units)
    for value, node in enumerate(network.nodes, start=1):
        if not isinstance(node, Gate):
            continue
        units, columns = unit_columns(node)
        total, entry = sizes[node.source]
        for unit, entries in zip(units, columns, strict=True):
            length = min(total, float(np.linalg.norm(entry[entries])))
            spectral, outputs = 0.0, np.zeros(network.sizes[-1])
            for reader in readers[value]:
                affine = isinstance(network.node_of(reader), Affine)
                part = sp.csr_array(map_into(network, reader, value)[:, entries])
                own = float(np.linalg.norm(part.toarray(), 2)) if min(part.shape) <= 64 else math.inf
                spectral += (gains[reader] if affine else gains[value]) * min(own, float(np.linalg.norm(part.data))
                                                                              ) * (1 + 1e-10) * length
                outputs += (paths[reader] if affine else paths[value]) @ (abs(part) @ entry[entries])
            row[unit] += min(spectral, float(np.linalg.norm(outputs)))
    groups = {g.name: (g.offset, g.size) for g in graph.groups}
    return NeuronGap(frozen_array(row[None]), (), frozen_array(np.zeros(0)), groups)


def _entry_bounds(network: PiecewiseLinear, norm: float) -> list[tuple[float, np.ndarray]]:
    """For every value, over the ball: bounds on its norm and on the size of each entry."""
    found = [(norm, np.full(network.n_inputs, norm))]
    for node in network.nodes:
        if isinstance(node, Affine):
            norms = node_norms(node)
            total = float(np.linalg.norm(node.bias)) + sum(
                n * found[s][0] for s, n in zip(node.sources, norms, strict=True))
            entry = np.abs(node.bias)
            for source, matrix in zip(node.sources, node.matrices, strict=True):
                rows = np.sqrt(np.asarray((matrix**2).sum(1)).ravel())
                entry = entry + np.minimum(rows * found[source][0], abs(matrix) @ found[source][1])
        elif isinstance(node, MaxPool):
            total = node_norms(node)[0] * found[node.source][0]
            entry = np.append(found[node.source][1], 0.0)[node.windows].max(1)
        else:
            total, entry = found[node.source]
        found.append((min(total, float(np.linalg.norm(entry))), entry))
    return found
