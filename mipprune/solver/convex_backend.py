"""Problems in which only the number of kept units costs: convex relaxations, local search, one tree per size."""

from __future__ import annotations

import math

import numpy as np

from ..errors import SolverError
from .backend import Backend
from .convex_tree import TREE_UNITS, ConvexTree
from .count_vectors import CountVectors, bound_by_counts, can_be_listed, decide_by_counts, removal_counts
from .improve import improve, improve_by_kicks, round_by
from .problem import Problem
from .search import Search
from .size_search import anneal_sizes, search_sizes
from .sizes import Sizes

__all__ = ["ConvexTrees", "takes"]

#: Time that goes into incumbents over several groups before branching, as a share of what is left and without a limit.
SEARCH_SHARE, SEARCH_SECONDS = 0.15, 5.0
#: Roundings at random that decide which samples matter around a relaxation, and the share of the gap given away there.
PROBES, GIVEN_AWAY = 8, 0.01


def takes(problem: Problem) -> bool:
    """Whether it is a problem of one group, or of several that minimises the drop and whose counts can be listed."""
    return counts_alone(problem) or (problem.objective == "drop" and can_be_listed(problem))


def counts_alone(problem: Problem) -> bool:
    """Whether all costs are functions of one number, that of the kept units."""
    return len(problem.costs.groups) == 1


class ConvexTrees(Backend):
    """Sizes one by one, each bounded by a convex relaxation and decided by a :class:`ConvexTree`.

    Every gradient of the drop gives a tangent, and a tangent bounds the drops of *all* sizes at once.  A size is open
    as long as it might hold a mask better than the incumbent; the open size with the least objective is relaxed, then
    searched for incumbents, then branched on.  With several groups, where the drop is minimised, vectors of sizes take
    the place of sizes (:class:`CountVectors`).
    """

    def run(self, search: Search, start: np.ndarray | None) -> str:
        problem = search.problem
        if not counts_alone(problem) and problem.objective != "drop":
            raise SolverError(
                f"solver 'nlp' takes problems of one group, or of several that minimise the drop; this one minimises "
                f"{problem.objective} over {len(problem.costs.groups)} groups: use 'scip'"
            )
        if start is not None:
            search.offer(start)
        search.offer(~problem.remove)
        try:
            return self._search(search) if counts_alone(problem) else self._search_vectors(search)
        except (ArithmeticError, MemoryError, ValueError, np.linalg.LinAlgError) as error:
            if search.kept is None:
                raise SolverError(f"nlp broke down: {error}") from error
            return "solver_error"  # what was found and proved before stays true

    def _search(self, search: Search) -> str:
        sizes = Sizes(search)
        slope = search.problem.surrogate.drop_and_gradient(sizes.base)[1]
        search.offer(round_by(search.problem, -slope))
        searched, seed = False, search.seed
        while True:
            size = sizes.next_open()
            if size is None:
                return "infeasible" if search.kept is None else "optimal"
            if search.out_of_time:
                return "time_limit"
            if size not in sizes.points:
                sizes.relax(size)
                continue
            if not searched:
                searched = True
                search_sizes(sizes, size)
                continue
            point, loose = sizes.settled(size)
            if len(loose) <= TREE_UNITS:
                _branch(sizes, size, point, loose)
                continue
            seed += 1
            if not anneal_sizes(sizes, size, seed):
                return "time_limit" if search.out_of_time else "iteration_limit"

    def _search_vectors(self, search: Search) -> str:
        problem = search.problem
        counts = removal_counts(problem)
        if counts is None:
            raise SolverError("solver 'nlp' lists the counts of all groups, and these are too many: use 'scip'")
        if len(counts) == 0:
            return "infeasible"
        slope = problem.surrogate.drop_and_gradient(problem.remove.astype(float))[1]
        search.offer(round_by(problem, -slope))

        def goes_on() -> bool:
            return not search.out_of_time

        vectors = CountVectors(search, counts)
        best = bound_by_counts(vectors, goes_on)
        if not search.closed and goes_on():
            improve(search, round_by(problem, -slope) if best is None else best)
            improve_by_kicks(search, SEARCH_SECONDS if search.remaining is None else SEARCH_SHARE * search.remaining)
        if decide_by_counts(vectors, goes_on):
            return "infeasible" if search.kept is None else "optimal"
        return "time_limit" if search.out_of_time else "iteration_limit"


def _branch(sizes: Sizes, size: int, point: np.ndarray, loose: np.ndarray) -> None:
    """Decide a size by a tree over its ``loose`` units, the others at their values in ``point``."""
    search = sizes.search
    settled = point > 0.5
    if len(loose) == 0:
        sizes.offer(settled)
        sizes.bounds[size] = math.inf
        return
    oracle = sizes.oracle.restrict(
        point, loose, _probes(point, loose, search.seed), GIVEN_AWAY * sizes.slack(size)
    )

    def offer(removed: np.ndarray) -> float:
        mask = settled.copy()
        mask[loose] = removed
        return sizes.offer(mask)

    tree = ConvexTree(oracle, point[loose], round(float(point[loose].sum())), sizes.cutoff, offer)

    def goes_on() -> bool:
        if tree.bound > sizes.bounds[size]:
            sizes.bounds[size] = tree.bound
            if sizes.cost is None:
                search.raise_bound(min(float(sizes.lows().min()), search.objective))
        return not search.out_of_time and (sizes.cost is None or search.objective > sizes.cost[size])

    if tree.run(goes_on):
        sizes.bounds[size] = math.inf if sizes.cost is not None else max(sizes.bounds[size], tree.bound)
    elif not search.out_of_time:
        sizes.bounds[size] = math.inf  # a mask of this size was found, none of it can be cheaper


def _probes(point: np.ndarray, loose: np.ndarray, seed: int) -> np.ndarray:
    """Random masks near a relaxation: float64, shape (PROBES, m)."""
    rng = np.random.default_rng(seed)
    take = round(float(point[loose].sum()))
    probes = np.repeat(point[None], PROBES, axis=0)
    for probe in probes:
        near = point[loose] + 0.2 * rng.normal(size=len(loose))
        probe[loose] = 0.0
        probe[loose[np.argsort(-near, kind="stable")[:take]]] = 1.0
    return probes
