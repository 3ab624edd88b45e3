"""The linear program whose multipliers become a certificate: tangents, limits that may be broken at a price, counts."""

from __future__ import annotations

import dataclasses
import math

import highspy
import numpy as np

from .certificate import Leaf
from .certificate_bound import SHARE_GRAIN
from .counting import add_counts
from .highs_program import highs_program
from .linear import MipBuilder
from .problem import Problem

__all__ = ["LeafProgram", "LeafSolution"]

#: Breaking a limit by its own size costs so many times the objective's size.
PENALTY = 1e3


@dataclasses.dataclass(frozen=True, eq=False)
class LeafSolution:
    """Solution of the program over one leaf.

    Attributes:
        z: float64, shape (n,): removal vector, inside the leaf's box.
        theta: float64, shape (B,): what the tangents make of the terms there.
        bound: the program's value as a bound on the objective (not proved: that is the checker's part).
        leaf: the multipliers.
        refuting: the same multipliers without the objective, where a limit is broken; else ``None``.
    """

    z: np.ndarray
    theta: np.ndarray
    bound: float
    leaf: Leaf
    refuting: Leaf | None


class LeafProgram:
    """A problem's relaxation in HiGHS that grows by tangents and is solved over boxes of masks.

    Limits have a slack with a price, so that every box whose counts are allowed has a solution, and finite multipliers.

    Args:
        drop_scale: size of the drops that matter.
    """

    def __init__(self, problem: Problem, drop_scale: float) -> None:
        self.problem = problem
        surrogate = problem.surrogate
        self.uses_drop = problem.objective == "drop" or problem.max_drop is not None
        self.unit = 1e-3 * drop_scale
        builder = MipBuilder()
        minimised = problem.objective == "drop"
        self.kept = builder.add_columns(
            problem.n_units, lower=problem.keep.astype(float), upper=1.0 - problem.remove,
            cost=-surrogate.linear / self.unit if minimised else 0.0,
        )
        self.n_terms = surrogate.n_terms if self.uses_drop else 0
        self.theta = builder.add_columns(self.n_terms, lower=-np.inf, upper=np.inf, cost=1.0 if minimised else 0.0)
        self.counting = counting = add_counts(builder, problem, self.kept)
        if minimised:
            self.scale, builder.constant = self.unit, float(surrogate.linear.sum()) / self.unit
            price = PENALTY * 1e3
        else:
            cost = counting.linear(problem.costs[problem.objective])
            self.scale = max(1.0, float(np.abs(cost.values).max(initial=0.0)))
            builder.add_costs(cost.columns, cost.values / self.scale)
            builder.constant = cost.constant / self.scale
            full = problem.costs[problem.objective](problem.costs.sizes)
            price = PENALTY * max(1.0, abs(full) / self.scale)
        self.drop_row: int | None = None
        if problem.max_drop is not None:
            self.drop_row, slack = builder.n_rows, builder.add_columns(1, upper=np.inf, cost=price / 1e3)
            builder.add_row(
                np.concatenate([self.kept, self.theta, slack]),
                np.concatenate([-surrogate.linear / self.unit, np.ones(self.n_terms), [-1.0]]),
                upper=(problem.drop_limit - float(surrogate.linear.sum())) / self.unit,
            )
        self.budget_rows: dict[str, tuple[int, float]] = {}
        for resource, limit in problem.budgets.items():
            cost = counting.linear(problem.costs[resource])
            scale = max(1.0, float(np.abs(cost.values).max(initial=0.0)))
            self.budget_rows[resource] = builder.n_rows, scale
            slack = builder.add_columns(1, upper=np.inf, cost=price)
            builder.add_row(
                np.append(cost.columns, slack), np.append(cost.values / scale, -1.0),
                upper=(limit - cost.constant) / scale,
            )
        self.forbidden_rows = builder.n_rows
        for mask in problem.forbidden:
            slack = builder.add_columns(1, upper=np.inf, cost=price)
            builder.add_row(
                np.append(self.kept, slack), np.append(np.where(mask, -1.0, 1.0), 1.0), lower=1.0 - mask.sum()
            )
        self.mip = builder.build()
        self.highs = highs_program(self.mip)
        self.tangents: list[tuple[int, int]] = []
        self.points: list[np.ndarray] = []

    def add_tangents(self, z: np.ndarray, least: np.ndarray | None = None) -> bool:
        """Add the tangents at ``z`` of the terms above ``least`` (B,), in the program's unit; whether any was."""
        if not self.n_terms:
            return False
        values, slopes = self.problem.surrogate.terms(z)
        values, slopes = values / self.unit, slopes / self.unit
        new = np.arange(self.n_terms) if least is None else np.flatnonzero(values > least)
        if len(new) == 0:
            return False
        self.points.append(z.copy())
        for term in new.tolist():
            where = np.flatnonzero(slopes[term])
            columns = np.append(self.theta[term], self.kept[where]).astype(np.int32)
            lower = values[term] - slopes[term] @ z + slopes[term].sum()
            self.highs.addRow(
                float(lower), math.inf, len(columns), columns, np.append(1.0, slopes[term][where])
            )
            self.tangents.append((len(self.points) - 1, term))
        return True

    def solve(self, keep: np.ndarray, remove: np.ndarray) -> LeafSolution | None:
        """Solve over the masks with these units kept and removed; ``None`` if the counts alone rule them all out."""
        costs = self.problem.costs
        self._set_bounds(self.kept, keep.astype(float), 1.0 - remove)
        fewest, most = costs.counts(keep), costs.counts(~remove)
        for group, columns in self.counting.unary.items():
            counts = self.counting.allowed[group]
            inside = (fewest[group] <= counts) & (counts <= most[group])
            self._set_bounds(columns, np.zeros(len(columns)), inside.astype(float))
        self.highs.run()
        if self.highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self.highs.getSolution()
        x, duals = np.array(solution.col_value), np.array(solution.row_dual)
        z = 1.0 - np.clip(x[self.kept], keep.astype(float), 1.0 - remove)
        bound = (self.highs.getInfo().objective_function_value + self.mip.constant) * self.scale
        leaf = self._leaf(duals)
        broken = leaf.drop > 0 or any(leaf.budgets.values()) or leaf.forbidden.any()
        refuting = dataclasses.replace(leaf, objective=0.0) if broken else None
        if refuting is not None and self.problem.objective == "drop" and leaf.drop == 0.0:
            none = np.zeros(0)
            refuting = dataclasses.replace(refuting, point=none, term=none, share=none)
        return LeafSolution(z, x[self.theta], bound, leaf, refuting)

    def _set_bounds(self, columns: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        self.highs.changeColsBounds(len(columns), columns.astype(np.int32), lower, upper)

    def _leaf(self, duals: np.ndarray) -> Leaf:
        scale = self.scale
        drop = 0.0 if self.drop_row is None else max(0.0, -float(duals[self.drop_row])) * scale / self.unit
        budgets = {
            resource: max(0.0, -float(duals[row])) * scale / row_scale
            for resource, (row, row_scale) in self.budget_rows.items()
        }
        forbidden = np.maximum(0.0, duals[self.forbidden_rows : self.forbidden_rows + len(self.problem.forbidden)])
        weights = np.maximum(0.0, duals[self.mip.n_rows :])
        point, term, share = _shares(np.array(self.tangents, dtype=np.int64).reshape(-1, 2), weights, self.n_terms)
        if drop + (self.problem.objective == "drop") == 0.0:
            point, term, share = point[:0], term[:0], share[:0]
        return Leaf(1.0, drop, budgets, forbidden * scale, point, term, share)


def _shares(tangents: np.ndarray, weights: np.ndarray, n_terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per term, the weights of its tangents as shares in whole grains; a term without weight takes its last tangent."""
    point, term = tangents[:, 0], tangents[:, 1]
    totals = np.bincount(term, weights=weights, minlength=n_terms)
    grains = np.floor(weights / np.where(totals > 0, totals, 1.0)[term] / SHARE_GRAIN)
    best = np.zeros(n_terms, dtype=np.int64)
    best[term] = np.arange(len(term))  # the last one
    order = np.argsort(weights, kind="stable")
    heavy = totals[term[order]] > 0
    best[term[order][heavy]] = order[heavy]  # the heaviest one, where there is weight
    if len(term):
        np.add.at(grains, best, 1.0 / SHARE_GRAIN - np.bincount(term, weights=grains, minlength=n_terms))
    use = grains > 0
    return point[use], term[use], grains[use] * SHARE_GRAIN
