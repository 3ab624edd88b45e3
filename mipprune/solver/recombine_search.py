"""Sizes for all groups without a solver: greedy by price, then the best change of any two groups until none helps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .recombine_mip import Choices, Requirements, pair_tables, separable_part

__all__ = ["SizeExchange"]


class SizeExchange:
    """Local search over the chosen sizes; one size per group, as indices into ``choices``.

    Choices are compared by three numbers, in this order: by how much they break the limits (as fractions of them),
    the objective, and a second choice that breaks ties: the cost when the drop is minimised, the drop otherwise.
    """

    def __init__(self, choices: Choices, requirements: Requirements) -> None:
        self.choices, self.requirements = choices, requirements
        resources = requirements.used or requirements.costs.resources  # no budget: ties still go to the cheaper
        full = np.array([count[-1] for count in choices.counts])
        self.names = list(resources)
        self.own = [separable_part(cost, choices) for cost in resources.values()]
        self.tables = [pair_tables(cost, choices) for cost in resources.values()]
        self.constants = [float(cost.constant) for cost in resources.values()]
        self.scale = [max(float(cost(full)), 1.0) for cost in resources.values()]
        self.drop_scale = max((float(np.abs(d).max()) for d in choices.drops), default=0.0) or 1.0

    def merit(self, chosen: np.ndarray) -> tuple[float, float, float]:
        """Violation, objective, tie-breaker: smaller is better, first by the first."""
        arrays = self._merits(self.choices.drop_at(chosen), self._costs(chosen))
        return tuple(float(a) for a in arrays)  # type: ignore[return-value]

    def greedy(self) -> np.ndarray:
        """From the largest sizes down, the step with the least drop per cost saved, until the budgets are met."""
        counts, drops = self.choices.counts, self.choices.drops
        chosen = np.array([len(count) - 1 for count in counts])
        while (chosen > 0).any():
            costs = self._costs(chosen)
            over = [r for r, name in enumerate(self.names) if costs[r] > self.requirements.budgets.get(name, np.inf)]
            if not over:
                break
            best, best_price = -1, np.inf
            for g in np.flatnonzero(chosen):
                trial = chosen.copy()
                trial[g] -= 1
                after = self._costs(trial)
                saved = sum((costs[r] - after[r]) / self.scale[r] for r in over)
                price = (drops[g][trial[g]] - drops[g][chosen[g]]) / max(saved, 1e-300)
                if saved > 0 and price < best_price:
                    best, best_price = int(g), price
            if best < 0:
                break
            chosen[best] -= 1
        return chosen

    def descend(
        self, chosen: np.ndarray, left: list[np.ndarray] | None = None, goes_on: Callable[[], bool] = lambda: True
    ) -> np.ndarray:
        """Change two groups' sizes at a time to the best of all their pairs, until no pair of groups improves.

        O(G^2 K^2) per round for G groups of K sizes.

        Args:
            left: indices of the sizes to try per group; by default all.
        """
        left = left if left is not None else [np.arange(len(count)) for count in self.choices.counts]
        chosen = chosen.copy()
        groups = len(chosen)
        pairs = [(g, h) for g in range(groups) for h in range(g + 1, groups)] or [(0, 0)]
        improved = True
        while improved:
            improved = False
            for g, h in pairs:
                if not goes_on():
                    return chosen
                better = self._best_pair(chosen, g, h, left)
                if better is not None:
                    chosen[g], chosen[h] = better
                    improved = True
        return chosen

    def _costs(self, chosen: np.ndarray) -> list[float]:
        return [
            constant
            + sum(float(part[i]) for part, i in zip(own, chosen))
            + sum(float(table[chosen[g], chosen[h]]) for (g, h), table in tables.items())
            for constant, own, tables in zip(self.constants, self.own, self.tables)
        ]

    def _merits(
        self, drop: np.ndarray | float, costs: Sequence[np.ndarray | float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        needs = self.requirements
        drop = np.asarray(drop, dtype=np.float64)
        violation, total = np.zeros(drop.shape), np.zeros(drop.shape)
        for name, cost, scale in zip(self.names, costs, self.scale):
            if name in needs.budgets:
                violation = violation + np.maximum(cost - needs.budgets[name], 0.0) / scale
            total = total + cost / scale
        violation = violation + np.maximum(drop - needs.drop_limit, 0.0) / self.drop_scale
        if needs.objective == "drop":
            return violation, drop, total
        return violation, np.asarray(costs[self.names.index(needs.objective)], dtype=np.float64), drop

    def _best_pair(
        self, chosen: np.ndarray, g: int, h: int, left: list[np.ndarray]
    ) -> tuple[int, int] | None:
        """Better sizes of groups g and h, the others unchanged; ``None`` if there are none.  ``g == h``: of one."""
        rows = np.append(left[g], chosen[g])  # where it stands comes last, so that a tie moves nothing
        columns = np.append(left[h], chosen[h]) if h != g else chosen[[h]]
        drops = self.choices.drops
        moved = {g: rows[:, None]}
        drop = self.choices.drop_at(chosen) + (drops[g][rows] - drops[g][chosen[g]])[:, None]
        if h != g:
            moved[h] = columns[None, :]
            drop = drop + (drops[h][columns] - drops[h][chosen[h]])[None, :]
        costs = []
        for base, own, tables in zip(self._costs(chosen), self.own, self.tables):
            cost = base + (own[g][rows] - own[g][chosen[g]])[:, None]
            if h != g:
                cost = cost + (own[h][columns] - own[h][chosen[h]])[None, :]
            for (p, q), table in tables.items():
                if p in moved or q in moved:
                    there = table[moved.get(p, chosen[p]), moved.get(q, chosen[q])]
                    cost = cost + (there - table[chosen[p], chosen[q]])
            costs.append(cost)
        merits = self._merits(drop, costs)
        slacks = (0.0, 1e-12 * self.drop_scale, 1e-12)
        pool = np.ones(drop.shape, dtype=bool)
        for level, slack in zip(merits, slacks):
            pool &= level <= level[pool].min() + slack
        found = np.unravel_index(int(pool.argmax()), pool.shape)
        for level, slack in zip(merits, slacks):
            change = level[found] - level[-1, -1]
            if change < -slack:
                return int(rows[found[0]]), int(columns[found[1]] if h != g else rows[found[0]])
            if change > slack:
                break
        return None
