"""Incumbents of problems in which only the number of kept units costs: masks of the sizes that are still open."""

from __future__ import annotations

import numpy as np

from .local_search import LocalSearch
from .sizes import Sizes

__all__ = ["anneal_sizes", "search_sizes"]

#: Share of the time left that goes into incumbents before branching, and seconds where there is no limit.
SHARE, SECONDS = 0.25, 10.0
#: Annealings without success before giving up on more than those.
PATIENCE = 4


def search_sizes(sizes: Sizes, size: int) -> None:
    """Masks of the size, or if a cost is minimised and none is found, of the next cheapest sizes."""
    search = sizes.search
    local = LocalSearch(sizes.oracle, sizes.offer, seed=search.seed)
    stop = search.seconds + (SECONDS if search.remaining is None else SHARE * search.remaining)

    def goes_on() -> bool:
        return search.seconds < stop and not search.out_of_time

    point = sizes.points[size]
    if sizes.cost is None:
        local.search(point, size, -np.inf, goes_on)
        return
    by_cost = [int(r) for r in np.argsort(sizes.cost, kind="stable") if sizes.bounds[r] <= sizes.limit]
    low, high = 0, 0  # masks of by_cost[high:] are easy to find, those of by_cost[:low] weren't found
    while high < len(by_cost) and not search.out_of_time:
        if sizes.cost[by_cost[high]] >= search.objective:
            break
        local.descend(point, by_cost[high], lambda: not search.out_of_time)
        if search.objective <= sizes.cost[by_cost[high]]:
            break
        low, high = high + 1, 2 * high + 1
    while low < high and goes_on():
        middle = (low + high) // 2
        local.descend(point, by_cost[min(middle, len(by_cost) - 1)], goes_on)
        low, high = (low, middle) if search.objective <= sizes.cost[by_cost[middle]] else (middle + 1, high)
    for r in reversed(by_cost):
        if not goes_on():
            break
        if sizes.cost[r] < search.objective:
            local.search(point, r, sizes.limit, goes_on)
            if search.objective > sizes.cost[r]:
                break


def anneal_sizes(sizes: Sizes, size: int, seed: int) -> bool:
    """Too many units for a tree: better incumbents by annealing, until :data:`PATIENCE` rounds gain nothing.

    If a cost is minimised, a size on the way from the incumbent's to the cheapest possible one is tried, nearer to the
    incumbent's after each failure; rounds that failed count once it is the next one.  Says whether anything was gained.
    """
    search = sizes.search
    local = LocalSearch(sizes.oracle, sizes.offer, seed=seed)
    before, failures, reach = search.objective, 0, 0.5
    while failures < PATIENCE and not search.out_of_time:
        target, step = size, 0
        if sizes.cost is not None:
            cheaper = np.flatnonzero((sizes.bounds <= sizes.limit) & (sizes.cost < search.objective))
            if len(cheaper) == 0:
                break
            step = int(reach * (len(cheaper) - 1))
            target = int(cheaper[np.argsort(-sizes.cost[cheaper], kind="stable")[step]])
        last = search.objective
        local.anneal(sizes.point_near(target), target, lambda: not search.out_of_time)
        if search.objective < last:
            failures = 0
        else:
            failures, reach = failures + (step == 0), 0.5 * reach if step else reach
    return search.objective < before
