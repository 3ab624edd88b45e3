"""Selection over all layers together: one quadratic in all gates, under exact costs."""

from __future__ import annotations

import numpy as np

from ..costs import CostModel
from ..solver import SizeCurve, recombine

__all__ = ["JointProblem"]


class JointProblem:
    """min g'z + 1/2 z'Hz over masks, H across layers, under limits on exact costs; z is ``start`` minus the mask.

    So z is 1 for a unit that leaves and -1 for one that comes back, where that is allowed.  Solved from above: greedily
    the unit of least loss per cost saved, then add-back, then exchanges of one kept for one removed unit.  A heuristic
    with a bound: q is convex, so it lies above its tangent at any point, and the least value of a tangent under the
    exact limits is a separable problem, which :func:`~mipprune.solver.recombine` bounds.

    Args:
        gradient: float64 (n,).
        curvature: float64 (n, n), positive semidefinite.
        kept: bool (n,): the mask ``start`` that the loss was expanded at.
        pinned: bool (n,): units that stay.
        limits: resource -> largest cost.
        min_keep: fewest units of every group, one number or int64 (G,).
        may: bool (n,): units that a mask may have; by default those of ``kept``, so that nothing comes back.
    """

    def __init__(
        self, gradient: np.ndarray, curvature: np.ndarray, costs: CostModel, limits: dict[str, int], kept: np.ndarray,
        pinned: np.ndarray, min_keep: int | np.ndarray, may: np.ndarray | None = None,
    ) -> None:
        self.g, self.h, self.costs, self.limits = gradient, curvature, costs, limits
        self.start, self.pinned = kept, pinned
        self.may = kept if may is None else may
        self.group = costs.group_of_unit
        self.fewest = np.maximum(np.minimum(min_keep, costs.sizes), costs.counts(pinned & kept))
        self.dense = {r: costs.cost(r, costs.sizes) for r in limits}

    def value(self, kept: np.ndarray) -> float:
        """The quadratic at any mask."""
        z = self._change(kept)
        return float(self.g @ z + 0.5 * z @ self.h @ z)

    def solve(self) -> np.ndarray:
        """The best mask found, bool (n,): units leave until the limits hold, then others come back or change places."""
        kept = self.start.copy()
        slope = self.g + 0.5 * self.h.diagonal()  # what removing one more unit adds
        counts = self.costs.counts(kept)
        while not self._fits(counts):
            free = kept & ~self.pinned & (counts > self.fewest)[self.group]
            if not free.any():
                break
            score = np.where(free, slope / self._saved(counts)[self.group], np.inf)
            # a unit that is better gone is worth more, not less, where it saves much
            score = np.where(free & (slope < 0), slope * self._saved(counts)[self.group], score)
            unit = int(np.argmin(score))
            kept[unit] = False
            counts[self.group[unit]] -= 1
            slope = slope + self.h[unit]
        for _ in range(10):
            kept = self._added(kept)
            better = self._exchanged(kept)
            if (better == kept).all():
                break
            kept = better
        return kept

    def bound(self, kept: np.ndarray, rounds: int = 3) -> float:
        """No mask under the limits has a smaller value: the best of ``rounds`` tangents (conditional gradients)."""
        point = self._change(kept)
        best = -np.inf
        for k in range(rounds):
            slope = self.g + self.h @ point
            constant = -0.5 * float(point @ self.h @ point)
            found = recombine([self._curve(g, slope) for g in range(len(self.costs.sizes))], self.costs,
                              budgets=dict(self.limits), quick=True)
            best = max(best, found.bound + constant)
            step = 2.0 / (k + 3)
            point = (1 - step) * point + step * self._change(found.kept)
        return min(best, self.value(kept))

    def _curve(self, group: int, slope: np.ndarray) -> SizeCurve:
        """The exact size curve of a linear loss: the smallest slopes go first, from all units that there may be."""
        units = np.flatnonzero(self.group == group)
        free = np.flatnonzero(self.may[units] & ~self.pinned[units])
        order = free[np.argsort(slope[units][free], kind="stable")]
        most = int(self.may[units].sum())
        fewest = int(self.fewest[group])
        back = -float(slope[units][self.may[units] & ~self.start[units]].sum())
        drops = back + np.concatenate([[0.0], np.cumsum(slope[units][order])])[: most - fewest + 1]
        masks = np.tile(self.may[units], (len(drops), 1))
        for row in range(1, len(drops)):
            masks[row:, order[row - 1]] = False
        return SizeCurve(
            counts=np.arange(most, fewest - 1, -1), masks=masks, upper=drops, fewest=fewest, all_lower=drops[::-1],
            termination="optimal", seconds=0.0,
        )

    def _change(self, kept: np.ndarray) -> np.ndarray:
        """What a mask changes: 1 where a unit leaves, -1 where one comes back."""
        return self.start.astype(float) - kept

    def _fits(self, counts: np.ndarray) -> bool:
        return all(self.costs.cost(r, counts) <= limit for r, limit in self.limits.items())

    def _saved(self, counts: np.ndarray) -> np.ndarray:
        """What one unit less of each group saves, as a share of the dense costs that are still too high."""
        saved = np.zeros(len(counts))
        for resource, limit in self.limits.items():
            if self.costs.cost(resource, counts) > limit:
                saved += self.costs[resource].marginal(counts) / self.dense[resource]
        return np.maximum(saved, 1e-12)

    def _added(self, kept: np.ndarray) -> np.ndarray:
        """Removed units put back while they fit, the most valuable first."""
        kept = kept.copy()
        while True:
            gain = self.g + self.h @ self._change(kept) - 0.5 * self.h.diagonal()  # what having the unit back saves
            counts = self.costs.counts(kept)
            fits = self._all_fit(counts + np.eye(len(counts), dtype=np.int64))
            back = self.may & ~kept & fits[self.group] & (gain > 0)
            if not back.any():
                return kept
            kept[int(np.argmax(np.where(back, gain, -np.inf)))] = True

    def _exchanged(self, kept: np.ndarray) -> np.ndarray:
        """One kept unit for one removed unit, of any groups, while the value falls and the limits allow it."""
        kept = kept.copy()
        for _ in range(4 * len(kept)):
            slope = self.g + self.h @ self._change(kept)
            out, back = np.flatnonzero(kept & ~self.pinned), np.flatnonzero(self.may & ~kept)
            if len(out) == 0 or len(back) == 0:
                return kept
            change = (
                (slope + 0.5 * self.h.diagonal())[out][:, None] - (slope - 0.5 * self.h.diagonal())[back][None]
                - self.h[np.ix_(out, back)]
            )
            allowed = self._allowed(self.costs.counts(kept))[self.group[out]][:, self.group[back]]
            change = np.where(allowed, change, np.inf)
            i, j = np.unravel_index(int(np.argmin(change)), change.shape)
            if not change[i, j] < -1e-12:
                return kept
            kept[out[i]], kept[back[j]] = False, True
        return kept

    def _allowed(self, counts: np.ndarray) -> np.ndarray:
        """Bool (G, G): whether one unit less of the first and one more of the second group stays within all limits."""
        n = len(counts)
        step = np.eye(n, dtype=np.int64)
        fits = self._all_fit((counts - step[:, None] + step[None]).reshape(n * n, n)).reshape(n, n)
        return (fits & (counts > self.fewest)[:, None]) | np.eye(n, dtype=bool)

    def _all_fit(self, counts: np.ndarray) -> np.ndarray:
        """Whether each of the count vectors (M, G) exists and stays within all limits: bool (M,)."""
        fits: np.ndarray = np.all((counts >= 0) & (counts <= self.costs.sizes), axis=1)
        for resource, limit in self.limits.items():
            fits[fits] = self.costs[resource].of_counts(counts[fits]) <= limit
        return fits
