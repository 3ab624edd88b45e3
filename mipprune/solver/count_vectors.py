"""Bounds for budgets over several groups at once: a convex relaxation per vector of counts, chosen best first.

Under budgets, ``min_keep`` and ``multiples`` the feasible set is a union over the vectors of counts that meet them, and
once the counts are given only cardinalities are left: r_g of group g's undecided units go.  That is exact for costs of
any shape (products of counts, latency tables), where a linear program sees a convex hull of them.

Our derivation of the bound: a tangent of the drop at ``z`` lies below it, and its least value over the masks with
counts r is ``value - gradient @ z`` plus, per group, the sum of the r_g smallest entries of the gradient.  So one
gradient bounds *every* vector of counts, from sorted prefix sums; the least bound of all vectors bounds the problem.
Relaxing the vector with the least bound, again and again, ends at the least relaxation of any vector of counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .cardinality_convex import descend_convex
from .cardinality_qp import project_capped_simplex
from .masks import costs_of
from .oracles import FunctionOracle
from .problem import Problem
from .search import Search

__all__ = ["bound_by_counts", "removal_counts"]

#: Most vectors of counts that are listed.
MOST_VECTORS = 1_000_000
#: Most of them that are relaxed.
MOST_RELAXED = 200
#: A relaxation is done when it is known to this share of its value.
TOLERANCE = 1e-4


def removal_counts(problem: Problem) -> np.ndarray | None:
    """Vectors of how many undecided units of each group go, those that budgets and requirements on counts allow.

    Returns:
        int64, shape (V, G), or ``None`` if more than :data:`MOST_VECTORS` would have to be looked at.
    """
    allowed = [problem.allowed_counts(group) for group in range(len(problem.costs.groups))]
    if np.prod([float(len(counts)) for counts in allowed]) > MOST_VECTORS:
        return None
    kept = np.stack(np.meshgrid(*allowed, indexing="ij"), axis=-1).reshape(-1, len(allowed))
    fits = np.ones(len(kept), dtype=bool)
    for resource, limit in problem.budgets.items():
        fits &= costs_of(problem.costs[resource], kept) <= limit
    return np.asarray(problem.most - kept[fits])


def bound_by_counts(search: Search, goes_on: Callable[[], bool]) -> np.ndarray | None:
    """Raise the bound on the least drop as far as relaxations of the vectors of counts can, and offer rounded masks.

    Every step costs one gradient of the drop, a sort, and O(V G) for the V vectors.

    Args:
        search: of a problem that minimises the drop.
        goes_on: asked before every gradient.

    Returns:
        The best feasible mask rounded from a relaxation, bool (n,), or ``None`` (none, or too many vectors).
    """
    counts = removal_counts(search.problem)
    if counts is None or len(counts) == 0:
        return None
    work = _Vectors(search, counts)
    if len(work.free) == 0:
        return None
    best, best_drop = None, np.inf
    relaxed: set[int] = set()
    while goes_on() and not search.closed:
        vector = int(work.bounds.argmin())
        if vector in relaxed or len(relaxed) == MOST_RELAXED:
            break
        relaxed.add(vector)
        kept = work.relax(vector, goes_on)
        evaluation = search.offer(kept)
        if evaluation.feasible and evaluation.objective < best_drop:
            best, best_drop = kept, evaluation.objective
        search.raise_bound(min(float(work.bounds.min()), search.objective))
    return best


class _Vectors:
    """What is known about every vector of counts.

    Attributes:
        counts: int64, shape (V, G), removed units.
        bounds: float64, shape (V,), lower bounds on the drop.
    """

    def __init__(self, search: Search, counts: np.ndarray) -> None:
        problem = search.problem
        self.counts = counts
        self.bounds = np.full(len(counts), -np.inf)
        self.free = np.flatnonzero(~(problem.keep | problem.remove))
        self.base = problem.remove.astype(np.float64)
        self.oracle = FunctionOracle(problem.surrogate, self.base, self.free)  # no matrix of all pairs of units
        group = problem.costs.group_of_unit[self.free]
        self.members = [np.flatnonzero(group == g) for g in range(counts.shape[1])]
        self.last = np.full(len(self.free), 0.5)

    def tangent(self, value: float, gradient: np.ndarray, z: np.ndarray) -> None:
        """Raise all bounds by one tangent."""
        bounds = np.full(len(self.counts), value - float(gradient @ z))
        for group, units in enumerate(self.members):
            least = np.concatenate([[0.0], np.cumsum(np.sort(gradient[units]))])
            bounds += least[self.counts[:, group]]
        np.maximum(self.bounds, bounds, out=self.bounds)

    def relax(self, vector: int, goes_on: Callable[[], bool]) -> np.ndarray:
        """Relax one vector from the last point; returns the mask that keeps what its point removes least of."""
        totals = self.counts[vector]

        def project(y: np.ndarray) -> np.ndarray:
            z = np.empty(len(y))
            for units, total in zip(self.members, totals, strict=True):
                z[units] = project_capped_simplex(y[units], total)
            return z

        def bound(value: float, gradient: np.ndarray, z: np.ndarray) -> float:
            self.tangent(value, gradient, z)
            return float(self.bounds[vector])

        start = project(self.last)
        scale = abs(self.oracle.value_and_gradient(start)[0])
        self.last = descend_convex(
            self.oracle.value_and_gradient, start, project, bound, tolerance=TOLERANCE * scale, goes_on=goes_on
        )
        kept = self.base < 0.5
        for units, total in zip(self.members, totals, strict=True):
            kept[self.free[units[np.argsort(-self.last[units], kind="stable")[:total]]]] = False
        return kept
