"""A pruning problem as a linear MIP: everything except the curvature of the convex terms, which tangent cuts add.

Columns, in this order: ``kept`` (binary, 1 = the unit stays), ``theta`` (one per convex term, an underestimate of its
value), then the counts of the groups and what the products of counts need.  A group or a term that the problem
doesn't use gets no column.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .counting import Counting, add_counting
from .linear import LinearMip, MipBuilder
from .problem import Problem

__all__ = ["Formulation", "formulate"]


@dataclasses.dataclass(frozen=True, eq=False)
class Formulation:
    """The linear MIP of a problem and the numbers of its columns.

    Attributes:
        problem: the problem.
        mip: a relaxation of it in the space of the columns: with all tangents of the terms it would be the problem.
        kept: int64, shape (n,): columns of the units.
        theta: int64, shape (B,): columns of the convex terms, empty when the problem doesn't ask for the drop.
        counting: columns of the counts and their products.
        drop_unit: drops are measured in this unit in ``theta``, in the rows and in the objective ``"drop"``.
        unit: the objective of ``mip`` times ``unit`` is the problem's objective.
    """

    problem: Problem
    mip: LinearMip
    kept: np.ndarray
    theta: np.ndarray
    counting: Counting
    drop_unit: float
    unit: float

    def mask(self, x: np.ndarray) -> np.ndarray:
        """Kept mask of a point whose unit columns are (nearly) whole: bool, shape (n,)."""
        return np.asarray(x)[self.kept] > 0.5

    def removed(self, x: np.ndarray) -> np.ndarray:
        """Removal vector of a point, clipped to the box: float64, shape (n,)."""
        return 1.0 - np.clip(np.asarray(x)[self.kept], self.mip.lower[self.kept], self.mip.upper[self.kept])

    def point(self, kept: np.ndarray) -> np.ndarray:
        """The point of a mask, with every term at its exact value: float64, shape (N,)."""
        x = np.zeros(self.mip.n_columns)
        x[self.kept] = kept
        if len(self.theta):
            x[self.theta] = self.problem.surrogate.terms(1.0 - np.asarray(kept, dtype=np.float64))[0] / self.drop_unit
        self.counting.fill(x, self.problem.costs.counts(kept))
        return x


def formulate(problem: Problem, typical_drop: float | None = None) -> Formulation:
    """Write ``problem`` as a :class:`Formulation`.

    Args:
        typical_drop: size of the drops that matter when the drop is minimised (an incumbent's, say).  Solvers work to
            about 1e-6 in the unit of their rows, so drops are scaled to be about 1000 units.
    """
    n, surrogate = problem.n_units, problem.surrogate
    uses_drop = problem.objective == "drop" or problem.max_drop is not None
    unit_of_drop = _drop_unit(problem, typical_drop) if uses_drop else 1.0
    builder = MipBuilder()

    settled = (problem.fewest == problem.most)[problem.costs.group_of_unit]  # all that may stay must stay
    kept = builder.add_columns(
        n,
        cost=-surrogate.linear / unit_of_drop if problem.objective == "drop" else 0.0,
        lower=(problem.keep | (settled & ~problem.remove)).astype(float),
        upper=1.0 - problem.remove,
        integer=True,
    )
    theta = builder.add_columns(
        surrogate.n_terms if uses_drop else 0,
        cost=1.0 if problem.objective == "drop" else 0.0,
        lower=_floor_of_terms(problem) / unit_of_drop if uses_drop else 0.0,
        upper=np.inf,
    )
    if problem.objective == "drop":
        builder.constant = float(surrogate.linear.sum()) / unit_of_drop
    if problem.max_drop is not None:
        builder.add_row(
            np.concatenate([kept, theta]),
            np.concatenate([-surrogate.linear / unit_of_drop, np.ones(len(theta))]),
            upper=(problem.drop_limit - float(surrogate.linear.sum())) / unit_of_drop,
        )
    counting, unit_of_cost = add_counting(builder, problem, kept)
    for mask in problem.forbidden:
        builder.add_row(kept, np.where(mask, -1.0, 1.0), lower=1.0 - mask.sum())  # differ in one unit at least
    unit = unit_of_drop if problem.objective == "drop" else unit_of_cost
    return Formulation(problem, builder.build(), kept, theta, counting, unit_of_drop, unit)


def _drop_unit(problem: Problem, typical_drop: float | None) -> float:
    """A thousandth of the drops that matter, and not too small beside the largest drop."""
    everything = problem.surrogate.drop((~problem.keep).astype(float))
    spread = abs(everything) + float(np.abs(problem.surrogate.linear).sum())
    reference = typical_drop if problem.objective == "drop" and typical_drop is not None else problem.max_drop
    scale = max(abs(reference) if reference is not None else spread, 1e-3 * spread)
    return 1e-3 * scale if scale > 0 else 1.0


def _floor_of_terms(problem: Problem) -> np.ndarray:
    """Valid lower bounds of the convex terms over the box of ``z``, shape (B,): the best of a few tangents' minima."""
    low, high = problem.remove.astype(float), 1.0 - problem.keep
    floors = []
    for z in (low, 0.5 * (low + high), high):
        values, gradients = problem.surrogate.terms(z)
        floors.append(values + np.minimum(gradients * (low - z), gradients * (high - z)).sum(1))
    floor = np.max(floors, axis=0)
    return floor - 1e-9 * np.maximum(1.0, np.abs(floor))  # rounding of the sums
