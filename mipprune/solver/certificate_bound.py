"""The bound of one leaf of a certificate, from its multipliers alone (our derivation).

Let mu, nu, rho be the multipliers of ``max_drop``, the budgets and the no-good cuts, o the weight of the objective.
For every feasible mask z (1 = removed) with kept counts k

    o objective >= o objective + mu (drop(z) - limit)
                   + sum_r nu_r (cost_r(k) - budget_r) + sum_f rho_f (1 - distance_f(z)),

because each added term is at most 0.  A convex term is at least any mixture of affine functions below it
(:mod:`.minorants`), so the right side is at least ``constant + c @ z + q(k)``, q the weighted costs.  Its minimum over
all masks of the leaf is found exactly: given the counts, the units with the smallest c go, and the counts are
eliminated one after the other (:mod:`.least_sum`).  With o = 0 a positive minimum says that the leaf holds no feasible
mask.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import CertificateError
from .certificate import Leaf
from .least_sum import Factor, least_sum
from .minorants import minorant_rule
from .problem import Problem

__all__ = ["LeafBounds"]

#: Grain of the shares of tangents, which must add up to 1 exactly.
SHARE_GRAIN = 2.0**-40


class LeafBounds:
    """Derives bounds for one problem and one set of tangent points.

    Args:
        arithmetic: :class:`~mipprune.solver.arithmetic.Ball` or ``Dyadic``.
    """

    def __init__(self, problem: Problem, points: np.ndarray, arithmetic: Any) -> None:
        self.problem, self.points, self.arithmetic = problem, points, arithmetic
        self.rule = minorant_rule(problem.surrogate, arithmetic)
        self.known: dict[tuple[int, int], tuple[Any, Any]] = {}

    def bound(self, leaf: Leaf, keep: np.ndarray, remove: np.ndarray) -> Fraction | float:
        """Lower bound on the objective of the feasible masks that keep and remove these units; ``inf``: there are none.

        Raises:
            CertificateError: multipliers of the wrong sign, shares that don't add up, unknown names or numbers.
        """
        self._check(leaf)
        counts = [self._counts(group, keep, remove) for group in range(len(self.problem.costs.groups))]
        if any(len(allowed) == 0 for allowed in counts):
            return math.inf
        constant, slope = self._affine(leaf)
        weights = self._weights(leaf)
        factors: list[Factor] = []
        for group, allowed in enumerate(counts):
            factors.append(((group,), self._removal(group, allowed, slope, keep, remove)))
        for resource, weight in weights.items():
            cost = self.problem.costs[resource]
            constant = constant + self.arithmetic.whole(np.array(cost.constant)) * weight
            for scope, table in cost.tables(counts):
                factors.append((scope, (self.arithmetic.whole(table) * weight).down()))
        for resource, multiplier in leaf.budgets.items():
            limit = self.arithmetic.whole(np.array(self.problem.budgets[resource]))
            constant = constant - limit * self.arithmetic.of(multiplier)
        least = (constant.down() + least_sum([len(c) for c in counts], factors, self.arithmetic)).scalar()
        if leaf.objective == 0.0:
            return math.inf if least > 0 else -math.inf
        return self._on_lattice(least)

    def _check(self, leaf: Leaf) -> None:
        problem = self.problem
        multipliers = np.array([leaf.drop, *leaf.budgets.values(), *leaf.forbidden, *leaf.share])
        if not np.isfinite(multipliers).all() or (multipliers < 0).any():
            raise CertificateError("a multiplier is negative or not finite")
        if leaf.objective not in (0.0, 1.0):
            raise CertificateError(f"the objective's weight must be 0 or 1, got {leaf.objective}")
        if leaf.drop > 0 and problem.max_drop is None:
            raise CertificateError("a multiplier for max_drop, which the problem doesn't have")
        if not set(leaf.budgets) <= set(problem.budgets) or leaf.forbidden.shape != (len(problem.forbidden),):
            raise CertificateError("multipliers for budgets or no-good cuts that the problem doesn't have")
        terms = problem.surrogate.n_terms
        if _outside(leaf.point, len(self.points)) or _outside(leaf.term, terms):
            raise CertificateError("a share of a tangent point or a term that doesn't exist")
        grains = leaf.share / SHARE_GRAIN
        if (grains != np.round(grains)).any():
            raise CertificateError("shares must be multiples of 2^-40")
        if self._drop_weight(leaf) > 0 and (
            np.bincount(leaf.term, weights=grains, minlength=terms) != 1.0 / SHARE_GRAIN
        ).any():
            raise CertificateError("the shares of some term's tangents don't add up to 1")

    def _drop_weight(self, leaf: Leaf) -> float:
        return leaf.drop + (leaf.objective if self.problem.objective == "drop" else 0.0)

    def _weights(self, leaf: Leaf) -> dict[str, Any]:
        """Resource -> total weight of its cost, numbers of the arithmetic."""
        weights = {resource: self.arithmetic.of(value) for resource, value in leaf.budgets.items() if value}
        if self.problem.objective != "drop" and leaf.objective:
            one = self.arithmetic.of(leaf.objective)
            weights[self.problem.objective] = weights.get(self.problem.objective, self.arithmetic.of(0.0)) + one
        return weights

    def _affine(self, leaf: Leaf) -> tuple[Any, Any]:
        """Constant and slopes (n,) of everything but the costs."""
        problem, of = self.problem, self.arithmetic.of
        constant, slope = of(0.0), of(np.zeros(problem.n_units))
        if self._drop_weight(leaf) > 0:
            weight = of(leaf.drop) + of(leaf.objective if problem.objective == "drop" else 0.0)
            slope = of(problem.surrogate.linear) * weight
            below = of(0.0)
            if len(leaf.share):
                parts = self._tangents(leaf)
                shares = of(leaf.share).reshape(1, -1)
                below = (shares @ self.arithmetic.join([c.reshape(1, 1) for c, _ in parts])).sum()
                slopes = self.arithmetic.join([s.reshape(1, -1) for _, s in parts])
                slope = slope + (shares @ slopes).reshape(-1) * weight
            constant = below * weight
            if problem.max_drop is not None:
                constant = constant - of(problem.drop_limit) * of(leaf.drop)
        for mask, multiplier in zip(problem.forbidden, leaf.forbidden, strict=True):
            if multiplier:
                constant = constant + of(multiplier) * of(1.0 - float((~mask).sum()))
                slope = slope + of(np.where(mask, -1.0, 1.0)) * of(multiplier)
        return constant, slope

    def _tangents(self, leaf: Leaf) -> list[tuple[Any, Any]]:
        pairs = list(zip(leaf.point.tolist(), leaf.term.tolist(), strict=True))
        for point in sorted({p for p, t in pairs if (p, t) not in self.known}):
            terms = np.array(sorted({t for p, t in pairs if p == point and (p, t) not in self.known}))
            constants, slopes = self.rule.below(self.points[point], terms)
            for row, term in enumerate(terms.tolist()):
                self.known[point, term] = constants[row], slopes[row]
        return [self.known[pair] for pair in pairs]

    def _counts(self, group: int, keep: np.ndarray, remove: np.ndarray) -> np.ndarray:
        """Kept counts that the leaf and the problem allow a group: int64, ascending."""
        here = self.problem.costs.group_of_unit == group
        allowed = self.problem.allowed_counts(group)
        return allowed[(allowed >= keep[here].sum()) & (allowed <= (~remove[here]).sum())]

    def _removal(self, group: int, allowed: np.ndarray, slope: Any, keep: np.ndarray, remove: np.ndarray) -> Any:
        """For every allowed count, the least ``slope @ z`` over the masks of the group that keep so many."""
        here = self.problem.costs.group_of_unit == group
        free = slope[np.flatnonzero(here & ~keep & ~remove)].down()
        sums = free[free.order()].cumsum()
        fixed = slope[np.flatnonzero(here & remove)].sum()
        return (sums[here.sum() - allowed - remove[here].sum()] + fixed).down()

    def _on_lattice(self, bound: Fraction) -> Fraction:
        """Rounded up to the next value that a cost can have."""
        if self.problem.objective == "drop":
            return bound
        offset, unit = self.problem.costs[self.problem.objective].lattice
        return Fraction(offset + unit * math.ceil((bound - offset) / unit))


def _outside(numbers: np.ndarray, count: int) -> bool:
    return bool(((numbers < 0) | (numbers >= count)).any())
