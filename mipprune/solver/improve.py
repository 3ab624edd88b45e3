"""Incumbents: round a relaxation to a mask, improve masks by single moves, kick them out of local optima."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from ..errors import InfeasibleError
from .masks import costs_of, flipped
from .neighbours import Neighbours, is_less
from .problem import Problem
from .search import Search

__all__ = ["curvature_at", "improve", "improve_by_kicks", "round_by"]

#: Moves evaluated exactly per step: those of a quick look, and those of a thorough one before giving up.
SHORTLIST, LONGLIST = 8, 48
#: Kicks without success before giving up, per free unit, and at least.
PATIENCE, LEAST_PATIENCE = 3, 50
#: How far below the incumbent's cost to aim, as fractions of it: the next when one is out of reach.
AIMS = (0.02, 0.004, 0.0)


def round_by(problem: Problem, score: np.ndarray) -> np.ndarray:
    """A mask that removes units in falling order of ``score``: bool, shape (n,).

    Removes as few as the budgets ask for when the drop is minimised, else as many as ``max_drop`` lets (found by
    bisection, so 10 to 20 evaluations).  Pins and ``min_keep`` hold; other requirements may be broken.
    """
    group_of_unit = problem.costs.group_of_unit
    left = problem.most - problem.fewest
    order = []
    for unit in np.argsort(-score, kind="stable"):
        group = group_of_unit[unit]
        if not problem.keep[unit] and not problem.remove[unit] and left[group] > 0:
            left[group] -= 1
            order.append(int(unit))

    def removing(count: int) -> np.ndarray:
        mask = ~problem.remove
        mask[order[:count]] = False
        return mask

    steps = np.zeros((len(order) + 1, len(left)), dtype=np.int64)
    np.add.at(steps, (np.arange(1, len(order) + 1), group_of_unit[order]), 1)
    counts = problem.most - steps.cumsum(0)
    fits = np.ones(len(counts), dtype=bool)
    for resource, limit in problem.budgets.items():
        fits &= costs_of(problem.costs[resource], counts) <= limit
    fewest_gone = int(fits.argmax()) if fits.any() else len(order)
    if problem.objective == "drop" or problem.max_drop is None:
        return removing(fewest_gone if problem.objective == "drop" else len(order))
    low, high = fewest_gone, len(order) + 1
    while high - low > 1:
        middle = (low + high) // 2
        inside = problem.surrogate.drop(~removing(middle)) <= problem.drop_limit
        low, high = (middle, high) if inside else (low, middle)
    return removing(low)


def improve(search: Search, kept: np.ndarray, curvature: np.ndarray | None = None) -> np.ndarray:
    """Walk from ``kept`` to a local optimum of removing, adding or exchanging one unit, and offer it.

    A step must lower (violation, objective, drop), the first that differs, exactly; only the moves that slope and
    curvature rank first are evaluated.
    """
    problem = search.problem
    neighbours = Neighbours(problem)
    kept = np.array(kept, dtype=bool)
    thorough = False
    while not search.out_of_time:
        drop, slope = problem.surrogate.drop_and_gradient((~kept).astype(float))
        merit = neighbours.merits(kept[None], np.array([drop]))[0]
        moves = neighbours.ranked(kept, drop, slope, curvature, LONGLIST if thorough else SHORTLIST)
        masks = flipped(kept, [move.units for move in moves])
        merits = neighbours.merits(masks, problem.surrogate.drops(~masks)) if len(masks) else []
        best = min(range(len(merits)), key=lambda i: merits[i], default=None)
        if best is not None and is_less(merits[best], merit):
            kept, thorough = masks[best], False
        elif thorough:
            break
        else:
            thorough = True
    search.offer(kept)
    return kept


def improve_by_kicks(search: Search, seconds: float) -> None:
    """Iterated local search from the incumbent, for at most ``seconds``.

    The drop is minimised under the budgets; if a cost is minimised, under a budget somewhat below the incumbent's, and
    again as soon as a mask within ``max_drop`` turns up.  Descents use a quadratic model of the drop (exact for
    quadratic surrogates), their ends are evaluated exactly.
    """
    stop = min(search.deadline, time.perf_counter() + seconds)
    rng = np.random.default_rng(search.seed)
    aims = list(AIMS) if search.problem.objective != "drop" else [0.0]
    curvature: np.ndarray | None = None
    failed = -math.inf
    while search.kept is not None and aims and not search.closed and time.perf_counter() < stop:
        target = search.problem if search.problem.objective == "drop" else _as_least_drop(search, aims[0])
        if target is None or target.budgets.get(search.problem.objective) == failed:
            aims.pop(0)
            continue
        if curvature is None:
            curvature = curvature_at(search.problem, search.kept, 0.3 * (stop - time.perf_counter()))
        before = search.objective
        _kick(search, target, curvature, rng, stop)
        if search.objective < before and search.problem.objective != "drop":
            improve(search, search.kept, curvature)
        else:
            failed = target.budgets.get(search.problem.objective, failed)
            aims.pop(0)


def _kick(search: Search, target: Problem, curvature: np.ndarray, rng: np.random.Generator, stop: float) -> None:
    """Kicks and descents on ``target``, which minimises the drop, until a better incumbent or the end of patience."""
    neighbours, surrogate = Neighbours(target), target.surrogate
    assert search.kept is not None
    before = search.objective
    current, failures, kicked = search.kept.copy(), 0, search.kept.copy()
    merit, base_drop, base_slope = None, 0.0, np.zeros(0)
    patience = max(LEAST_PATIENCE, PATIENCE * int(neighbours.free.sum()))
    while failures < patience and time.perf_counter() < stop:
        if merit is None:
            base_drop, base_slope = surrogate.drop_and_gradient((~current).astype(float))
            merit = neighbours.merits(current[None], np.array([base_drop]))[0]
        step = kicked.astype(float) - current  # kept units of the kicked mask that the current one lacks count +1
        drop = base_drop - step @ base_slope + 0.5 * step @ curvature @ step
        found = _descend(neighbours, kicked, float(drop), base_slope - curvature @ step, curvature)
        found_merit = neighbours.merits(found[None], surrogate.drops(~found[None]))[0]
        if is_less(found_merit, merit):
            current, merit, failures = found, None, 0
            search.offer(found)
            if search.objective < before and search.problem.objective != "drop":
                return
        else:
            failures += 1
        kicked = _kicked(current, neighbours, base_slope, rng)


def _descend(
    neighbours: Neighbours, kept: np.ndarray, drop: float, slope: np.ndarray, curvature: np.ndarray
) -> np.ndarray:
    """Best moves on the quadratic model until none helps."""
    kept, slope = kept.copy(), slope.copy()
    violation = np.inf
    for _ in range(len(kept)):
        moves = neighbours.ranked(kept, drop, slope, curvature, 1)
        if not moves or not is_less(moves[0].expected, (violation, drop, drop)):
            break
        violation, drop, _ = moves[0].expected
        for unit in moves[0].units:
            slope = slope + curvature[unit] * (1.0 if kept[unit] else -1.0)
            kept[unit] ^= True
    return kept


def _kicked(kept: np.ndarray, neighbours: Neighbours, slope: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two to five random exchanges, within a group or across groups, of units that are near to changing sides."""
    kept = kept.copy()
    groups = np.unique(neighbours.group_of_unit[neighbours.free])
    for _ in range(int(rng.integers(2, 6))):
        out = back = rng.choice(groups)
        if rng.random() < 0.5:
            back = rng.choice(groups)
        for group, side, order in ((out, kept, slope), (back, ~kept, -slope)):
            units = np.flatnonzero(side & neighbours.free & (neighbours.group_of_unit == group))
            if len(units):
                near = units[np.argsort(order[units], kind="stable")[:16]]
                kept[rng.choice(near)] ^= True
    return kept


def _as_least_drop(search: Search, aim: float) -> Problem | None:
    """The least drop at a cost that is lower by the fraction ``aim``, or by one; ``None`` if there is no such mask."""
    problem, cost = search.problem, search.objective
    limit = int(max(min(cost - 1, cost - aim * abs(cost)), min(search.bound, cost - 1)))
    budgets = {**problem.budgets, problem.objective: min(limit, problem.budgets.get(problem.objective, limit))}
    try:
        return dataclasses.replace(problem, objective="drop", budgets=budgets, max_drop=None)
    except InfeasibleError:
        return None


def curvature_at(problem: Problem, kept: np.ndarray, seconds: float) -> np.ndarray:
    """Second differences of the drop around a mask, one gradient per free unit: symmetric, shape (n, n).

    Units that the time doesn't suffice for have zero rows.  Exact for quadratic surrogates.
    """
    stop = time.perf_counter() + seconds
    z = (~kept).astype(float)
    _, slope = problem.surrogate.drop_and_gradient(z)
    columns = np.zeros((len(z), len(z)))
    known = np.zeros(len(z), dtype=bool)
    # the units nearest to changing sides first
    for unit in np.argsort(np.where(kept, slope, -slope), kind="stable"):
        if problem.keep[unit] or problem.remove[unit]:
            continue
        if time.perf_counter() > stop:
            break
        moved = z.copy()
        moved[unit] = 1.0 - moved[unit]
        columns[:, unit] = (problem.surrogate.drop_and_gradient(moved)[1] - slope) * (moved[unit] - z[unit])
        known[unit] = True
    both = known[:, None] & known[None, :]
    return np.where(both, 0.5 * (columns + columns.T), 0.0)
