"""HiGHS and CBC through PuLP.  Only what PuLP 3.3 and 4 have in common is used."""

from __future__ import annotations

import math
import subprocess
import tempfile
import time
import traceback
from typing import Any

import numpy as np
import pulp

from ..errors import SolverError
from .linear import LinearMip
from .linear_solver import LinearOutcome, LinearSolver, run_interruptible

__all__ = ["CbcSolver", "HighsSolver"]


class HighsSolver(LinearSolver):
    """HiGHS, inside this process."""

    def solve_linear(
        self, mip: LinearMip, *, time_limit: float | None, threads: int, start: np.ndarray | None, seed: int
    ) -> LinearOutcome:
        import highspy

        begin = time.perf_counter()
        model, variables = _pulp_model(mip)
        interrupted = False

        class Interruptible(pulp.HiGHS):
            """PuLP's HiGHS with a start (3.3 has none) and a search that Ctrl-C can stop."""

            def callSolver(self, lp: Any) -> None:
                nonlocal interrupted
                highs = lp.solverModel
                highs.HandleUserInterrupt = True
                if start is not None:
                    highs.setSolution(len(start), np.arange(len(start), dtype=np.int32), start)
                interrupted = run_interruptible(highs.solve, highs.cancelSolve)

        solver = Interruptible(
            msg=False, gapRel=0.0, gapAbs=0.0, threads=threads, timeLimit=_left(time_limit, begin),
            random_seed=seed % 2**31,
        )
        try:
            model.solve(solver)
        except pulp.PulpSolverError as error:
            raise SolverError(f"HiGHS broke down: {error}") from error
        seconds = time.perf_counter() - begin

        highs, status = model.solverModel, highspy.HighsModelStatus
        termination = {
            status.kOptimal: "optimal",
            status.kInfeasible: "infeasible",
            status.kUnbounded: "unbounded",
            status.kTimeLimit: "time_limit",
        }.get(highs.getModelStatus(), "interrupted" if interrupted else "solver_error")
        info = highs.getInfo()
        feasible = info.primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible)
        if mip.integer.any():
            bound = info.mip_dual_bound
        else:
            bound = info.objective_function_value if termination == "optimal" else -math.inf
        return LinearOutcome.of(mip, _values(variables) if feasible else None, bound, termination, seconds)


class CbcSolver(LinearSolver):
    """CBC, as a command that PuLP starts.  A search that is stopped early yields no bound."""

    def solve_linear(
        self, mip: LinearMip, *, time_limit: float | None, threads: int, start: np.ndarray | None, seed: int
    ) -> LinearOutcome:
        begin = time.perf_counter()
        model, variables = _pulp_model(mip)
        if start is not None:
            for variable, value in zip(variables, start.tolist(), strict=True):
                variable.setInitialValue(value, check=False)
        # PuLP 3.3 brings a binary, PuLP 4 finds one that is installed beside it
        kind = pulp.PULP_CBC_CMD if "PULP_CBC_CMD" in pulp.listSolvers() else pulp.COIN_CMD
        solver = kind(
            msg=False,
            gapRel=0.0,
            gapAbs=0.0,
            threads=threads if threads > 1 else None,
            timeLimit=_left(time_limit, begin),
            warmStart=start is not None,
            options=["increment 1e-9", f"randomCbcSeed {seed % 2**31}"],  # its default skips gains below 1e-5
        )
        interrupted = False
        with tempfile.TemporaryDirectory(prefix="mipprune-") as folder:
            solver.tmpDir = folder  # an interrupted PuLP leaves its files behind
            try:
                model.solve(solver)
            except KeyboardInterrupt as error:
                _terminate_children(error)
                interrupted = True
            except pulp.PulpSolverError as error:
                raise SolverError(f"CBC broke down: {error}") from error
        seconds = time.perf_counter() - begin

        if interrupted:
            return LinearOutcome.of(mip, None, -math.inf, "interrupted", seconds)
        proved = model.sol_status == pulp.LpSolutionOptimal
        if model.status == pulp.LpStatusInfeasible:
            termination = "infeasible"
        elif model.status == pulp.LpStatusUnbounded:
            termination = "unbounded"
        else:
            termination = "optimal" if proved else "time_limit"
        outcome = LinearOutcome.of(mip, _values(variables), -math.inf, termination, seconds)
        if outcome.termination != "optimal":
            return outcome
        return LinearOutcome.of(mip, outcome.x, outcome.objective - mip.constant, termination, seconds)


def _pulp_model(mip: LinearMip) -> tuple[Any, list[Any]]:
    """The problem in PuLP's terms, and its variables in the order of the columns."""
    model = pulp.LpProblem("mipprune", pulp.LpMinimize)
    width = len(str(mip.n_columns))  # PuLP 3.3 sorts variables by name
    variables = [
        model.add_variable(f"x{j:0{width}d}", _finite(lo), _finite(up), "Integer" if whole else "Continuous")
        for j, (lo, up, whole) in enumerate(zip(mip.lower, mip.upper, mip.integer, strict=True))
    ]
    expression = getattr(pulp.LpAffineExpression, "from_list", pulp.LpAffineExpression)  # PuLP 4, PuLP 3.3
    model += expression(list(zip(variables, mip.c.tolist(), strict=True)))  # names every variable, zeros included
    indices, values, ends = mip.indices.tolist(), mip.values.tolist(), mip.indptr.tolist()
    for row, (lower, upper) in enumerate(zip(mip.row_lower.tolist(), mip.row_upper.tolist(), strict=True)):
        span = slice(ends[row], ends[row + 1])
        activity = expression([(variables[j], v) for j, v in zip(indices[span], values[span], strict=True)])
        if lower == upper:
            model += activity == lower
        else:
            if math.isfinite(lower):
                model += activity >= lower
            if math.isfinite(upper):
                model += activity <= upper
    return model, variables


def _left(time_limit: float | None, begin: float) -> float | None:
    """What is left of the time limit; never 0, which PuLP takes for no limit."""
    return None if time_limit is None else max(0.01, time_limit - (time.perf_counter() - begin))


def _finite(bound: float) -> float | None:
    return float(bound) if math.isfinite(bound) else None


def _values(variables: list[Any]) -> np.ndarray:
    """Values of the variables, NaN where the solver set none."""
    return np.array([math.nan if v.varValue is None else v.varValue for v in variables], dtype=np.float64)


def _terminate_children(error: BaseException) -> None:
    """End the solver process that PuLP was waiting for (it lives in a local variable of the interrupted frame)."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in list(frame.f_locals.values()):
            if isinstance(value, subprocess.Popen) and value.poll() is None:
                value.terminate()
                value.wait()
