"""Many masks at once: their counts and costs, and which of them meet the requirements on counts and pins."""

from __future__ import annotations

import numpy as np

from ..costs import Cost
from .problem import Problem

__all__ = ["costs_of", "counts_fit", "counts_of", "flipped"]


def counts_of(problem: Problem, masks: np.ndarray) -> np.ndarray:
    """Kept units per group of masks (M, n): int64, shape (M, G)."""
    member = problem.costs.group_of_unit[:, None] == np.arange(len(problem.costs.groups))
    return masks.astype(np.int64) @ member.astype(np.int64)


def costs_of(cost: Cost, counts: np.ndarray) -> np.ndarray:
    """Costs of count vectors (M, G): int64, shape (M,)."""
    return cost.of_counts(counts)


def counts_fit(problem: Problem, masks: np.ndarray) -> np.ndarray:
    """Which masks (M, n) meet ``min_keep``, ``multiples``, the budgets and the forbidden masks: bool, shape (M,)."""
    counts = counts_of(problem, masks)
    fits = problem.count_violations(counts) == 0
    for resource, limit in problem.budgets.items():
        fits &= costs_of(problem.costs[resource], counts) <= limit
    for mask in problem.forbidden:
        fits &= (masks != mask).any(1)
    return fits


def flipped(mask: np.ndarray, moves: list[np.ndarray]) -> np.ndarray:
    """The mask with the units of each move on the other side: bool, shape (len(moves), n)."""
    masks = np.repeat(mask[None], len(moves), axis=0)
    for row, units in zip(masks, moves, strict=True):
        row[units] ^= True
    return masks
