"""A network as data: affine maps, ReLU, max pooling and the gates of its units, in numpy and scipy alone."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

__all__ = ["Affine", "Gate", "Layer", "MaxPool", "Node", "PiecewiseLinear", "Relu"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where the entries of a linear layer's or a convolution's matrix come from.

    ``matrix[i, j] = scale[i] * weight.ravel()[index[i, j] - 1]``; no weight stands twice in one row or one column.

    Attributes:
        name: the weight's name in the model.
        shape: the weight's shape.
        index: CSR array of the matrix's shape, number of the weight plus 1.
        scale: float64 (size,), a batch-norm's factors, 1 without one.
        convolution: (spatial shape of the source, padding, dilation), each one number per dimension; ``None`` for a
            linear layer.
    """

    name: str
    shape: tuple[int, ...]
    index: sp.csr_array
    scale: np.ndarray
    convolution: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None

    def matrix(self, weight: np.ndarray) -> sp.csr_array:
        """The layer's matrix for another weight of the same shape."""
        rows = np.repeat(np.arange(self.index.shape[0]), np.diff(self.index.indptr))
        data = np.asarray(weight, dtype=np.float64).ravel()[self.index.data - 1] * self.scale[rows]
        return sp.csr_array((data, self.index.indices, self.index.indptr), shape=self.index.shape)


@dataclasses.dataclass(frozen=True)
class Affine:
    """``sum_j matrices[j] @ value[sources[j]] + bias``; matrices are scipy CSR arrays of shape (size, source size).

    ``layer`` says where a single matrix comes from, if it is one layer's (only in ``piecewise_linear(joined=False)``).
    """

    sources: tuple[int, ...]
    matrices: tuple[sp.csr_array, ...]
    bias: np.ndarray
    layer: Layer | None = None

    @property
    def size(self) -> int:
        """Numbers per sample."""
        return len(self.bias)


@dataclasses.dataclass(frozen=True)
class Relu:
    """``max(0, value[source])``.

    Attributes:
        source: number of the operation that it reads.
        size: numbers per sample.
    """

    source: int
    size: int

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the operations that it reads."""
        return (self.source,)


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Entry i is the largest of the source's entries ``windows[i]``: int64 (size, width), -1 where there is none."""

    source: int
    windows: np.ndarray

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the operations that it reads."""
        return (self.source,)

    @property
    def size(self) -> int:
        """Numbers per sample."""
        return len(self.windows)


@dataclasses.dataclass(frozen=True)
class Gate:
    """Entry i of the source times the gate of unit ``units[i]``: int64 (size,), -1 for an entry that is always on."""

    source: int
    units: np.ndarray

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the operations that it reads."""
        return (self.source,)

    @property
    def size(self) -> int:
        """Numbers per sample."""
        return len(self.units)


Node: TypeAlias = Affine | Relu | MaxPool | Gate


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """A network in evaluation mode, as a list of operations on flattened samples.

    Value 0 is the input; ``nodes[i]`` computes value ``i + 1`` from earlier ones.  The last value is the output.

    Attributes:
        n_inputs: entries of one input sample.
        n_units: gates; a gate of 1 keeps the unit, 0 removes its contribution to everything that reads it.
        nodes: the operations.
    """

    n_inputs: int
    n_units: int
    nodes: tuple[Node, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of every value."""
        return (self.n_inputs, *(node.size for node in self.nodes))

    def node_of(self, value: int) -> Node:
        """The operation that computes ``value`` (1 and up)."""
        return self.nodes[value - 1]

    def readers(self) -> list[list[int]]:
        """For every value, the values that are computed from it."""
        found: list[list[int]] = [[] for _ in self.sizes]
        for value, node in enumerate(self.nodes, start=1):
            for source in node.sources:
                found[source].append(value)
        return found

    def values(self, x: np.ndarray, gates: np.ndarray | None = None) -> list[np.ndarray]:
        """All values for ``x`` (N, n_inputs) under ``gates`` (n_units,), all on by default: float64 (N, size) each."""
        x = np.asarray(x, dtype=np.float64).reshape(len(x), self.n_inputs)
        gates = np.ones(self.n_units) if gates is None else np.asarray(gates, dtype=np.float64)
        padded = np.append(gates, 1.0)  # unit -1 is the last entry
        found = [x]
        for node in self.nodes:
            if isinstance(node, Affine):
                parts = [(matrix @ found[s].T).T for s, matrix in zip(node.sources, node.matrices)]
                found.append(np.asarray(sum(parts, node.bias[None] + np.zeros((len(x), 1)))))
            elif isinstance(node, Relu):
                found.append(np.maximum(found[node.source], 0.0))
            elif isinstance(node, Gate):
                found.append(found[node.source] * padded[node.units])
            else:
                found.append(window_max(found[node.source], node.windows))
        return found

    def output(self, x: np.ndarray, gates: np.ndarray | None = None) -> np.ndarray:
        """The last value, float64 (N, outputs), of the inputs ``x``, (N, n_inputs), under ``gates``, (n_units,)."""
        return self.values(x, gates)[-1]


def window_max(values: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Largest entry of each window: (N, size) from (N, source size)."""
    padded = np.concatenate([values, np.full((len(values), 1), -np.inf)], axis=1)
    return np.asarray(padded[:, windows].max(axis=2))
