"""Bounds from relaxations of count vectors: valid under any budget over several groups, and close to the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mipprune.costs import BilinearCost, CostModel, TabulatedCost
from mipprune.errors import InfeasibleError
from mipprune.solver import Problem, count_vectors, solve
from mipprune.solver.cardinality_convex import descend_convex
from mipprune.solver.cardinality_qp import project_capped_simplex
from mipprune.solver.count_vectors import bound_by_counts, removal_counts
from mipprune.solver.search import Search
from mipprune.surrogates import Quadratic
from mipprune.testing.problems import random_problem


def layered(sizes: list[int], seed: int, share: float, rank: int = 6, **requirements: object) -> Problem:
    """A random convex quadratic over a chain of layers under a budget on products of neighbouring counts."""
    rng = np.random.default_rng(seed)
    n, groups = sum(sizes), len(sizes)
    cost = BilinearCost(
        constant=3, linear=rng.integers(1, 9, groups), left=np.arange(groups - 1), right=np.arange(1, groups),
        coefficient=rng.integers(1, 5, groups - 1),
    )
    costs = CostModel(tuple(f"layer{g}" for g in range(groups)), np.array(sizes), {"macs": cost})
    surrogate = Quadratic(rng.normal(size=n) * 0.1, rng.normal(size=(rank, n)))
    budget = int(share * cost(np.array(sizes)))
    return Problem.minimize_drop(surrogate, costs=costs, budgets={"macs": budget}, **requirements)


def least_relaxation(problem: Problem) -> float:
    """Every vector of counts relaxed by itself, without sharing tangents: the slow way to the same bound."""
    group = problem.costs.group_of_unit
    free = ~(problem.keep | problem.remove)
    best = np.inf
    for totals in removal_counts(problem):
        def project(y: np.ndarray, totals: np.ndarray = totals) -> np.ndarray:
            z = problem.remove.astype(float)
            for g, total in enumerate(totals):
                units = free & (group == g)
                z[units] = project_capped_simplex(y[units], total)
            return z

        def nothing(value: float, gradient: np.ndarray, z: np.ndarray) -> float:
            return -np.inf

        z = descend_convex(
            problem.surrogate.drop_and_gradient, np.full(problem.n_units, 0.5), project, nothing, tolerance=0.0,
            max_steps=500,
        )
        best = min(best, problem.surrogate.drop(z))
    return best


def bounded(problem: Problem) -> Search:
    with Search(problem) as search:
        bound_by_counts(search, lambda: True)
    return search


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_that_fit(seed: int) -> None:
    problem = layered([4, 3, 3], seed, 0.5, min_keep=1, multiples=np.array([2, 1, 1]), keep=np.array([0]),
                      remove=np.array([5]))
    expected = set()
    for mask in itertools.product([False, True], repeat=10):
        kept = np.array(mask)
        if problem.evaluate(kept).feasible:
            expected.add(tuple((problem.most - problem.costs.counts(kept)).tolist()))
    assert {tuple(row) for row in removal_counts(problem).tolist()} == expected


@pytest.mark.parametrize("seed", range(6))
def test_bound_is_the_least_relaxation_of_any_counts(seed: int) -> None:
    problem = layered([6, 5], seed, 0.5, keep=np.array([1]), remove=np.array([7]))
    search = bounded(problem)
    slow = least_relaxation(problem)
    assert search.bound <= slow + 1e-9
    assert search.bound == pytest.approx(slow, abs=2e-3 * max(1.0, abs(slow)))


@pytest.mark.parametrize("seed", range(60))
def test_bound_never_passes_the_best_mask(seed: int) -> None:
    try:
        problem = random_problem(seed, wide=seed % 2 == 0)
    except InfeasibleError:
        return
    if problem.objective != "drop":
        problem = Problem.minimize_drop(problem.surrogate, costs=problem.costs, budgets=problem.budgets)
    search = bounded(problem)
    try:
        best = solve(problem, solver="brute")
    except InfeasibleError:
        assert search.kept is None
        return
    assert search.bound <= best.objective + 1e-9
    assert search.objective >= best.objective - 1e-9


def test_latency_tables_are_exact() -> None:
    rng = np.random.default_rng(0)
    table = np.cumsum(np.cumsum(rng.integers(0, 4, (7, 6)), axis=0), axis=1)
    cost = TabulatedCost(0, np.array([0]), np.array([1]), (table,))
    costs = CostModel(("a", "b"), np.array([6, 5]), {"latency": cost})
    surrogate = Quadratic(rng.random(11), rng.normal(size=(3, 11)))
    problem = Problem.minimize_drop(surrogate, costs=costs, budgets={"latency": int(table[-1, -1]) // 2})
    for removed in removal_counts(problem):
        assert cost(problem.most - removed) <= problem.budgets["latency"]
    assert bounded(problem).bound <= solve(problem, solver="brute").objective + 1e-9


def test_too_many_counts_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = layered([6, 5], 0, 0.5)
    monkeypatch.setattr(count_vectors, "MOST_VECTORS", 41)
    assert removal_counts(problem) is None
    search = bounded(problem)
    assert search.kept is None
    assert search.bound == -np.inf


@pytest.mark.parametrize("pinned", [4, 8])
def test_groups_without_a_choice(pinned: int) -> None:
    problem = layered([4, 4], 0, 1.0, keep=np.arange(pinned))
    search = bounded(problem)
    assert search.bound <= solve(problem, solver="brute").objective + 1e-9
    assert (search.kept is None) == (pinned == 8)


def test_stops_when_told() -> None:
    asked = 0

    def goes_on() -> bool:
        nonlocal asked
        asked += 1
        return asked < 4

    with Search(layered([60, 50], 0, 0.4)) as search:
        bound_by_counts(search, goes_on)
    assert asked <= 6
    assert search.kept is not None


def test_two_wide_layers_are_within_a_percent_after_rounding() -> None:
    rng = np.random.default_rng(0)
    problem = layered([200, 40], 1, 0.5)
    surrogate = Quadratic(rng.random(240), 0.05 * rng.random((20, 240)))  # removing anything costs
    search = bounded(Problem.minimize_drop(surrogate, costs=problem.costs, budgets=problem.budgets))
    assert 0 < search.bound <= search.objective <= 1.01 * search.bound


@pytest.mark.parametrize("solver", ["scip", "highs"])
def test_trees_begin_with_that_bound(solver: str) -> None:
    problem = layered([60, 30], 2, 0.4)
    relaxed = bounded(problem)
    solution = solve(problem, solver=solver, time_limit=3.0)
    assert problem.evaluate(solution.kept).feasible
    assert solution.bound >= min(relaxed.bound, solution.objective)
