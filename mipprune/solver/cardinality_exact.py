"""Exact least drop for every size: a table of all masks for few units, branch and bound for more."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator

import numpy as np

from .cardinality_qp import HELD, ActiveSet, StalledError

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
    improve: Callable[[np.ndarray], np.ndarray],
    goes_on: Callable[[], bool],
    tolerance: float,
) -> BranchResult:
    """Close the gap at one cardinality: best-first branch and bound on a convex quadratic.

    Each node holds some units at 0 or 1.  Its relaxation is not solved anew: :meth:`ActiveSet.hold` follows the
    parent's minimiser while one more unit moves to its value, a few small factorisations.  The node's bound is the
    exact minimum of a tangent over the node's polytope, so an inexact point costs strength, never validity.  Units
    whose reduced cost exceeds the gap are held without a branch.  Branches on the unit with the largest product of
    what its two children gain, by the stiffness of the free block.

    Args:
        relaxation: the solved relaxation at this cardinality (not changed).
        z: bool, shape (n,), a removal mask to start from.
        improve: takes a removal mask to a better one (exchanges).
        goes_on: asked before every node; ``False`` stops the search with the bound reached.
        tolerance: nodes that can't beat the incumbent by more than this are dropped; the bound accounts for it.
    """
    search = _Search(relaxation, linear, curvature, z, improve, tolerance)
    while search.heap and search.heap[0][0] < search.cutoff and goes_on():
        bound, _, node = heapq.heappop(search.heap)
        search.branch(bound, node)
    return search.result()


class _Search:
    """The open nodes and the incumbent of one :func:`branch_and_bound`."""

    def __init__(
        self,
        relaxation: ActiveSet,
        linear: np.ndarray,
        curvature: np.ndarray,
        z: np.ndarray,
        improve: Callable[[np.ndarray], np.ndarray],
        tolerance: float,
    ) -> None:
        self.linear, self.curvature, self.improve, self.tolerance = linear, curvature, improve, tolerance
        self.total = int(z.sum())
        self.best, self.best_value = z.copy(), self._value(z)
        self.heap: list[tuple[float, int, ActiveSet]] = []
        self.dropped = np.inf  # least bound among the nodes that were cut off
        self.nodes = 0
        self._settle(relaxation.copy(), -np.inf)

    @property
    def cutoff(self) -> float:
        return self.best_value - self.tolerance

    def result(self) -> BranchResult:
        open_bound = min((bound for bound, _, _ in self.heap), default=np.inf)
        return BranchResult(self.best, self.best_value, min(open_bound, self.dropped, self.best_value), self.nodes)

    def branch(self, bound: float, node: ActiveSet) -> None:
        """Hold one more unit, at 0 and at 1."""
        unit = self._branching_unit(node)
        if unit is None:
            self._offer(node.z > 0.5)
            return
        for side in (0, 1):
            child = node.copy()
            try:
                child.hold(unit, side)
            except StalledError:
                child.z[unit] = side  # whatever the point, its tangent is a bound
            self._settle(child, bound)
        if self.nodes % 128 < 2:  # now and then, round the node and walk to a local optimum
            start = np.zeros(len(node.z), dtype=bool)
            start[np.argsort(-node.z, kind="stable")[: self.total]] = True
            self._offer(self.improve(start))

    def _value(self, mask: np.ndarray) -> float:
        x = mask.astype(np.float64)
        return float(self.linear @ x + 0.5 * x @ (self.curvature @ x))

    def _offer(self, mask: np.ndarray) -> None:
        value = self._value(mask)
        if value < self.best_value:
            self.best, self.best_value = mask, value

    def _settle(self, node: ActiveSet, parent_bound: float) -> None:
        """Bound a node, offer the mask it may have settled on, and keep it open or drop it."""
        self.nodes += 1
        held = node.held
        loose = np.flatnonzero(~held)
        take = self.total - round(float(node.z[held].sum()))
        if not 0 <= take <= len(loose):
            return  # no mask of this size is left
        gradient = self.linear + self.curvature @ node.z
        order = loose[np.argsort(gradient[loose], kind="stable")]
        vertex = np.where(held, node.z, 0.0)
        vertex[order[:take]] = 1.0  # where the tangent is least
        if take in (0, len(loose)):
            self._offer(vertex > 0.5)  # the only mask left
            return
        value = 0.5 * float((self.linear + gradient) @ node.z)
        bound = max(value + float(gradient @ (vertex - node.z)), parent_bound)
        if np.abs(node.z - vertex).max() < 1e-9:
            self._offer(vertex > 0.5)
        slack = self.cutoff - bound
        if slack <= 0:
            self.dropped = min(self.dropped, bound)
            return
        inside, outside = order[:take], order[take:]
        cost = np.zeros(len(node.z))  # what the tangent rises by when the unit leaves the vertex
        cost[inside], cost[outside] = gradient[outside[0]] - gradient[inside], gradient[outside] - gradient[inside[-1]]
        fixed = ~held & (cost >= slack) & (node.z == vertex)
        if fixed.any():
            self.dropped = min(self.dropped, bound + float(cost[fixed].min()))
            node.status[fixed] = HELD
        heapq.heappush(self.heap, (bound, self.nodes, node))

    def _branching_unit(self, node: ActiveSet) -> int | None:
        """The unit whose children gain most, by the product of both gains; ``None`` if all are held."""
        free, stiffness = node.stiffness()
        at = node.z[free]
        gain = stiffness * at * (1.0 - at)
        if len(free) and gain.max() > 1e-18 * stiffness.max():
            return int(free[gain.argmax()])
        loose = np.flatnonzero(~node.held)
        if len(loose) == 0:
            return None
        return int(loose[np.abs(node.excess[loose]).argmin()])
