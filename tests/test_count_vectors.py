"""Bounds from relaxations of count vectors: valid under any budget over several groups, and close to the best."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from mipprune.costs import BilinearCost, CostModel, TabulatedCost
from mipprune.errors import InfeasibleError
from mipprune.solver import Problem, count_vectors, solve
from mipprune.solver.capped_simplex import project_capped_simplex
from mipprune.solver.cardinality_convex import descend_convex
from mipprune.solver.cardinality_qp import ActiveSet
from mipprune.solver.cardinality_search import exchange
from mipprune.solver.convex_tree import least_vertex
from mipprune.solver.count_vectors import CountVectors, bound_by_counts, decide_by_counts, removal_counts
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
        vectors = CountVectors.of(search)
        if vectors is not None:
            bound_by_counts(vectors, lambda: True)
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


def least_drop_problem(seed: int) -> Problem | None:
    """A random problem whose drop is minimised; ``None`` for a seed that gives an infeasible one."""
    try:
        problem = random_problem(seed, wide=seed % 2 == 0)
    except InfeasibleError:
        return None
    if problem.objective == "drop":
        return problem
    return Problem.minimize_drop(problem.surrogate, costs=problem.costs, budgets=problem.budgets)


@pytest.mark.parametrize("seed", range(60))
def test_bound_never_passes_the_best_mask(seed: int) -> None:
    problem = least_drop_problem(seed)
    if problem is None:
        return
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


def test_trees_where_nothing_is_left_to_decide() -> None:
    for remove in (0, 5):
        problem = layered([4, 4], 0, 1.0, keep=np.arange(8 - remove), remove=np.arange(8 - remove, 8))
        found = solve(problem, solver="nlp")
        assert found.proved
        assert found.termination == "optimal"
        assert found.n_kept == 8 - remove
    with pytest.raises(InfeasibleError):
        solve(dataclasses.replace(problem, max_drop=0.5 * found.drop), solver="nlp")


def test_stops_when_told() -> None:
    asked = 0

    def goes_on() -> bool:
        nonlocal asked
        asked += 1
        return asked < 4

    with Search(layered([60, 50], 0, 0.4)) as search:
        vectors = CountVectors.of(search)
        assert vectors is not None
        bound_by_counts(vectors, goes_on)
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


@pytest.mark.parametrize("seed", range(60))
def test_trees_over_counts_find_the_optimum(seed: int) -> None:
    problem = least_drop_problem(seed)
    if problem is None:
        return
    try:
        best = solve(problem, solver="brute")
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            solve(problem, solver="nlp")
        return
    found = solve(problem, solver="nlp")
    assert found.objective == pytest.approx(best.objective, abs=1e-6)
    assert found.bound <= best.objective + 1e-9
    assert found.proved is True  # not numpy's, which no file takes
    assert found.termination == "optimal"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("seeds_known", [False, True])
def test_trees_over_counts_are_valid_wherever_they_stop(seed: int, seeds_known: bool) -> None:
    problem = layered([9, 7], seed, 0.45, rank=16)
    best = solve(problem, solver="brute")
    last = -np.inf
    for stop in range(1, 60, 3):
        steps = iter(range(stop))
        with Search(problem) as search:
            if seeds_known:
                search.offer(best.kept)
            vectors = CountVectors.of(search)
            assert vectors is not None
            bound_by_counts(vectors, lambda: True)
            done = decide_by_counts(vectors, lambda steps=steps: next(steps, None) is not None)
        assert search.bound <= best.objective + 1e-9
        assert search.objective >= best.objective - 1e-9
        assert search.bound >= last - 1e-12
        assert not done or search.objective == pytest.approx(best.objective, abs=1e-7)
        last = search.bound
    assert len(vectors.trees) >= 1


def test_many_counts_are_decided_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One vector's tree isn't grown past the bounds of the others: the search comes back to it."""
    turns, branch = [], CountVectors.branch

    def counted(self: CountVectors, vector: int, goes_on: Callable[[], bool]) -> bool:
        turns.append(vector)
        return branch(self, vector, goes_on)

    monkeypatch.setattr(CountVectors, "branch", counted)
    problem = layered([9, 7], 2, 0.45, rank=16)
    with Search(problem) as search:
        vectors = CountVectors.of(search)
        assert vectors is not None
        bound_by_counts(vectors, lambda: True)
        assert decide_by_counts(vectors, lambda: True)
    assert len(vectors.trees) > 1
    assert len(turns) > len(vectors.trees)
    assert search.objective == pytest.approx(solve(problem, solver="brute").objective, abs=1e-9)
    assert (vectors.bounds >= search.objective * (1.0 - 1e-6)).all()


@pytest.mark.parametrize("seed", range(8))
def test_settled_units_stand_as_in_every_better_mask(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    surrogate = Quadratic(rng.random(14), 0.2 * rng.normal(size=(3, 14)))
    problem = dataclasses.replace(layered([8, 6], seed, 0.45), surrogate=surrogate)
    masks = (np.arange(1 << 14)[:, None] >> np.arange(14) & 1).astype(bool)  # removed
    drops = problem.surrogate.drops(masks.astype(float))
    settled = 0
    with Search(problem) as search:
        vectors = CountVectors.of(search)
        assert vectors is not None
        bound_by_counts(vectors, lambda: True)
        for vector in vectors.points:
            of_these = (np.stack([masks[:, :8].sum(1), masks[:, 8:].sum(1)], axis=1) == vectors.counts[vector]).all(1)
            if of_these.sum() < 20:
                continue
            monkeypatch.setattr(CountVectors, "cutoff", np.sort(drops[of_these])[5])
            vertex, fixed = vectors.settled(vector)
            better = masks[of_these & (drops <= vectors.cutoff)]
            assert len(better) == 6
            assert (better[:, fixed] == (vertex[fixed] > 0.5)).all()
            settled += int(fixed.sum())
    assert settled > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_least_vertex_and_what_leaving_it_costs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradient, group = rng.normal(size=9), rng.permutation([0, 0, 0, 0, 1, 1, 1, 2, 2])
    totals = np.array([2, 1, 2])  # no choice in the last
    masks = (np.arange(1 << 9)[:, None] >> np.arange(9) & 1).astype(float)
    masks = masks[[all(mask[group == g].sum() == totals[g] for g in range(3)) for mask in masks]]
    parts = [(np.flatnonzero(group == g), int(totals[g])) for g in range(3)]
    vertex, rise = least_vertex(gradient, np.zeros(9), parts)
    values = masks @ gradient
    assert gradient @ vertex == pytest.approx(values.min())
    for unit in range(9):
        left = values[masks[:, unit] != vertex[unit]]
        assert rise[unit] == (pytest.approx(left.min() - values.min()) if len(left) else np.inf)


def grouped_quadratic(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Linear part, curvature, groups and how many of each go."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(15, 15))
    group = np.array([0] * 6 + [1] * 5 + [2] * 4)
    return rng.normal(size=15), factor.T @ factor / 15, rng.permutation(group), np.array([3, 2, 1])


def grouped_minimiser(
    linear: np.ndarray, curvature: np.ndarray, group: np.ndarray, totals: np.ndarray, fixed: dict[int, float]
) -> np.ndarray:
    """By projected gradients, group by group."""
    def project(y: np.ndarray) -> np.ndarray:
        z = np.empty(len(y))
        for unit, value in fixed.items():
            z[unit] = value
        for g, total in enumerate(totals):
            units = np.array([i for i in np.flatnonzero(group == g) if i not in fixed])
            taken = sum(value for unit, value in fixed.items() if group[unit] == g)
            z[units] = project_capped_simplex(y[units], total - taken)
        return z

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        return float(linear @ z + 0.5 * z @ curvature @ z), linear + curvature @ z

    def nothing(value: float, gradient: np.ndarray, z: np.ndarray) -> float:
        return -np.inf

    return descend_convex(value, np.full(len(linear), 0.5), project, nothing, tolerance=0.0, max_steps=3000)


@pytest.mark.parametrize("seed", range(8))
def test_active_sets_follow_several_sums(seed: int) -> None:
    linear, curvature, group, totals = grouped_quadratic(seed)
    z = np.array([totals[g] / (group == g).sum() for g in group])
    state = ActiveSet.near(z, linear + curvature @ z, curvature, group=group)
    np.testing.assert_allclose(state.z, grouped_minimiser(linear, curvature, group, totals, {}), atol=2e-5)
    fixed: dict[int, float] = {}
    for unit, side in ((int(np.argmax(state.z * (1 - state.z))), 1), (int(np.flatnonzero(group == 2)[0]), 0)):
        fixed[unit] = side
        state.hold(unit, side)
        expected = grouped_minimiser(linear, curvature, group, totals, fixed)
        np.testing.assert_allclose(state.z, expected, atol=2e-5)
    other = np.random.default_rng(seed + 100).normal(size=15)
    state.tilt(other - linear)
    np.testing.assert_allclose(state.z, grouped_minimiser(other, curvature, group, totals, fixed), atol=2e-5)
    for g, total in enumerate(totals):
        assert state.z[group == g].sum() == pytest.approx(total, abs=1e-9)


def test_exchanges_keep_the_counts_of_groups() -> None:
    linear, curvature, group, totals = grouped_quadratic(3)
    start = np.zeros(15, dtype=bool)
    for g, total in enumerate(totals):
        start[np.flatnonzero(group == g)[:total]] = True
    z = exchange(linear, curvature, start, group=group)
    assert [int(z[group == g].sum()) for g in range(3)] == totals.tolist()

    def value(mask: np.ndarray) -> float:
        return float(linear @ mask + 0.5 * mask @ curvature @ mask)

    assert value(z) < value(start)
    for i in np.flatnonzero(z):
        for j in np.flatnonzero(~z & (group == group[i])):
            moved = z.copy()
            moved[[i, j]] = False, True
            assert value(moved) >= value(z) - 1e-9
