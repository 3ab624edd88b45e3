"""Solution pools against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mipprune.errors import BudgetError, InfeasibleError
from mipprune.solver import Pool, Problem, near_optimal
from mipprune.surrogates import Additive, LinearHead, Quadratic, Surrogate


def surrogate_of(kind: int, n: int, rng: np.random.Generator) -> Surrogate:
    if kind == 0:
        return Additive(rng.integers(1, 4, n).astype(float))  # many ties
    if kind == 1:
        return Quadratic(rng.normal(0.3, 0.2, n), 0.3 * rng.normal(size=(n, n)))
    return LinearHead(rng.random((30, n)), 2 * rng.normal(size=(3, n)), np.zeros(3), rng.integers(0, 3, 30), 4)


def enumerated(problem: Problem, gap: float) -> dict[bytes, float]:
    """Every feasible mask within ``gap`` of the best, by its bytes."""
    values = {}
    for bits in itertools.product((False, True), repeat=problem.n_units):
        evaluation = problem.evaluate(np.array(bits))
        if evaluation.feasible:
            values[np.array(bits).tobytes()] = evaluation.objective
    best = min(values.values())
    return {mask: value for mask, value in values.items() if value <= best + gap + 1e-9 * max(1e-3, abs(best))}


@pytest.mark.parametrize("solver", ["scip", "highs", "nlp", "brute"])
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("objective", ["units", "drop"])
def test_all_optima_are_listed(solver: str, kind: int, objective: str) -> None:
    rng = np.random.default_rng(kind)
    surrogate = surrogate_of(kind, 6, rng)
    spread = abs(surrogate.drop(np.ones(6)))
    if objective == "units":
        problem = Problem.minimize_units(surrogate, max_drop=0.4 * spread)
        gap = 0.0
    else:
        problem = Problem.minimize_drop(surrogate, budgets={"units": 3})
        gap = 0.03 * spread
    expected = enumerated(problem, gap)
    assert 0 < len(expected) < 40
    pool = near_optimal(problem, count=64, gap=gap, solver=solver)
    assert pool.complete
    assert {mask.tobytes() for mask in pool.masks} == set(expected)
    objectives = [solution.objective for solution in pool.solutions]
    assert objectives == sorted(objectives)
    assert Pool.from_dict(pool.to_dict()) == pool


def test_a_short_pool_holds_the_best_and_is_not_complete() -> None:
    problem = Problem.minimize_units(Additive(np.ones(6)), max_drop=3.0)  # 20 optima
    pool = near_optimal(problem, count=4)
    assert len(pool) == 4
    assert not pool.complete
    assert len({mask.tobytes() for mask in pool.masks}) == 4
    assert all(solution.objective == 3.0 for solution in pool.solutions)


def test_bad_arguments_and_infeasible_problems() -> None:
    problem = Problem.minimize_units(Additive(np.ones(6)), max_drop=3.0)
    with pytest.raises(BudgetError, match="count"):
        near_optimal(problem, count=0)
    with pytest.raises(InfeasibleError):
        near_optimal(Problem.minimize_units(Additive(np.ones(6)), max_drop=-1.0))
