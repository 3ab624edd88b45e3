"""Branch and bound on a convex function under a cardinality, each node relaxed as it is: no linear program."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from .cardinality_qp import HELD, ActiveSet, StalledError
from .cardinality_search import exchange
from .oracles import Oracle

__all__ = ["ConvexTree"]

#: Most evaluations of one node: more only where the minimum lies above the cutoff and its bound doesn't yet.
EVALUATIONS = 8
#: Rounded nodes are improved by exchanges so often.
ROUND_EVERY = 32


class ConvexTree:
    """All masks of one size below a cutoff, found or ruled out.

    Best-first branch and bound on ``min f(z)`` over masks with ``total`` units removed.  A node holds some units at 0
    or 1.  Its relaxation is followed from its parent's on a quadratic model (:class:`ActiveSet`), the model is
    corrected by true gradients, and the node's bound is the least value of a tangent of ``f`` over the node's
    polytope: a point that isn't optimal costs strength, never validity.  A node is evaluated again only as long as it
    might be cut off: once some relaxed point lies below the cutoff it can't be.  Units whose reduced cost exceeds what
    is left up to the cutoff are held without a branch.  Branches on the unit whose worse child gains most, by the
    stiffness of the free block.  (NLP-based branch and bound in the manner of Dakin, 1965; the parametric node solves
    are our form.)

    Args:
        oracle: ``f``.
        z: float64 (u,): a point near the relaxation's minimiser.
        total: number of units removed.
        cutoff: masks and nodes above it don't matter.
        offer: takes a removal mask (bool, (u,)) and returns the new cutoff, never a higher one.
    """

    def __init__(
        self, oracle: Oracle, z: np.ndarray, total: int, cutoff: float, offer: Callable[[np.ndarray], float]
    ) -> None:
        self.oracle, self.total, self.cutoff, self.offer = oracle, total, cutoff, offer
        self.heap: list[tuple[float, int, ActiveSet, np.ndarray]] = []
        self.dropped = np.inf  # least bound among the nodes that were cut off
        self.nodes = 0
        gradient = oracle.value_and_gradient(z)[1]
        self._settle(ActiveSet.near(z, gradient, oracle.curvature(z)), -np.inf)

    @property
    def bound(self) -> float:
        """Lower bound on ``f`` of every mask of this size that was not offered."""
        return min(self.heap[0][0] if self.heap else np.inf, self.dropped)

    def run(self, goes_on: Callable[[], bool]) -> bool:
        """Search until no node is left below the cutoff (``True``) or ``goes_on`` says stop."""
        while self.heap and self.heap[0][0] <= self.cutoff:
            if not goes_on():
                return False
            bound, _, state, gradient = heapq.heappop(self.heap)
            self._branch(bound, state, gradient)
        return True

    def _branch(self, bound: float, state: ActiveSet, gradient: np.ndarray) -> None:
        """Hold one more unit, at 0 and at 1."""
        if not self.oracle.is_quadratic:
            try:
                state.bend(self.oracle.curvature(state.z))
                state.tilt(gradient - state.gradient)
            except StalledError:
                pass  # the point stays where it is
        if self.nodes % ROUND_EVERY < 2:
            self._round(state)
        unit = _branching_unit(state)
        if unit is None:
            self.offer_mask(state.z > 0.5)
            return
        for side in (0, 1):
            child = state.copy()
            try:
                child.hold(unit, side)
            except StalledError:
                child.z[unit] = side
            self._settle(child, bound)

    def offer_mask(self, mask: np.ndarray) -> None:
        self.cutoff = min(self.cutoff, self.offer(mask))

    def _round(self, state: ActiveSet) -> None:
        mask = np.zeros(len(state.z), dtype=bool)
        mask[np.argsort(-state.z, kind="stable")[: self.total]] = True
        self.offer_mask(exchange(state.linear, state.curvature, mask))

    def _settle(self, state: ActiveSet, parent_bound: float) -> None:
        """Bound a node, offer the mask it may have settled on, and keep it open or drop it."""
        self.nodes += 1
        held = state.held
        loose = np.flatnonzero(~held)
        take = self.total - round(float(state.z[held].sum()))
        if not 0 <= take <= len(loose):
            return  # no mask of this size is left
        if take in (0, len(loose)):
            self.offer_mask(np.where(held, state.z > 0.5, take > 0))
            return
        bound, best, best_value = parent_bound, state.z, np.inf
        for _ in range(EVALUATIONS):
            value, gradient = self.oracle.value_and_gradient(state.z)
            order = loose[np.argsort(gradient[loose], kind="stable")]
            vertex = np.where(held, state.z, 0.0)
            vertex[order[:take]] = 1.0  # where the tangent is least
            tangent = value + float(gradient @ (vertex - state.z))
            bound = max(bound, tangent)
            if bound > self.cutoff or value <= self.cutoff or self.oracle.is_quadratic:
                break
            try:
                if value < best_value:
                    best, best_value = state.z.copy(), value
                    state.tilt(gradient - state.gradient)
                else:  # the model was too flat: half the way back, and the curvature there
                    middle = 0.5 * (best + state.z)
                    gradient = self.oracle.value_and_gradient(middle)[1]
                    state = ActiveSet.near(middle, gradient, self.oracle.curvature(middle), held)
            except StalledError:
                break
        if np.abs(state.z - vertex).max() < 1e-9:
            self.offer_mask(vertex > 0.5)
        if bound > self.cutoff:
            self.dropped = min(self.dropped, bound)
            return
        inside, outside = order[:take], order[take:]
        rise = np.zeros(len(held))  # of the tangent, when the unit leaves the vertex
        rise[inside], rise[outside] = gradient[outside[0]] - gradient[inside], gradient[outside] - gradient[inside[-1]]
        fixed = ~held & (tangent + rise > self.cutoff) & (state.z == vertex)
        if fixed.any():
            self.dropped = min(self.dropped, tangent + float(rise[fixed].min()))
            state.status[fixed] = HELD
        heapq.heappush(self.heap, (bound, self.nodes, state, gradient))


def _branching_unit(state: ActiveSet) -> int | None:
    """The unit whose worse child gains most; ``None`` if all are held."""
    free, stiffness = state.stiffness()
    at = state.z[free]
    gain = stiffness * at * (1.0 - at)
    if len(free) and gain.max() > 1e-18 * stiffness.max():
        return int(free[gain.argmax()])
    loose = np.flatnonzero(~state.held)
    if len(loose) == 0:
        return None
    return int(loose[np.abs(state.gradient[loose] - state.multiplier).argmin()])
