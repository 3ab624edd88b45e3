"""Exact least drop for every size: a table of all masks for few units, branch and bound for more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from .cardinality_qp import ActiveSet
from .convex_tree import ConvexTree
from .oracles import QuadraticOracle

__all__ = ["TABLE_UNITS", "BranchResult", "branch_and_bound", "quadratic_table", "table_minima"]

#: Largest number of free units whose 2^n masks are tabulated: 2^20 values, 8 MiB, some 50 ms for a quadratic.
TABLE_UNITS = 20


def quadratic_table(linear: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """``linear @ z + 1/2 z @ curvature @ z`` of all masks, bit-indexed (bit i = unit i removed): float64, (2^n,).

    The table doubles with every unit: with unit i the value grows by ``linear_i + H_ii / 2 + sum_{j in z} H_ij``, and
    that sum is itself a table over the units before i.  O(2^n) additions, 16 * 2^n bytes.
    """
    n = len(linear)
    table = np.zeros(1 << n)
    for i in range(n):
        cross = np.zeros(1 << i)
        for j in range(i):
            cross[1 << j : 2 << j] = cross[: 1 << j] + curvature[i, j]
        table[1 << i : 2 << i] = table[: 1 << i] + cross + (linear[i] + 0.5 * curvature[i, i])
    return table


def table_minima(table: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Best removal mask (bool, shape (n,)) and value for r = 0..n removed units, from a bit-indexed table."""
    n = len(table).bit_length() - 1
    removed = np.bitwise_count(np.arange(len(table), dtype=np.uint32))
    for r in range(n + 1):
        where = np.flatnonzero(removed == r)
        best = int(where[table[where].argmin()])
        yield (best >> np.arange(n) & 1).astype(bool), float(table[best])


@dataclasses.dataclass(frozen=True)
class BranchResult:
    """Best removal mask found, its value, a proved lower bound, and the nodes solved."""

    z: np.ndarray
    value: float
    bound: float
    nodes: int


def branch_and_bound(
    relaxation: ActiveSet,
    linear: np.ndarray,
    curvature: np.ndarray,
    z: np.ndarray,
    goes_on: Callable[[], bool],
    tolerance: float,
) -> BranchResult:
    """Close the gap at one cardinality of a convex quadratic, by a :class:`ConvexTree`.

    Args:
        relaxation: the solved relaxation at this cardinality (not changed).
        z: bool, shape (n,), a removal mask to start from.
        goes_on: asked before every step of two nodes; ``False`` stops the search with the bound reached.
        tolerance: nodes that can't beat the incumbent by more than this are dropped; the bound accounts for it.
    """
    oracle = QuadraticOracle(0.0, linear, curvature)
    best, best_value = z.copy(), oracle.value_and_gradient(z.astype(np.float64))[0]

    def offer(mask: np.ndarray) -> float:
        nonlocal best, best_value
        value = oracle.value_and_gradient(mask.astype(np.float64))[0]
        if value < best_value:
            best, best_value = mask.copy(), value
        return best_value - tolerance

    tree = ConvexTree(oracle, relaxation.z, int(z.sum()), best_value - tolerance, offer)
    tree.run(goes_on)
    return BranchResult(best, best_value, min(tree.bound, best_value), tree.nodes)
