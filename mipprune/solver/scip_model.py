"""A linear MIP as a PySCIPOpt model that Ctrl-C can stop, and SCIP as a solver of linear MIPs."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyscipopt

from .linear import LinearMip
from .linear_solver import LinearOutcome, LinearSolver, run_interruptible

__all__ = ["ScipSolver", "add_start", "build_model", "optimize", "scip_termination"]


class ScipSolver(LinearSolver):
    """SCIP on a linear MIP.  It searches on one thread, whatever ``threads`` says."""

    def solve_linear(
        self, mip: LinearMip, *, time_limit: float | None, threads: int, start: np.ndarray | None, seed: int
    ) -> LinearOutcome:
        begin = time.perf_counter()
        model, variables = build_model(mip, time_limit=time_limit, seed=seed)
        if start is not None:
            add_start(model, variables, start)
        interrupted = optimize(model)
        termination = scip_termination(model, interrupted)
        x = None
        if model.getNSols() > 0:
            best = model.getBestSol()
            x = np.array([model.getSolVal(best, v) for v in variables])
        seconds = time.perf_counter() - begin
        return LinearOutcome.of(mip, x, dual_bound(model), termination, seconds)


def build_model(mip: LinearMip, *, time_limit: float | None, seed: int) -> tuple[Any, list[Any]]:
    """A silent model with its gap limits at zero, and its variables in the order of the columns.

    The objective leaves out ``mip.constant``.  Building counts against ``time_limit``: dense rows take seconds.
    """
    begin = time.perf_counter()
    model = pyscipopt.Model("mipprune")
    model.hideOutput()
    model.setParam("misc/catchctrlc", False)  # the waiting main thread sees the Ctrl-C instead
    model.setParam("randomization/randomseedshift", seed % 2**31)
    columns = zip(mip.c.tolist(), mip.lower.tolist(), mip.upper.tolist(), mip.integer.tolist(), strict=True)
    variables = [
        # PySCIPOpt's default lower bound is 0, None stands for no bound
        model.addVar(f"x{j}", "I" if whole else "C", lb=_finite(lower), ub=_finite(upper), obj=cost)
        for j, (cost, lower, upper, whole) in enumerate(columns)
    ]
    indices, values, ends = mip.indices.tolist(), mip.values.tolist(), mip.indptr.tolist()
    for row, (lower, upper) in enumerate(zip(mip.row_lower.tolist(), mip.row_upper.tolist(), strict=True)):
        span = slice(ends[row], ends[row + 1])
        activity = pyscipopt.quicksum(v * variables[j] for j, v in zip(indices[span], values[span], strict=True))
        model.addCons(pyscipopt.ExprCons(activity, lhs=_finite(lower), rhs=_finite(upper)))
    if time_limit is not None:
        model.setParam("limits/time", max(0.0, time_limit - (time.perf_counter() - begin)))
    return model, variables


def add_start(model: Any, variables: list[Any], start: np.ndarray) -> None:
    """Hand over a solution, which SCIP checks itself."""
    solution = model.createSol()
    for variable, value in zip(variables, start.tolist(), strict=True):
        model.setSolVal(solution, variable, value)
    model.addSol(solution)


def optimize(model: Any) -> bool:
    """Search until SCIP stops; whether Ctrl-C was the reason."""
    return run_interruptible(model.optimizeNogil, model.interruptSolve)


def scip_termination(model: Any, interrupted: bool) -> str:
    """SCIP's status in our words."""
    known = {
        "optimal": "optimal",
        "infeasible": "infeasible",
        "unbounded": "unbounded",
        "timelimit": "time_limit",
        "userinterrupt": "interrupted",
    }
    return known.get(model.getStatus(), "interrupted" if interrupted else "solver_error")


def dual_bound(model: Any) -> float:
    """SCIP's dual bound with its infinity made infinite."""
    bound = float(model.getDualbound())
    return math.copysign(math.inf, bound) if model.isInfinity(abs(bound)) else bound


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
