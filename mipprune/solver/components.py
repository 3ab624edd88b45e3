"""Pairwise surrogates by their interaction graph: components are solved apart and put together again."""

from __future__ import annotations

import numpy as np

from ..costs import BilinearCost, Cost, CostModel
from ..errors import SolverError
from ..surrogates import Additive, Pairwise, Quadratic
from .curve import size_curves
from .problem import Problem
from .recombine import recombine
from .solution import Solution

__all__ = ["solve_by_components"]


def solve_by_components(
    problem: Problem, *, solver: str = "highs", time_limit: float | None = None, n_jobs: int | None = 1,
    max_nodes: int | None = 64, seed: int = 0,
) -> Solution:
    """Solve a problem with a :class:`~mipprune.surrogates.Pairwise` surrogate component by component.

    Units that no pair connects don't see each other: each component of the interaction graph has a curve of its own
    (best drop per kept count, :func:`~mipprune.solver.size_curve` on the convex quadratic that is equal at masks), the
    units without pairs are sorted, and a knapsack chooses the counts of all components under the problem's costs, in
    which every group's count is the sum of its components'.  The bound is that of the recombination, so it is exact
    where the curves are: components of up to 20 units, or more as far as ``max_nodes`` close them.

    Args:
        solver, time_limit: of the knapsack; the limit also holds for each curve.
        n_jobs: components at a time (joblib).
        max_nodes, seed: as for :func:`~mipprune.solver.size_curve`.

    Raises:
        SolverError: a surrogate of another class, a component that spans two groups, or no-good cuts, multiples or
            tabulated costs, which don't fall apart; use :func:`~mipprune.solver.solve`.
        InfeasibleError: no selection meets all requirements.
    """
    surrogate = problem.surrogate
    if not isinstance(surrogate, Pairwise):
        kind = type(surrogate).__name__
        raise SolverError(f"components are those of a Pairwise surrogate, not of a {kind}; use solve")
    if len(problem.forbidden) or (problem.multiples != 1).any():
        raise SolverError("no-good cuts and multiples tie the components together; use solve")
    parts = _parts(problem, surrogate)
    curves = size_curves(
        [_part_surrogate(surrogate, part) for part in parts], keep=[problem.keep[part] for part in parts],
        remove=[problem.remove[part] for part in parts], n_jobs=n_jobs, time_limit=time_limit, max_nodes=max_nodes,
        seed=seed,
    )
    costs, floors = _part_costs(problem, parts)
    found = recombine(
        curves, costs, objective=problem.objective, max_drop=problem.max_drop,
        budgets={**problem.budgets, **floors}, solver=solver, time_limit=time_limit,
    )
    kept = np.zeros(problem.n_units, dtype=bool)
    kept[np.concatenate(parts)] = found.kept
    evaluation = problem.evaluate(kept)
    if not evaluation.feasible:
        raise SolverError(f"the components' answer breaks {'; '.join(evaluation.violations)}: rounding; use solve")
    return Solution(
        kept=kept,
        objective=evaluation.objective,
        bound=min(found.bound, evaluation.objective),
        drop=evaluation.drop,
        costs=evaluation.costs,
        objective_kind=problem.objective,
        termination=found.termination,
        solver=found.solver,
        version=found.version,
        seconds=sum(curve.seconds for curve in curves) + found.seconds,
    )


def _parts(problem: Problem, surrogate: Pairwise) -> list[np.ndarray]:
    """Components, and per group one part of all units that have no pair; ordered by group."""
    group_of_unit = problem.costs.group_of_unit
    parts, alone = [], np.zeros(problem.n_units, dtype=bool)
    for units in surrogate.components():
        groups = np.unique(group_of_unit[units])
        if len(groups) > 1:
            names = [problem.costs.groups[g] for g in groups]
            raise SolverError(f"a pair of units couples the groups {names}, whose counts act together; use solve")
        if len(units) == 1:
            alone[units] = True
        else:
            parts.append(units)
    groups_alone = (np.flatnonzero(alone & (group_of_unit == g)) for g in range(len(problem.costs.groups)))
    parts += [units for units in groups_alone if len(units)]
    return sorted(parts, key=lambda units: (group_of_unit[units[0]], units[0]))


def _part_surrogate(surrogate: Pairwise, units: np.ndarray) -> Additive | Quadratic:
    part = surrogate.restricted(units)
    return part.convexified() if part.n_terms else Additive(part.importance)


def _part_costs(problem: Problem, parts: list[np.ndarray]) -> tuple[CostModel, dict[str, int]]:
    """The problem's costs in the counts of the parts, and ``min_keep`` as budgets on negative counts."""
    group = problem.costs.group_of_unit[[units[0] for units in parts]]
    names = tuple(f"{problem.costs.groups[g]}/{i}" for i, g in enumerate(group))
    resources: dict[str, Cost] = {
        name: _split(problem.costs[name], group) for name in problem.costs.resources
        if name in problem.budgets or name == problem.objective
    }
    floors = {}
    none = np.zeros(0, dtype=np.int64)
    for g in np.flatnonzero(problem.min_keep > problem.costs.counts(problem.keep)):
        name = f"kept of {problem.costs.groups[g]}"
        resources[name] = BilinearCost(0, -(group == g).astype(np.int64), none, none, none)
        floors[name] = -int(problem.min_keep[g])
    return CostModel(names, np.array([len(units) for units in parts]), resources), floors


def _split(cost: Cost, group: np.ndarray) -> BilinearCost:
    """A bilinear cost of groups as one of their parts: counts are sums."""
    if not isinstance(cost, BilinearCost):
        raise SolverError("a tabulated cost doesn't fall apart into the components of a group; use solve")
    found: dict[tuple[int, int], int] = {}
    for g, h, coefficient in zip(cost.left.tolist(), cost.right.tolist(), cost.coefficient.tolist()):
        for a in np.flatnonzero(group == g).tolist():
            for b in np.flatnonzero(group == h).tolist():
                pair = min(a, b), max(a, b)
                found[pair] = found.get(pair, 0) + coefficient
    left, right = (np.array([pair[side] for pair in found], dtype=np.int64) for side in (0, 1))
    values = np.array(list(found.values()), dtype=np.int64)
    return BilinearCost(cost.constant, cost.linear[group], left, right, values)
