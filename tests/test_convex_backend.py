"""The backend without linear programs: its oracles, its node relaxations, and its answers against enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from mipprune.costs import BilinearCost, CostModel
from mipprune.errors import InfeasibleError, SolverError
from mipprune.solver import Problem, convex_backend, count_vectors, local_search, solve
from mipprune.solver.anneal import anneal
from mipprune.solver.cardinality_convex import relax_convex
from mipprune.solver.cardinality_qp import ActiveSet
from mipprune.solver.cardinality_search import exchange
from mipprune.solver.convex_tree import ConvexTree
from mipprune.solver.local_search import LocalSearch
from mipprune.solver.oracles import FunctionOracle, HeadOracle, Oracle, oracle_of
from mipprune.surrogates import Additive, LinearHead, Quadratic, RobustAdditive, Surrogate

KINDS = ("additive", "quadratic", "head")


def surrogate_of(kind: str, n: int, seed: int = 0) -> Surrogate:
    rng = np.random.default_rng(seed)
    if kind == "additive":
        return Additive(rng.normal(0.3, 1.0, n))
    if kind == "quadratic":
        return Quadratic(rng.normal(0.1, 0.3, n), rng.normal(size=(n, n)) / np.sqrt(n))
    return LinearHead(rng.random((40, n)), 2 * rng.normal(size=(4, n)), np.zeros(4), rng.integers(0, 4, 40), 4)


def oracles(kind: str, n: int = 9) -> tuple[Oracle, FunctionOracle, np.ndarray]:
    """An oracle with two units settled, the transparent one beside it, and the free units."""
    surrogate, base = surrogate_of(kind, n), np.zeros(n)
    base[1] = 1.0
    free = np.array([i for i in range(n) if i not in (1, 4)])
    return oracle_of(surrogate, base, free), FunctionOracle(surrogate, base, free), free


@pytest.mark.parametrize("kind", KINDS)
def test_oracles_equal_the_surrogate(kind: str) -> None:
    fast, slow, free = oracles(kind)
    rng = np.random.default_rng(1)
    for z in rng.random((5, len(free))):
        value, gradient = fast.value_and_gradient(z)
        reference, slope = slow.value_and_gradient(z)
        assert value == pytest.approx(reference, rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)
    mask = (rng.random(len(free)) < 0.5).astype(float)
    moves = [np.array([0]), np.array([1, 3]), np.array([2, 4, 5])]
    np.testing.assert_allclose(fast.values_around(mask, moves), slow.values_around(mask, moves), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_model_curvature_is_near_the_second_derivative(kind: str) -> None:
    fast, slow, free = oracles(kind)
    z = np.full(len(free), 0.4)
    found, expected = fast.curvature(z), slow.curvature(z)
    assert np.linalg.norm(found - expected) <= 0.15 * np.linalg.norm(expected) + 1e-8  # rare classes are left out
    assert np.linalg.eigvalsh(found).min() >= -1e-6 * max(1.0, np.abs(found).max())


def test_a_short_model_curvature_is_part_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow, free = oracles("head")
    z = np.full(len(free), 0.4)
    monkeypatch.setattr("mipprune.solver.oracles.LEAST_ROWS", 120)  # of 240 pairs
    found, whole = fast.curvature(z), slow.curvature(z)
    assert np.linalg.eigvalsh(found).min() >= -1e-6
    assert np.linalg.eigvalsh(whole - found).min() >= -1e-3 * np.trace(whole)
    assert 0.6 * np.trace(whole) < np.trace(found) < 0.999 * np.trace(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [0.0, 0.05])
def test_restriction_is_a_lower_bound_and_tight_at_its_point(kind: str, error: float) -> None:
    fast, _, free = oracles(kind)
    rng = np.random.default_rng(2)
    z = rng.random(len(free))
    loose = np.array([0, 2, 3, 5])
    z[[1, 4, 6]] = (0.0, 1.0, 1.0)
    probes = np.repeat(z[None], 4, axis=0)
    probes[:, loose] = rng.random((4, len(loose))) < 0.5
    small = fast.restrict(z, loose, probes, error)
    assert small.value_and_gradient(z[loose])[0] == pytest.approx(fast.value_and_gradient(z)[0], abs=1e-12)
    for probe in probes:
        here, there = small.value_and_gradient(probe[loose])[0], fast.value_and_gradient(probe)[0]
        assert there - error - 1e-12 <= here <= there + 1e-12
    for corner in rng.random((50, len(loose))):
        full = z.copy()
        full[loose] = corner
        assert small.value_and_gradient(corner)[0] <= fast.value_and_gradient(full)[0] + 1e-12
    if kind == "head" and error:
        assert isinstance(small, HeadOracle)
        assert len(small.targets) < 40  # some samples are really left out


def test_tilt_and_bend_follow_the_minimiser() -> None:
    rng = np.random.default_rng(3)
    n, total = 14, 5
    for trial in range(20):
        linear, other = rng.normal(size=n), rng.normal(size=n)
        first, second = (f.T @ f / n for f in rng.normal(size=(2, n, n)))
        state = ActiveSet(linear, first)
        state.move_total(total)
        state.tilt(other - linear)
        fresh = ActiveSet(other, first)
        fresh.move_total(total)
        np.testing.assert_allclose(state.z, fresh.z, atol=1e-5, err_msg=str(trial))
        gradient = other + second @ state.z
        before = state.z.copy()
        state.bend(second)
        np.testing.assert_array_equal(state.z, before)
        state.tilt(gradient - state.gradient)
        fresh = ActiveSet(other, second)
        fresh.move_total(total)
        np.testing.assert_allclose(state.z, fresh.z, atol=1e-4, err_msg=str(trial))
        near = ActiveSet.near(before, gradient, second)
        np.testing.assert_allclose(near.z, fresh.z, atol=1e-4, err_msg=str(trial))


def test_a_minimiser_sought_from_a_point_leaves_held_units_alone() -> None:
    rng = np.random.default_rng(4)
    n, total = 12, 5
    for trial in range(20):
        linear, factor = rng.normal(size=n), rng.normal(size=(n, n)) / np.sqrt(n)
        curvature = factor.T @ factor
        held = np.zeros(n, dtype=bool)
        held[[2, 7]] = True
        z = np.full(n, (total - 1) / (n - 2))
        z[[2, 7]] = 1.0, 0.0
        state = ActiveSet.near(z, linear + curvature @ z, curvature, held)
        assert state.z[2] == 1.0
        assert state.z[7] == 0.0
        free = np.flatnonzero(~held)
        fresh = ActiveSet(linear[free] + curvature[free, 2], curvature[np.ix_(free, free)])
        fresh.move_total(total - 1)
        np.testing.assert_allclose(state.z[free], fresh.z, atol=1e-5, err_msg=str(trial))


class Steep(FunctionOracle):
    """A sum of log cosh: curved near its minima and straight beyond, so full Newton steps go too far."""

    def __init__(self, n: int, terms: int, steepness: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rows, self.steepness = rng.normal(size=(terms, n)), steepness
        self.centre = self.rows @ rng.random(n)

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        t = self.steepness * (self.rows @ z - self.centre)
        return float((np.logaddexp(t, -t) - np.log(2.0)).sum() / self.steepness), self.rows.T @ np.tanh(t)

    def curvature(self, z: np.ndarray) -> np.ndarray:
        t = self.steepness * (self.rows @ z - self.centre)
        return (self.rows.T * (self.steepness / np.cosh(t) ** 2)) @ self.rows


def test_steps_that_go_too_far_are_drawn_back() -> None:
    """Ruling out all masks takes 233 nodes, and 1,517 where a node ends with the full steps of its model."""
    n, total, nodes = 14, 7, 0
    masks = np.array([m for m in (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool) if m.sum() == total])
    for seed in range(3):
        oracle = Steep(n, 10, 3.0, seed)
        cutoff = min(oracle.value_and_gradient(mask.astype(float))[0] for mask in masks) * (1.0 - 1e-6)
        tree = ConvexTree(oracle, np.full(n, total / n), total, cutoff, lambda mask: np.inf)
        assert tree.run(lambda tree=tree: tree.nodes < 3000)
        nodes += tree.nodes
    assert nodes < 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("total", [1, 4, 8])
def test_tree_finds_the_least_value_and_its_bound_is_valid(kind: str, total: int) -> None:
    n = 10
    surrogate = surrogate_of(kind, n, seed=5)
    oracle = oracle_of(surrogate, np.zeros(n), np.arange(n))
    masks = np.array([m for m in (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool) if m.sum() == total])
    values = surrogate.drops(masks.astype(float))
    best = [np.inf]

    def offer(mask: np.ndarray) -> float:
        best[0] = min(best[0], oracle.value_and_gradient(mask.astype(float))[0])
        return best[0] - 1e-9

    tree = ConvexTree(oracle, np.full(n, total / n), total, np.inf, offer)
    steps = 0
    while not tree.run(lambda: False) and tree.heap and tree.heap[0][0] <= tree.cutoff:
        assert min(tree.bound, best[0]) <= values.min() + 1e-9  # wherever it is stopped
        turns = iter([True, False])
        tree.run(lambda turns=turns: next(turns))
        steps += 1
        assert steps < 2000
    assert best[0] == pytest.approx(values.min(), abs=1e-8)
    assert tree.bound >= best[0] - 2e-9


@pytest.mark.parametrize("kind", KINDS)
def test_every_budget_agrees_with_enumeration(kind: str) -> None:
    n = 11
    surrogate = surrogate_of(kind, n, seed=7)
    for budget in range(n + 1):
        problem = Problem.minimize_drop(surrogate, budgets={"units": budget}, keep=np.array([2]) if budget else None)
        found, reference = solve(problem, solver="nlp"), solve(problem, solver="brute")
        assert found.proved
        assert found.objective == pytest.approx(reference.objective, rel=1e-6, abs=1e-8)
        assert found.bound <= reference.objective + 1e-9


def test_auto_takes_it_for_one_group_or_the_least_drop_and_it_refuses_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    surrogate = surrogate_of("head", 14)
    assert solve(Problem.minimize_units(surrogate, max_drop=0.3)).solver == "nlp"
    none = np.zeros(0, dtype=np.int64)
    units = BilinearCost(0, np.ones(2, dtype=np.int64), none, none, none)
    two = CostModel(("a", "b"), np.array([6, 8]), {"units": units})
    problem = Problem.minimize_cost(surrogate, two, "units", max_drop=0.3)
    with pytest.raises(SolverError, match="one group"):
        solve(problem, solver="nlp")
    assert solve(problem).solver == "scip"
    least = Problem.minimize_drop(surrogate_of("quadratic", 14), costs=two, budgets={"units": 9})
    assert solve(least).solver == "nlp"
    monkeypatch.setattr(count_vectors, "MOST_VECTORS", 30)
    with pytest.raises(SolverError, match="these are too many"):
        solve(least, solver="nlp")
    assert solve(least).solver == "scip"


def test_multiples_hold_and_other_surrogates_go_to_scip() -> None:
    head = surrogate_of("head", 14)
    problem = Problem.minimize_units(head, max_drop=0.3, multiples=4)
    found = solve(problem, solver="nlp")
    assert found.n_kept % 4 == 0 or found.n_kept == 14
    assert found.objective == solve(problem, solver="brute").objective
    robust = RobustAdditive(np.linspace(0.1, 1.0, 14), np.full(14, 0.1))
    problem = Problem.minimize_units(robust, max_drop=2.0)
    assert solve(problem).solver == "scip"
    assert solve(problem, solver="nlp").objective == solve(problem, solver="brute").objective


def test_infeasible_within_pins() -> None:
    problem = Problem.minimize_units(surrogate_of("quadratic", 14), max_drop=-5.0, keep=np.arange(3))
    with pytest.raises(InfeasibleError, match="max_drop"):
        solve(problem, solver="nlp")


def test_annealing_finds_the_least_of_all_masks_and_keeps_their_size() -> None:
    rng = np.random.default_rng(0)
    masks = (np.arange(1 << 12)[:, None] >> np.arange(12) & 1).astype(float)
    for total in (0, 1, 5, 12):
        factor, linear = rng.normal(size=(12, 12)), rng.normal(size=12)
        curvature = factor.T @ factor
        start = np.arange(12) < total
        before = start.copy()
        found = anneal(linear, curvature, start, 40_000, rng)
        values = masks @ linear + 0.5 * np.einsum("mi,ij,mj->m", masks, curvature, masks)
        assert found.sum() == total
        np.testing.assert_array_equal(start, before)
        value = linear @ found + 0.5 * found @ curvature @ found
        assert value == pytest.approx(values[masks.sum(1) == total].min(), rel=1e-9)


def test_annealing_stops_when_told_with_a_mask_no_worse_than_its_start() -> None:
    rng = np.random.default_rng(1)
    linear, factor, start = rng.normal(size=30), rng.normal(size=(30, 30)), np.arange(30) < 12
    turns = iter([True, True, True, False])
    found = anneal(linear, factor.T @ factor, start, 10**9, rng, lambda: next(turns))

    def value(z: np.ndarray) -> float:
        return float(linear @ z + 0.5 * ((factor @ z) ** 2).sum())

    assert found.sum() == 12
    assert value(found) < value(start)


@pytest.mark.parametrize("kind", ["quadratic", "head"])
@pytest.mark.parametrize("objective", ["units", "drop"])
def test_without_a_tree_the_answer_is_sound_and_near(
    kind: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convex_backend, "TREE_UNITS", 0)
    surrogate = surrogate_of(kind, 12, seed=3)
    if objective == "units":
        problem = Problem.minimize_units(surrogate, max_drop=0.4 * surrogate.drop(np.ones(12)))
    else:
        problem = Problem.minimize_drop(surrogate, budgets={"units": 6})
    found, best = solve(problem, solver="nlp"), solve(problem, solver="brute")
    assert problem.evaluate(found.kept).feasible
    assert found.bound <= best.objective + 1e-9
    assert best.objective - 1e-9 <= found.objective <= best.objective + (1 if objective == "units" else 1e-6)


def test_a_quadratic_is_searched_from_several_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n, size = 90, 30
    oracle = oracle_of(Quadratic(0.1 * rng.random(n), rng.normal(size=(n, n)) / np.sqrt(n)), np.zeros(n), np.arange(n))
    point = relax_convex(
        oracle.value_and_gradient, np.full(n, 0.5), size, np.full(n + 1, -np.inf), tolerance=1e-6
    )

    def best(starts: int, enough: float = -np.inf) -> tuple[float, int]:
        monkeypatch.setattr(local_search, "RESTARTS", starts)
        values = []

        def offer(mask: np.ndarray) -> float:
            assert mask.sum() == size
            values.append(oracle.value_and_gradient(mask.astype(float))[0])
            return -np.inf

        LocalSearch(oracle, offer).search(point, size, enough, lambda: True)
        return min(values), len(values)

    one, several = best(1), best(4)
    assert several[0] < one[0]
    assert several[1] > one[1] + 2
    assert best(4, enough=one[0]) == one  # the first start was good enough
    monkeypatch.setattr(local_search, "LEAST_UNITS", n + 1)
    assert best(4) == one


def test_local_search_ends_with_the_clock() -> None:
    """However long a descent would go on, one swap or one evaluation is what it takes after the clock has run out."""
    rng = np.random.default_rng(1)
    n, size = 90, 30
    linear, factor = rng.random(n), rng.normal(size=(n, n)) / np.sqrt(n)
    start = np.arange(n) < size
    np.testing.assert_array_equal(exchange(linear, factor.T @ factor, start, goes_on=lambda: False), start)
    steps = iter([True, True])
    some = exchange(linear, factor.T @ factor, start, goes_on=lambda: next(steps, False))
    assert (some != start).sum() == 4  # two swaps
    oracle = oracle_of(Quadratic(linear, factor), np.zeros(n), np.arange(n))
    offered: list[np.ndarray] = []
    local = LocalSearch(oracle, lambda mask: offered.append(mask.copy()) or 0.0)  # type: ignore[func-returns-value]
    local.descend(start.astype(float), size, lambda: False)
    local.search(start.astype(float), size, -np.inf, lambda: False)
    assert len(offered) == 2
    assert all((mask == start).all() for mask in offered)
