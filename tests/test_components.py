"""Components of the interaction graph, solved apart, against the enumeration of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mipprune.costs import BilinearCost, CostModel
from mipprune.errors import InfeasibleError, SolverError
from mipprune.solver import Problem, solve, solve_by_components
from mipprune.surrogates import Additive, Pairwise


def instance(seed: int) -> Problem:
    """Two groups, several components in each, units without pairs, a bilinear cost with a square."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(3, 8)), int(rng.integers(3, 7))]
    n = sum(sizes)
    pairs = np.stack(np.triu_indices(n, 1), axis=1)
    pairs = pairs[(pairs < sizes[0]).all(1) | (pairs >= sizes[0]).all(1)]
    pairs = pairs[rng.random(len(pairs)) < 0.2]
    surrogate = Pairwise(rng.normal(0.5, 0.5, n), pairs, rng.normal(0, 0.8, len(pairs)))
    macs = BilinearCost(3, np.array([2, 1]), np.array([0, 0]), np.array([0, 1]), np.array([1, 2]))
    none = np.zeros(0, dtype=np.int64)
    units = BilinearCost(0, np.ones(2, dtype=np.int64), none, none, none)
    costs = CostModel(("a", "b"), np.array(sizes), {"units": units, "macs": macs})
    extra: dict[str, Any] = {"min_keep": int(rng.integers(0, 3)), "keep": [int(rng.integers(n))]}
    objective = ("drop", "macs", "units")[seed % 3]
    if objective == "drop":
        extra["budgets"] = {"macs": rng.uniform(0.3, 0.9) * costs.cost("macs", costs.sizes)}
    else:
        extra["max_drop"] = float(rng.uniform(-1.5, 1.5))
    return Problem.build(surrogate, objective, costs=costs, **extra)


def test_components_give_the_enumerated_optimum() -> None:
    infeasible = 0
    for seed in range(45):
        try:
            problem = instance(seed)
            best = solve(problem, "brute")
        except InfeasibleError:
            infeasible += 1
            with pytest.raises(InfeasibleError):
                solve_by_components(instance(seed))
            continue
        found = solve_by_components(problem)
        assert problem.evaluate(found.kept).feasible
        assert found.objective == pytest.approx(best.objective, abs=1e-7), seed
        assert found.bound <= best.objective + 1e-7
        assert found.proved, seed
    assert 0 < infeasible < 15


def test_what_does_not_fall_apart_is_refused() -> None:
    pair = Pairwise(np.ones(4), np.array([[1, 2]]), np.ones(1))
    costs = instance(0).costs
    costs = CostModel(("a", "b"), np.array([2, 2]), {"units": costs["units"]})
    with pytest.raises(SolverError, match=r"couples the groups \['a', 'b'\]"):
        solve_by_components(Problem.minimize_drop(pair, costs=costs, budgets={"units": 2}))
    with pytest.raises(SolverError, match="multiples"):
        solve_by_components(Problem.minimize_drop(pair, budgets={"units": 2}, multiples=2))
    with pytest.raises(SolverError, match="Additive"):
        solve_by_components(Problem.minimize_drop(Additive(np.ones(4)), budgets={"units": 2}))


@pytest.mark.slow
def test_hundreds_of_units_fall_into_small_components() -> None:
    rng = np.random.default_rng(0)
    n = 256
    pairs = np.stack([np.arange(0, n - 1), np.arange(1, n)], axis=1)
    pairs = pairs[np.arange(n - 1) % 12 != 11]  # chains of twelve
    surrogate = Pairwise(rng.exponential(1.0, n), pairs, rng.normal(0, 0.5, len(pairs)))
    problem = Problem.minimize_drop(surrogate, budgets={"units": n // 2})
    found = solve_by_components(problem)
    assert found.proved
    whole = solve(problem, "scip", time_limit=60)
    assert whole.bound <= found.objective + 1e-6
    assert found.objective <= whole.objective + 1e-6
