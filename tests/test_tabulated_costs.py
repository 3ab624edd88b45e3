"""Costs as tables, width multiples, and problems in the files of other solvers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyscipopt
import pytest
import scipy.linalg

from mipprune.costs import CostModel, TabulatedCost
from mipprune.errors import BudgetError, InfeasibleError, SolverError
from mipprune.records import Record
from mipprune.solver import Problem, export_problem, recombine, size_curve, solve
from mipprune.surrogates import Additive, Quadratic
from mipprune.testing.problems import random_costs, random_problem


def latency(sizes: list[int], seed: int = 0) -> CostModel:
    """A chain of groups with a table for every neighbouring pair, rising in steps and with noise, as measured ones."""
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(range(len(sizes))))
    values = [np.add.outer(7 * np.arange(sizes[g] + 1) // 3, 5 * np.arange(sizes[h] + 1) // 2)
              + rng.integers(0, 6, (sizes[g] + 1, sizes[h] + 1)) for g, h in pairs]
    left, right = (np.array(side) for side in zip(*pairs))
    none = CostModel(tuple("abcdefg"[: len(sizes)]), np.array(sizes), {})
    return none.with_resource("latency", TabulatedCost(11, left, right, tuple(values)))


def test_a_cost_is_the_sum_of_its_tables_on_its_lattice() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        costs = random_costs(rng, 9, table=True)
        choices = [np.sort(rng.permutation(size + 1)[: rng.integers(1, size + 2)]) for size in costs.sizes]
        for cost in costs.resources.values():
            offset, unit = cost.lattice
            tables = cost.tables(choices)
            assert len({scope for scope, _ in tables}) == len(tables)
            for where in itertools.product(*(range(len(c)) for c in choices)):
                counts = np.array([c[i] for c, i in zip(choices, where, strict=True)])
                value = cost.constant + sum(int(t[tuple(where[g] for g in scope)]) for scope, t in tables)
                assert cost(counts) == value == cost.of_counts(counts[None])[0]
                assert (value - offset) % unit == 0
            assert {v for scope, _ in tables for v in scope} <= cost.groups
            assert {scope for scope, _ in tables if len(scope) == 2} == cost.pairs
            assert Record.from_dict(cost.to_dict()) == cost
            saved = cost.marginal(costs.sizes)
            for group, size in enumerate(costs.sizes):
                fewer = costs.sizes.copy()
                fewer[group] = size - 1
                assert saved[group] == cost(costs.sizes) - cost(fewer)


def test_tables_that_make_no_sense() -> None:
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(BudgetError, match="whole numbers"):
        TabulatedCost(0, np.array([0]), np.array([0]), (np.array([0.0, 0.5]),))
    with pytest.raises(BudgetError, match="left <= right"):
        TabulatedCost(0, np.array([1]), np.array([0]), (np.zeros((2, 2)),))
    with pytest.raises(BudgetError, match="one entry per table"):
        TabulatedCost(0, np.array([0]), none, ())
    with pytest.raises(BudgetError, match=r"expected a table of shape \(4,\), got \(3,\)"):
        CostModel(("a",), np.array([3]), {"latency": TabulatedCost(0, np.array([0]), np.array([0]), (np.zeros(3),))})
    other = TabulatedCost(0, np.array([0]), np.array([1]), (np.ones((4, 4)),))
    with pytest.raises(BudgetError, match="speaks of groups"):
        CostModel(("a",), np.array([3]), {"latency": other})


@pytest.mark.parametrize("solver", ["scip", "highs", "brute"])
def test_a_latency_budget_with_multiples_is_met_exactly(solver: str) -> None:
    costs = latency([6, 5])
    rng = np.random.default_rng(1)
    surrogate = Quadratic(rng.random(11), 0.4 * rng.normal(size=(4, 11)))
    limit = 0.6 * costs["latency"](costs.sizes)
    problem = Problem.minimize_drop(surrogate, costs=costs, budgets={"latency": limit}, multiples=[3, 2])
    solution = solve(problem, solver)
    masks = np.array(list(itertools.product([False, True], repeat=11)))
    evaluations = [problem.evaluate(mask) for mask in masks]
    assert solution.objective == pytest.approx(min(e.objective for e in evaluations if e.feasible), abs=1e-7)
    assert solution.proved
    counts = costs.counts(solution.kept)
    assert counts[0] % 3 == 0
    assert counts[1] in (0, 2, 4, 5)


@pytest.mark.parametrize("multiples", [1, 2])
@pytest.mark.parametrize("objective", ["drop", "latency"])
def test_layers_are_recombined_under_latency(objective: str, multiples: int) -> None:
    for seed in range(6):
        sizes = [4, 3, 4]
        costs, rng = latency(sizes, seed), np.random.default_rng(seed)
        layers = [Quadratic(rng.random(n), 0.5 * rng.normal(size=(n, n))) for n in sizes]
        curves = [size_curve(layer) for layer in layers]
        joined = Quadratic(np.concatenate([s.gradient for s in layers]),
                           scipy.linalg.block_diag(*(s.factor for s in layers)))
        wanted: dict[str, Any] = (
            {"budgets": {"latency": 0.6 * costs["latency"](costs.sizes)}} if objective == "drop" else {"max_drop": 2.0}
        )
        problem = Problem.build(joined, objective, costs=costs, multiples=multiples, **wanted)
        best = solve(problem, "brute")
        for solver in ("highs", "scip"):
            found = recombine(curves, costs, objective=objective, multiples=multiples, solver=solver, **wanted)
            assert problem.evaluate(found.kept).feasible
            assert found.objective == pytest.approx(best.objective, abs=1e-7)
            assert found.bound == pytest.approx(best.objective, abs=1e-6)


def test_multiples_that_no_size_meets() -> None:
    with pytest.raises(InfeasibleError, match="multiple of 4") as error:
        Problem.minimize_units(Additive(np.ones(7)), max_drop=9.0, multiples=4, min_keep=5, remove=[0])
    assert error.value.requirement == "multiples"
    curve = size_curve(Quadratic(np.ones(7), np.eye(7)), sizes=[6, 5])
    with pytest.raises(InfeasibleError, match="multiple of 4"):
        recombine([curve], CostModel.units_only(7), max_drop=9.0, objective="units", multiples=4)
    with pytest.raises(BudgetError, match="at least 1"):
        Problem.minimize_units(Additive(np.ones(7)), max_drop=9.0, multiples=0)
    problem = Problem.minimize_units(Additive(np.ones(7)), max_drop=2.5, multiples=4)
    assert solve(problem, "highs").n_kept == 7  # 4 would drop by 3, and a whole group may always stay
    assert "no multiple of 4" in problem.evaluate(np.arange(7) < 6).violations[-1]


@pytest.mark.parametrize("suffix", [".mps", ".lp", ".cip"])
def test_an_exported_problem_is_the_problem_or_a_relaxation(tmp_path: Path, suffix: str) -> None:
    tight = 0
    for seed in range(24):
        try:
            problem = random_problem(seed, wide=True)
            optimum = solve(problem, "brute")
        except InfeasibleError:
            continue
        path = tmp_path / f"p{suffix}"
        values = []
        for points in (None, (~optimum.kept).astype(float)[None]):
            export_problem(path, problem, points)
            model = pyscipopt.Model()
            model.hideOutput()
            model.readProblem(str(path))
            model.optimize()
            values.append(model.getObjVal() if model.getStatus() == "optimal" else -np.inf)
        assert max(values) <= optimum.objective + 1e-5 * max(1.0, abs(optimum.objective)), seed
        if problem.surrogate.is_linear:
            assert values[0] == pytest.approx(optimum.objective, abs=1e-5), seed
        tight += max(values) >= optimum.objective - 1e-3
    assert tight >= 8
    with pytest.raises(SolverError, match=r"\.mps"):
        export_problem(tmp_path / "p.txt", problem)
    assert [p.name for p in tmp_path.iterdir()] == [f"p{suffix}"]  # nothing left behind
