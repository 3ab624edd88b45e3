"""Masks one move away from a mask, ranked by what the drop's slope and curvature say about them."""

from __future__ import annotations

import dataclasses

import numpy as np

from .masks import costs_of, counts_of
from .problem import Problem

__all__ = ["Merit", "Move", "Neighbours", "is_less"]

#: Per group, as many units on either side are worth an exchange.
WORTH = 24

#: Violation of the requirements, objective, drop: masks are compared by the first that differs.
Merit = tuple[float, float, float]


def is_less(a: Merit, b: Merit) -> bool:
    """``a`` comes before ``b`` by more than rounding."""
    for x, y in zip(a, b, strict=True):
        tolerance = 1e-10 * max(1e-6, abs(y))
        if x < y - tolerance:
            return True
        if x > y + tolerance:
            return False
    return False


@dataclasses.dataclass(frozen=True)
class Move:
    """Units that change sides, and the merit that is expected of it."""

    units: np.ndarray
    expected: Merit


class Neighbours:
    """Moves of a problem: one unit goes, one comes back, or both at once.  Pins and ``min_keep`` hold."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.group_of_unit = problem.costs.group_of_unit
        self.free = ~(problem.keep | problem.remove)
        self.forbidden = {mask.tobytes() for mask in problem.forbidden}
        self.counted = list(dict.fromkeys([*problem.budgets, *{problem.objective} - {"drop"}]))

    def merits(self, masks: np.ndarray, drops: np.ndarray) -> list[Merit]:
        """Exact merits of masks (M, n) with their exact drops (M,)."""
        counts = counts_of(self.problem, masks)
        violation, objective = self._judge(counts, drops)
        violation = violation + [mask.tobytes() in self.forbidden for mask in masks]
        return list(zip(violation.tolist(), objective.tolist(), drops.tolist(), strict=True))

    def ranked(
        self, kept: np.ndarray, drop: float, slope: np.ndarray, curvature: np.ndarray | None, shortlist: int
    ) -> list[Move]:
        """The moves that look best, best first, at most ``shortlist`` of single units and as many of pairs.

        Args:
            kept: bool, shape (n,), a mask.
            drop, slope: the drop there and its gradient in the removal vector, shape (n,).
            curvature: a symmetric (n, n) model of its second derivative, or ``None``: then the slopes alone rank.
        """
        groups, counts = self.group_of_unit, self.problem.costs.counts(kept)
        bend = np.zeros(len(kept)) if curvature is None else 0.5 * np.diagonal(curvature)
        change = np.where(kept, slope, -slope) + bend  # of the drop, when the unit changes sides
        may_go = np.flatnonzero(kept & self.free)
        may_come = np.flatnonzero(~kept & self.free)
        unit = np.eye(len(counts), dtype=np.int64)

        goes = may_go[(counts > self.problem.min_keep)[groups[may_go]]]
        tables = np.concatenate([counts - unit, counts + unit])
        single = np.concatenate([goes, may_come])
        kind = np.concatenate([groups[goes], len(counts) + groups[may_come]])
        moves = self._best(single[:, None], tables, kind, drop + change[single], shortlist)

        out, back = self._worthwhile(may_go, change), self._worthwhile(may_come, change)
        if len(out) and len(back):
            pairs = np.stack([np.repeat(out, len(back)), np.tile(back, len(out))], axis=1)
            drops = drop + change[pairs].sum(1)
            if curvature is not None:
                drops -= curvature[pairs[:, 0], pairs[:, 1]]
            tables = (counts - unit[:, None, :] + unit[None, :, :]).reshape(-1, len(counts))
            kind = groups[pairs[:, 0]] * len(counts) + groups[pairs[:, 1]]
            moves += self._best(pairs, tables, kind, drops, shortlist)
        return sorted(moves, key=lambda move: move.expected)

    def _best(
        self, units: np.ndarray, tables: np.ndarray, kind: np.ndarray, drops: np.ndarray, shortlist: int
    ) -> list[Move]:
        """The best moves: row m of ``units`` leads to the counts ``tables[kind[m]]`` and the drop ``drops[m]``."""
        violation, objective = self._judge(tables[kind], drops)
        order = np.lexsort((drops, objective, violation))[:shortlist]
        return [Move(units[m], (float(violation[m]), float(objective[m]), float(drops[m]))) for m in order]

    def _judge(self, counts: np.ndarray, drops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Violation and objective of counts (M, G) with drops (M,)."""
        problem = self.problem
        costs = {name: costs_of(problem.costs[name], counts) for name in self.counted}
        violation = problem.count_violations(counts).astype(float)
        for name, limit in problem.budgets.items():
            violation += np.maximum(costs[name] - limit, 0) / max(1, abs(limit))
        if problem.max_drop is not None:
            violation += np.maximum(drops - problem.drop_limit, 0) / max(1e-9, abs(problem.max_drop))
        return violation, drops if problem.objective == "drop" else costs[problem.objective].astype(float)

    def _worthwhile(self, units: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Per group, the units whose change of sides costs least."""
        groups = self.group_of_unit[units]
        order = np.lexsort((change[units], groups))
        ranked = groups[order]
        rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
        return units[order[rank < WORTH]]
