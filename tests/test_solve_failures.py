"""Solvers that lie, crash, are killed or interrupted: what is left is a verified incumbent or a clear error."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pulp
import pytest

from mipprune.errors import SolverError
from mipprune.solver import LinearMip, MipBuilder, Problem, Solution, scip_tree, solve, solve_linear
from mipprune.solver.oracles import QuadraticOracle
from mipprune.surrogates import Quadratic

posix = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


def hard_problem(n: int = 80) -> Problem:
    """A quadratic whose gap no solver closes in half a minute."""
    rng = np.random.default_rng(0)
    surrogate = Quadratic(rng.random(n), rng.normal(size=(n, n)) / np.sqrt(n))
    return Problem.minimize_drop(surrogate, budgets={"units": n // 2})


def small_mip() -> LinearMip:
    """Two of three."""
    builder = MipBuilder()
    columns = builder.add_columns(3, cost=1.0, lower=0.0, upper=1.0, integer=True)
    builder.add_row(columns, np.ones(3), lower=2.0)
    return builder.build()


def is_sound(problem: Problem, solution: Solution) -> bool:
    again = problem.evaluate(solution.kept)
    return again.feasible and again.objective == solution.objective and solution.bound <= solution.objective


def solve_or_say_why(problem: Problem, solver: str, time_limit: float) -> Solution | str:
    """The solution, or the error's text."""
    try:
        return solve(problem, solver=solver, time_limit=time_limit)
    except SolverError as error:
        return str(error)


def cbc_that_answers(monkeypatch: pytest.MonkeyPatch, value: float, sol_status: int) -> None:
    """CBC's habit on time-out: some vector under the status "optimal"."""

    def answer(self: Any, lp: Any, **options: Any) -> int:
        for variable in lp.variables():
            variable.varValue = value
        lp.assignStatus(pulp.LpStatusOptimal, sol_status)
        return pulp.LpStatusOptimal

    kind = pulp.PULP_CBC_CMD if "PULP_CBC_CMD" in pulp.listSolvers() else pulp.COIN_CMD
    monkeypatch.setattr(kind, "actualSolve", answer)


@pytest.mark.parametrize("value", [2 / 3, 0.0])
@pytest.mark.parametrize("sol_status", [pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible])
def test_a_fractional_or_zero_solution_of_cbc_is_no_solution(
    value: float, sol_status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cbc_that_answers(monkeypatch, value, sol_status)
    outcome = solve_linear(small_mip(), "cbc")
    assert outcome.x is None
    assert outcome.termination in ("solver_error", "time_limit")
    assert outcome.bound == -np.inf
    problem = hard_problem()
    solution = solve(problem, solver="cbc")
    assert is_sound(problem, solution)
    assert solution.termination != "optimal"
    assert not solution.proved


def test_a_crash_of_the_solver_leaves_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise pulp.PulpSolverError("segmentation fault")

    kind = pulp.PULP_CBC_CMD if "PULP_CBC_CMD" in pulp.listSolvers() else pulp.COIN_CMD
    monkeypatch.setattr(kind, "actualSolve", crash)
    problem = hard_problem()
    solution = solve(problem, solver="cbc")
    assert is_sound(problem, solution)
    assert solution.termination == "solver_error"
    with pytest.raises(SolverError, match="segmentation fault"):
        solve_linear(small_mip(), "cbc")


def test_a_crash_of_scip_leaves_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(model: Any) -> bool:
        raise RuntimeError("SCIP: error in LP solver!")

    monkeypatch.setattr(scip_tree, "optimize", crash)
    problem = hard_problem()
    solution = solve(problem, solver="scip")
    assert is_sound(problem, solution)
    assert solution.termination == "solver_error"


def test_a_crash_of_highs_leaves_the_incumbent(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Any, lp: Any) -> None:
        raise pulp.PulpSolverError("HiGHS: numerical trouble")

    monkeypatch.setattr(pulp.HiGHS, "actualSolve", crash)
    problem = hard_problem()
    solution = solve(problem, solver="highs", time_limit=20)
    assert is_sound(problem, solution)
    assert solution.termination == "solver_error"
    with pytest.raises(SolverError, match="numerical trouble"):
        solve_linear(small_mip(), "highs")


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("singular"), MemoryError("curvature")])
@pytest.mark.parametrize("calls", [2, 40])
def test_a_crash_of_the_oracle_leaves_the_incumbent(
    error: Exception, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, left, real = hard_problem(), [calls], QuadraticOracle.value_and_gradient

    def crash(self: QuadraticOracle, z: np.ndarray) -> tuple[float, np.ndarray]:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(self, z)

    monkeypatch.setattr(QuadraticOracle, "value_and_gradient", crash)
    solution = solve(problem, solver="nlp", time_limit=20)
    assert left[0] < 0
    assert is_sound(problem, solution)
    assert solution.termination == "solver_error"


def test_a_crash_before_any_incumbent_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: QuadraticOracle, z: np.ndarray) -> tuple[float, np.ndarray]:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(QuadraticOracle, "value_and_gradient", crash)
    with pytest.raises(SolverError, match="nlp broke down: singular"):
        solve(hard_problem(), solver="nlp", time_limit=20)


def children() -> set[int]:
    """Process numbers of this process's children."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return found


@contextlib.contextmanager
def on_new_child(act: Callable[[int], None]) -> Iterator[list[int]]:
    """Do something a moment after the first child process is there; yields the numbers of those it was done for."""
    before, done = children(), threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not done.is_set() and not seen:
            for child in children() - before:
                time.sleep(0.1)
                seen.append(child)
                act(child)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for child processes in /proc")
def test_a_killed_cbc_leaves_the_incumbent() -> None:
    problem = hard_problem()
    with on_new_child(lambda child: os.kill(child, signal.SIGKILL)) as killed:
        solution = solve(problem, solver="cbc", time_limit=20)
    assert killed
    assert is_sound(problem, solution)
    assert not solution.proved


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for child processes in /proc")
def test_ctrl_c_ends_the_cbc_that_was_running() -> None:
    problem = hard_problem()
    gc.collect()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with on_new_child(lambda child: os.kill(os.getpid(), signal.SIGINT)) as seen:
            solution = solve(problem, solver="cbc", time_limit=20)
    finally:
        signal.signal(signal.SIGINT, handler)
    left = children() & set(seen)
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert seen
    assert not left
    assert solution.termination == "interrupted"
    assert is_sound(problem, solution)


@posix
@pytest.mark.parametrize("solver", ["nlp", "scip", "highs", "cbc"])
@pytest.mark.parametrize("after", [0.02, 0.2, 1.5])
def test_ctrl_c_at_any_moment(solver: str, after: float) -> None:
    problem = hard_problem()
    gc.collect()  # Python loses an interrupt that arrives in the callback of a dying object, here of an earlier test's
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        answer = solve_or_say_why(problem, solver, 30)
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)
    if isinstance(answer, str):
        assert "interrupted" in answer
    else:
        assert is_sound(problem, answer)
        # on a fast machine the answer may be there before the signal is
        assert answer.termination == "interrupted" or (answer.proved and answer.seconds < after + 1)


@pytest.mark.parametrize("solver", ["nlp", "scip", "highs", "cbc"])
def test_a_short_time_limit_leaves_a_sound_incumbent_or_says_so(solver: str) -> None:
    problem = hard_problem()
    for limit in (0.01, 0.1):
        answer = solve_or_say_why(problem, solver, limit)
        if isinstance(answer, str):
            assert "time_limit" in answer
        else:
            assert is_sound(problem, answer)
            assert answer.seconds < limit + 5
