"""Enumeration of all masks: the reference for every other backend, and the quickest one for a handful of units."""

from __future__ import annotations

import numpy as np

from ..errors import SolverError
from .backend import Backend
from .masks import costs_of, counts_fit, counts_of
from .problem import FEASIBILITY_TOLERANCE
from .search import Search

__all__ = ["MAX_FREE", "Brute"]

#: Most undecided units: 2^22 masks.
MAX_FREE = 22
#: Masks per batch.
BATCH = 1 << 13


class Brute(Backend):
    """All ``2^free`` masks, in batches; O(2^free) evaluations of the surrogate at worst."""

    def run(self, search: Search, start: np.ndarray | None) -> str:
        problem = search.problem
        free = np.flatnonzero(~(problem.keep | problem.remove))
        if len(free) > MAX_FREE:
            raise SolverError(
                f"enumeration takes at most {MAX_FREE} undecided units, this problem has {len(free)}: "
                f"pin units or choose another solver"
            )
        if start is not None:
            search.offer(start)
        for first in range(0, 1 << len(free), BATCH):
            if search.out_of_time:
                return "time_limit"
            codes = np.arange(first, min(first + BATCH, 1 << len(free)))
            masks = np.repeat(problem.keep[None], len(codes), axis=0)
            masks[:, free] = (codes[:, None] >> np.arange(len(free)) & 1).astype(bool)
            _offer_best(search, masks[counts_fit(problem, masks)])
        if search.kept is None:
            return "infeasible"
        search.raise_bound(search.objective)
        return "optimal"


def _offer_best(search: Search, masks: np.ndarray) -> None:
    """Offer the best of some masks whose counts fit, if it beats the incumbent."""
    problem = search.problem
    if problem.objective != "drop":
        objective = costs_of(problem.costs[problem.objective], counts_of(problem, masks)).astype(float)
        masks, objective = masks[objective < search.objective], objective[objective < search.objective]
        order = np.argsort(objective, kind="stable")
        masks = masks[order]
    # cheapest first, so that few drops need to be known when a cost is minimised
    for some in np.split(masks, range(512, len(masks), 512)):
        drops = problem.surrogate.drops(~some) if len(some) else np.zeros(0)
        # the margin leaves rounding to the exact evaluation of a single mask
        inside = drops <= problem.drop_limit + FEASIBILITY_TOLERANCE
        order = np.flatnonzero(inside)
        if problem.objective == "drop":
            order = order[np.argsort(drops[order], kind="stable")]
        for index in order:
            if problem.objective == "drop" and drops[index] > search.objective:
                break
            evaluation = search.offer(some[index])
            if evaluation.feasible:
                if problem.objective != "drop":
                    return
                break
