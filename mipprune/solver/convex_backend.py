"""Problems in which only the number of kept units costs: convex relaxations, local search, one tree per size."""

from __future__ import annotations

import math

import numpy as np

from ..errors import SolverError
from .backend import Backend
from .cardinality_convex import relax_convex
from .cardinality_qp import ActiveSet, project_capped_simplex, tangent_bounds
from .convex_tree import ConvexTree
from .improve import round_by
from .local_search import LocalSearch
from .masks import costs_of
from .oracles import oracle_of
from .problem import Problem
from .search import Search

__all__ = ["ConvexTrees", "counts_alone"]

#: Share of the time left that goes into incumbents before branching.
SEARCH_SHARE = 0.25
#: Most units whose relaxation is finished by Newton steps.
NEWTON_UNITS = 256
#: Most undecided units that are branched on.
TREE_UNITS = 1200
#: Annealings without success before giving up on more than those.
PATIENCE = 4
#: Roundings at random that decide which samples matter around a relaxation, and the share of the gap given away there.
PROBES, GIVEN_AWAY = 8, 0.01


def counts_alone(problem: Problem) -> bool:
    """Whether all costs are functions of one number, that of the kept units."""
    return len(problem.costs.groups) == 1


class ConvexTrees(Backend):
    """Sizes one by one, each bounded by a convex relaxation and decided by a :class:`ConvexTree`.

    Every gradient of the drop gives a tangent, and a tangent bounds the drops of *all* sizes at once.  A size is open
    as long as it might hold a mask better than the incumbent; the open size with the least objective is relaxed, then
    searched for incumbents, then branched on.
    """

    def run(self, search: Search, start: np.ndarray | None) -> str:
        if not counts_alone(search.problem):
            raise SolverError(
                f"solver 'nlp' takes problems of one group, this one has {len(search.problem.costs.groups)}: use 'scip'"
            )
        if start is not None:
            search.offer(start)
        search.offer(~search.problem.remove)
        try:
            return self._search(search)
        except (ArithmeticError, MemoryError, ValueError, np.linalg.LinAlgError) as error:
            if search.kept is None:
                raise SolverError(f"nlp broke down: {error}") from error
            return "solver_error"  # what was found and proved before stays true

    def _search(self, search: Search) -> str:
        work = _Sizes(search)
        slope = search.problem.surrogate.drop_and_gradient(work.base)[1]
        search.offer(round_by(search.problem, -slope))
        while True:
            size = work.next_open()
            if size is None:
                return "infeasible" if search.kept is None else "optimal"
            if search.out_of_time:
                return "time_limit"
            if not work.advance(size):
                return "time_limit" if search.out_of_time else "iteration_limit"


class _Sizes:
    """What is known about every size: r of the m undecided units are removed."""

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
        self.searched, self.rounds = False, 0
        self._tangent(np.zeros(m))

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

    # -- what is done about it -------------------------------------------------------------------------------------

    def advance(self, size: int) -> bool:
        """Relax the size if it wasn't yet; else look for incumbents, once; else branch.  ``False`` if all was done."""
        if size not in self.points:
            self._relax(size)
            return True
        if not self.searched:
            self.searched = True
            self._look_for_masks(size)
            return True
        point, loose = self._settled(size)
        if len(loose) <= TREE_UNITS:
            self._branch(size, point, loose)
            return True
        return self._anneal(size)

    def _tangent(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.oracle.value_and_gradient(z)
        np.maximum(self.bounds, tangent_bounds(value, gradient, z), out=self.bounds)
        return value, gradient

    def _relax(self, size: int) -> None:
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
        value, gradient = self._tangent(z)
        best, best_value = z, value
        for _ in range(12):
            if best_value - self.bounds[size] <= tolerance or self.bounds[size] > self.cutoff:
                break
            state = ActiveSet.near(z, gradient, self.oracle.curvature(z))
            step = 1.0
            while True:
                trial = z + step * (state.z - z)
                trial_value, trial_gradient = self._tangent(trial)
                if trial_value <= value or step < 0.05:
                    break
                step *= 0.5
            if trial_value >= value:
                break
            z, value, gradient = trial, trial_value, trial_gradient
            if value < best_value:
                best, best_value = z, value
        return best

    def _settled(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Units without a choice at a size, by their reduced costs: where they end up (m,), and the others' indices."""
        z = self.points[size]
        value, gradient = self.oracle.value_and_gradient(z)
        order = np.argsort(gradient, kind="stable")
        inside, outside = order[:size], order[size:]
        vertex = np.zeros(len(z))
        vertex[inside] = 1.0
        rise = np.zeros(len(z))
        if size:
            rise[outside] = gradient[outside] - gradient[inside[-1]]
        if size < len(z):
            rise[inside] = gradient[outside[0]] - gradient[inside]
        tangent = value + float(gradient @ (vertex - z))
        fixed = (tangent + rise > self.cutoff) & (np.abs(z - vertex) < 1e-6)
        if size in (0, len(z)):
            fixed[:] = True
        loose = np.flatnonzero(~fixed)
        point = np.where(fixed, vertex, z)
        if len(loose):
            point[loose] = project_capped_simplex(z[loose], size - float(vertex[fixed].sum()))
        return point, loose

    def _offer(self, removed: np.ndarray) -> float:
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

    def _look_for_masks(self, size: int) -> None:
        """Masks of the size, or if a cost is minimised and none is found, of the next cheapest sizes."""
        search = self.search
        local = LocalSearch(self.oracle, self._offer, seed=search.seed + self.rounds)
        share = 10.0 if search.remaining is None else SEARCH_SHARE * search.remaining
        stop = search.seconds + share

        def goes_on() -> bool:
            return search.seconds < stop and not search.out_of_time

        point = self.points[size]
        if self.cost is None:
            local.search(point, size, -math.inf, goes_on)
            return
        sizes = [int(r) for r in np.argsort(self.cost, kind="stable") if self.bounds[r] <= self.limit]
        low, high = 0, 0  # the masks of sizes[high:] are easy to find, those of sizes[:low] weren't
        while high < len(sizes) and not search.out_of_time:
            if self.cost[sizes[high]] >= search.objective:
                break
            local.descend(point, sizes[high])
            if search.objective <= self.cost[sizes[high]]:
                break
            low, high = high + 1, 2 * high + 1
        while low < high and goes_on():
            middle = (low + high) // 2
            local.descend(point, sizes[min(middle, len(sizes) - 1)])
            low, high = (low, middle) if search.objective <= self.cost[sizes[middle]] else (middle + 1, high)
        for r in reversed(sizes):
            if not goes_on():
                break
            if self.cost[r] < search.objective:
                local.search(point, r, self.limit, goes_on)
                if search.objective > self.cost[r]:
                    break

    def _anneal(self, size: int) -> bool:
        """Too many units for a tree: better incumbents by annealing, until :data:`PATIENCE` rounds gain nothing.

        If a cost is minimised, a size on the way from the incumbent's to the cheapest possible one is tried, nearer to
        the incumbent's after each failure; rounds that failed count once it is the next one.
        """
        search = self.search
        local = LocalSearch(self.oracle, self._offer, seed=search.seed + self.rounds)
        before, failures, reach = search.objective, 0, 0.5
        while failures < PATIENCE and not search.out_of_time:
            target, step = size, 0
            if self.cost is not None:
                cheaper = np.flatnonzero((self.bounds <= self.limit) & (self.cost < search.objective))
                if len(cheaper) == 0:
                    break
                step = int(reach * (len(cheaper) - 1))
                target = int(cheaper[np.argsort(-self.cost[cheaper], kind="stable")[step]])
            last = search.objective
            local.anneal(self._point_near(target), target, lambda: not search.out_of_time)
            if search.objective < last:
                failures = 0
            else:
                failures, reach = failures + (step == 0), 0.5 * reach if step else reach
        self.rounds += 1
        return search.objective < before

    def _point_near(self, size: int) -> np.ndarray:
        """The relaxed point of a size, computed where there is none yet."""
        if size not in self.points:
            scale = abs(self.cutoff if math.isfinite(self.cutoff) else 1.0)
            self.points[size] = self._follow(size, 1e-3 * scale, None)
        return self.points[size]

    def _branch(self, size: int, point: np.ndarray, loose: np.ndarray) -> None:
        search = self.search
        settled_mask = point > 0.5
        if len(loose) == 0:
            self._offer(settled_mask)
            self.bounds[size] = math.inf
            return
        oracle = self.oracle.restrict(point, loose, self._probes(point, loose), GIVEN_AWAY * self._slack(size))

        def offer(removed: np.ndarray) -> float:
            mask = settled_mask.copy()
            mask[loose] = removed
            return self._offer(mask)

        tree = ConvexTree(oracle, point[loose], round(float(point[loose].sum())), self.cutoff, offer)

        def goes_on() -> bool:
            if tree.bound > self.bounds[size]:
                self.bounds[size] = tree.bound
                if self.cost is None:
                    self.search.raise_bound(min(float(self.lows().min()), search.objective))
            return not search.out_of_time and (self.cost is None or search.objective > self.cost[size])

        if tree.run(goes_on):
            self.bounds[size] = math.inf if self.cost is not None else max(self.bounds[size], tree.bound)
        elif not search.out_of_time:
            self.bounds[size] = math.inf  # a mask of this size was found, none of it can be cheaper

    def _slack(self, size: int) -> float:
        gap = self.cutoff - self.bounds[size]
        return gap if math.isfinite(gap) else 0.0

    def _probes(self, point: np.ndarray, loose: np.ndarray) -> np.ndarray:
        """Random masks near a relaxation: float64, shape (PROBES, m)."""
        rng = np.random.default_rng(self.search.seed)
        take = round(float(point[loose].sum()))
        probes = np.repeat(point[None], PROBES, axis=0)
        for probe in probes:
            near = point[loose] + 0.2 * rng.normal(size=len(loose))
            probe[loose] = 0.0
            probe[loose[np.argsort(-near, kind="stable")[:take]]] = 1.0
        return probes
