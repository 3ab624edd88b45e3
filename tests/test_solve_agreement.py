"""SCIP, HiGHS and CBC against enumeration, on random instances over all surrogates, objectives and requirements."""

from __future__ import annotations

import builtins
import dataclasses
import math
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

from mipprune.errors import BudgetError, InfeasibleError, MissingDependencyError, SolverError
from mipprune.solver import Problem, Solution, solve
from mipprune.solver.search import Search
from mipprune.surrogates import Additive, LinearHead, Quadratic
from mipprune.testing.problems import random_problem, random_surrogate

SOLVERS = ("scip", "highs", "cbc")


def outcome(problem: Problem, solver: str) -> Solution | None:
    try:
        return solve(problem, solver=solver)
    except InfeasibleError:
        return None


#: Half of the 240 instances on every run; batches from 12 on with all surrogates, multiples and tables.
BATCHES = [pytest.param(b, marks=pytest.mark.slow) if b % 12 >= 6 else b for b in range(24)]


@pytest.mark.parametrize("batch", BATCHES)
def test_all_solvers_agree_with_enumeration(batch: int) -> None:
    infeasible = 0
    for seed in range(10 * batch, 10 * batch + 10):
        try:
            problem = random_problem(seed, wide=batch >= 12)
        except InfeasibleError:  # the counts alone rule everything out
            infeasible += 1
            continue
        reference = outcome(problem, "brute")
        for solver in (*SOLVERS, *(("nlp",) if len(problem.costs.groups) == 1 else ())):
            found = outcome(problem, solver)
            assert (found is None) == (reference is None), (seed, solver)
            if found is None or reference is None:
                continue
            assert found.objective == pytest.approx(reference.objective, abs=1e-6), (seed, solver)
            assert found.bound <= reference.objective + 1e-9, (seed, solver)
            assert found.proved, (seed, solver)
            assert problem.evaluate(found.kept).feasible
            assert Solution.from_dict(found.to_dict()) == found
    assert infeasible < 10


def head_problem(n: int = 60, samples: int = 400) -> Problem:
    rng = np.random.default_rng(0)
    surrogate = random_surrogate(rng, n, 2)
    surrogate = LinearHead(rng.random((samples, n)) * (rng.random((samples, n)) < 0.6), rng.normal(size=(10, n)),
                           np.zeros(10), rng.integers(0, 10, samples))
    return Problem.minimize_units(surrogate, max_drop=0.05)


@pytest.mark.parametrize("solver", [*SOLVERS, "nlp"])
def test_time_limit_keeps_incumbent_and_bound(solver: str) -> None:
    solution = solve(head_problem(), solver=solver, time_limit=0.3)
    assert solution.progress[-1][1:] == (solution.objective, solution.bound)
    assert solution.termination in ("time_limit", "optimal")
    assert head_problem().evaluate(solution.kept).feasible
    assert solution.bound <= solution.objective


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("solver", ["scip", "highs", "nlp"])
def test_ctrl_c_returns_the_incumbent(solver: str) -> None:
    problem = head_problem(n=120, samples=1500)
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        solution = solve(problem, solver=solver, time_limit=30)
    finally:
        timer.cancel()
        timer.join()
    assert solution.termination in ("interrupted", "optimal")
    assert problem.evaluate(solution.kept).feasible


def test_infeasible_tolerance_names_the_nearest() -> None:
    surrogate = Quadratic(np.full(5, 0.1), np.eye(5))
    problem = Problem.minimize_units(surrogate, max_drop=-1.0)
    for solver in (*SOLVERS, "nlp", "brute"):
        with pytest.raises(InfeasibleError, match="max_drop") as error:
            solve(problem, solver=solver)
        assert error.value.nearest == pytest.approx(0.0, abs=1e-9)


def test_budget_below_the_minimum_is_refused_at_once() -> None:
    with pytest.raises(InfeasibleError, match="smallest network allowed costs 3") as error:
        Problem.minimize_drop(Additive(np.ones(5)), budgets={"units": 2}, min_keep=3)
    assert error.value.nearest == 3


@pytest.mark.parametrize(("solver", "package"), [("scip", "pyscipopt"), ("highs", "highspy"), ("cbc", "pulp")])
def test_missing_package_is_named(solver: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    import sys

    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=rf"pip install.*{package}"):
        solve(Problem.minimize_units(Quadratic(np.ones(12), np.eye(12)), max_drop=2.0), solver=solver)


def test_unknown_solver_and_bad_arguments() -> None:
    problem = Problem.minimize_units(Additive(np.ones(4)), max_drop=2.0)
    with pytest.raises(SolverError, match="'gurobi'"):
        solve(problem, solver="gurobi")
    with pytest.raises(BudgetError, match="time_limit"):
        solve(problem, time_limit=0)
    with pytest.raises(SolverError, match="22"):
        solve(Problem.minimize_units(Additive(np.ones(30)), max_drop=2.0), solver="brute")
    with pytest.raises(BudgetError, match="unknown resource"):
        dataclasses.replace(problem, objective="flops")


def test_progress_is_what_the_search_knew_when(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 1.005, 2.0, 4.0, 4.01])
    monkeypatch.setattr(Search, "seconds", property(lambda self: next(moments)))
    search = Search(Problem.minimize_drop(Additive(np.array([1.0, 2.0, 4.0])), budgets={"units": 2}))
    keeps = ([True, False, True], [True, True, False], [False, True, True])
    search.raise_bound(0.25)
    search.offer(np.array(keeps[1]))
    search.raise_bound(0.5)  # within 2 % of the time before: replaces it
    search.offer(np.array(keeps[0]))
    search.offer(np.array(keeps[1]))  # worse, so nothing happens
    search.raise_bound(1.5)  # above the incumbent-to-be by the solver's tolerance, say
    search.offer(np.array(keeps[2]))
    assert search.progress == (
        (0.0, math.inf, 0.25), (1.005, 4.0, 0.5), (2.0, 2.0, 0.5), (4.01, 1.0, 1.0),
    )


def test_solutions_without_progress_are_read() -> None:
    solution = solve(Problem.minimize_drop(Additive(np.ones(5)), budgets={"units": 2}))
    data = solution.to_dict()
    assert data.pop("progress")
    assert Solution.from_dict(data) == dataclasses.replace(solution, progress=())
    del data["kept"]
    with pytest.raises(ValueError, match="kept"):
        Solution.from_dict(data)
