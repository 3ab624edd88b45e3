"""What relaxations say about every size of a problem in which only the number of kept units costs."""

from __future__ import annotations

import math

import numpy as np

from .capped_simplex import project_capped_simplex, tangent_bounds
from .cardinality_convex import relax_convex
from .cardinality_qp import ActiveSet
from .convex_tree import settled_units
from .improve import round_by
from .masks import costs_of
from .oracles import oracle_of
from .search import Search

__all__ = ["Sizes"]

#: Most units whose relaxation is finished by Newton steps.
NEWTON_UNITS = 256


class Sizes:
    """What is known about every size: r of the m undecided units are removed.

    Attributes:
        free: int64, shape (m,), the undecided units; the others are removed as ``base`` (float64, (n,)) says.
        oracle: the drop as a function of the free units.
        cost: float64, shape (m + 1,), the objective at every size, or ``None`` if the drop is minimised.
        limit: ``max_drop``, as the problem compares with it.
        bounds: float64, shape (m + 1,), lower bounds on the drop; ``inf`` where no mask is any use.
        points: the relaxed point (float64, (m,)) of every size that was relaxed to the end.
    """

    def __init__(self, search: Search) -> None:
        problem = search.problem
        self.search = search
        self.free = np.flatnonzero(~(problem.keep | problem.remove))
        self.base = problem.remove.astype(np.float64)
        self.oracle = oracle_of(problem.surrogate, self.base, self.free)
        m = len(self.free)
        counts = (int(problem.most[0]) - np.arange(m + 1))[:, None]
        allowed = problem.count_violations(counts) == 0
        for resource, limit in problem.budgets.items():
            allowed &= costs_of(problem.costs[resource], counts) <= limit
        minimised = problem.objective == "drop"
        self.cost = None if minimised else costs_of(problem.costs[problem.objective], counts).astype(float)
        self.limit = problem.drop_limit
        self.bounds = np.where(allowed, -math.inf, math.inf)  # on the drop
        self.possible: set[int] = set()  # sizes with a relaxed point within the limit
        self.points: dict[int, np.ndarray] = {}
        self.last = np.full(m, 0.5)
        self.tangent(np.zeros(m))

    # -- which size is next ----------------------------------------------------------------------------------------

    def lows(self) -> np.ndarray:
        """Lower bounds on the objective at every size, shape (m + 1,)."""
        possible = self.bounds <= self.limit
        return np.where(possible, self.bounds if self.cost is None else self.cost, math.inf)

    def next_open(self) -> int | None:
        """The open size with the least bound, after reporting that bound."""
        lows = self.lows()
        size = int(lows.argmin())
        self.search.raise_bound(min(float(lows[size]), self.search.objective))
        return None if (not math.isfinite(lows[size]) and lows[size] > 0) or self.search.closed else size

    @property
    def cutoff(self) -> float:
        """Drops above it don't help any more."""
        if self.cost is not None or self.search.kept is None:
            return self.limit
        objective = self.search.objective
        return min(self.limit, objective - 5e-8 * max(1e-3, abs(objective)))

    # -- relaxations ------------------------------------------------------------------------------------------------

    def tangent(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.oracle.value_and_gradient(z)
        np.maximum(self.bounds, tangent_bounds(value, gradient, z), out=self.bounds)
        return value, gradient

    def relax(self, size: int) -> None:
        """Raise the bound of a size until the cutoff, or as far as a relaxation can.

        While many sizes are open, one between the cheapest and the cheapest that has a relaxed point is tried first:
        it becomes either of the two.
        """
        cutoff = self.cutoff
        scale = abs(cutoff if math.isfinite(cutoff) else self.oracle.value_and_gradient(self.last)[0])
        newton = len(self.free) <= NEWTON_UNITS
        if self.cost is not None:
            probe = self._between(size)
            z = self._follow(probe, 1e-3 * scale, cutoff)
            if probe != size or self.bounds[size] > cutoff:
                if self.bounds[probe] <= cutoff:
                    self.possible.add(probe)
                return
        z = self._follow(size, (0.02 if newton else 1e-3) * scale, None)
        if self.search.out_of_time or self.bounds[size] > cutoff:
            return
        self.points[size] = self.last = self._newton(z, size, 1e-3 * scale) if newton else z
        self._offer_rounded(self.last)

    def _follow(self, size: int, tolerance: float, limit: float | None) -> np.ndarray:
        """Projected gradients at a size, from the last point."""
        self.last = relax_convex(
            self.oracle.value_and_gradient, self.last, size, self.bounds, tolerance=tolerance, limit=limit,
            goes_on=lambda: not self.search.out_of_time,
        )
        return self.last

    def _between(self, size: int) -> int:
        """The size to relax next if a cost is minimised: ``size``, or one on the way to a size that is possible."""
        assert self.cost is not None
        order = [int(r) for r in np.argsort(self.cost, kind="stable") if self.bounds[r] <= self.limit]
        reach = next((i for i, r in enumerate(order) if r in self.possible), len(order) - 1)
        return order[reach // 2] if reach > 2 else size

    def _newton(self, z: np.ndarray, size: int, tolerance: float) -> np.ndarray:
        """The relaxation's minimiser, by quadratic models from a point nearby."""
        value, gradient = self.tangent(z)
        best, best_value = z, value
        for _ in range(12):
            if self.search.out_of_time:
                break
            if best_value - self.bounds[size] <= tolerance or self.bounds[size] > self.cutoff:
                break
            state = ActiveSet.near(z, gradient, self.oracle.curvature(z))
            step = 1.0
            while True:
                trial = z + step * (state.z - z)
                trial_value, trial_gradient = self.tangent(trial)
                if trial_value <= value or step < 0.05:
                    break
                step *= 0.5
            if trial_value >= value:
                break
            z, value, gradient = trial, trial_value, trial_gradient
            if value < best_value:
                best, best_value = z, value
        return best

    def point_near(self, size: int) -> np.ndarray:
        """The relaxed point of a size, computed where there is none yet."""
        if size not in self.points:
            scale = abs(self.cutoff if math.isfinite(self.cutoff) else 1.0)
            self.points[size] = self._follow(size, 1e-3 * scale, None)
        return self.points[size]

    def settled(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Units without a choice at a size, by their reduced costs: where they end up (m,), and the others' indices."""
        z = self.points[size]
        vertex, fixed = settled_units(self.oracle, z, [(np.arange(len(z)), size)], self.cutoff)
        loose = np.flatnonzero(~fixed)
        point = np.where(fixed, vertex, z)
        if len(loose):
            point[loose] = project_capped_simplex(z[loose], size - float(vertex[fixed].sum()))
        return point, loose

    def slack(self, size: int) -> float:
        gap = self.cutoff - self.bounds[size]
        return gap if math.isfinite(gap) else 0.0

    # -- incumbents -------------------------------------------------------------------------------------------------

    def offer(self, removed: np.ndarray) -> float:
        """Offer a removal mask of the free units; returns the cutoff after that."""
        kept = self.base < 0.5
        kept[self.free[removed]] = False
        self.search.offer(kept)
        return self.cutoff

    def _offer_rounded(self, point: np.ndarray) -> None:
        """The relaxed point's order of removal, cut where the requirements say: poor, but there early."""
        score = np.full(self.search.problem.n_units, -math.inf)
        score[self.free] = point
        self.search.offer(round_by(self.search.problem, score))
