"""``solve``: pick a backend, run it, and say what came of it."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np

from ..errors import BudgetError, InfeasibleError, SolverError
from ..surrogates import LinearHead, Quadratic
from .certificate_search import certify
from .convex_backend import takes
from .problem import Problem
from .registry import BACKENDS, backend_features
from .search import Search
from .solution import Solution

__all__ = ["solve"]

#: Up to this many undecided units ``"auto"`` enumerates.
FEW_UNITS = 10
#: Longest time to find out which drop is possible when ``max_drop`` isn't, in seconds.
EXPLAIN_SECONDS = 10.0
#: Longest search for a certificate, in seconds.
CERTIFY_SECONDS = 30.0


def solve(
    problem: Problem,
    solver: str = "auto",
    time_limit: float | None = None,
    threads: int = 1,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = False,
    certificate: bool = False,
) -> Solution:
    """Choose the units to keep, and prove how good the choice is.

    Args:
        problem: what to minimise and under which requirements.
        solver: ``"scip"`` (one branch and bound with tangent cuts on demand), ``"highs"`` or ``"cbc"`` (a sequence of
            linear MIPs), ``"nlp"`` (convex relaxations and trees per size, no linear program; problems of one group,
            and the least drop over several groups with at most a million vectors of counts), ``"brute"``
            (enumeration, at most 22 undecided units), or ``"auto"``: brute for up to 10 undecided units, HiGHS when
            the problem is linear, nlp for the heads and quadratics that it takes, SCIP for all else.
        time_limit: seconds; a search that runs out of time returns its incumbent and bound.  Ctrl-C does the same.
        threads: for HiGHS and CBC; SCIP and enumeration use one.  (numpy's own threads are set by ``OMP_NUM_THREADS``.)
        start: bool, shape (n,): kept units to begin with, feasible or not.
        seed: of the heuristics and of the solver's random choices.
        progress: show a line with incumbent and bound.
        certificate: also search a proof that can be checked without a solver, see :func:`~mipprune.solver.certify`
            (30 seconds at most, or what is left of ``time_limit``, but a second at least).

    Returns:
        The incumbent, feasible by :meth:`Problem.evaluate`, with the proved bound and why the search stopped.

    Raises:
        BudgetError: a time limit that isn't above 0.
        InfeasibleError: proved that no selection meets all requirements; ``nearest`` is the nearest value of the
            requirement that can be met.
        SolverError: an unknown solver, a solver that broke down, or no selection found before the search was stopped.
        MissingDependencyError: the solver's package is not installed.
    """
    if time_limit is not None and not time_limit > 0:
        raise BudgetError(f"time_limit must be positive, got {time_limit}")
    if start is not None:
        start = np.asarray(start, dtype=bool)
        if start.shape != (problem.n_units,):
            raise ValueError(f"start: expected a mask of {problem.n_units} units, got shape {start.shape}")
    features = backend_features(_automatic(problem) if solver == "auto" else solver)
    if threads != 1 and not features.parallel:
        warnings.warn(f"{features.name} searches on one thread, threads={threads} is not used", stacklevel=2)
    backend = features.create()
    with Search(problem, time_limit=time_limit, threads=threads, seed=seed, progress=progress) as search:
        try:
            termination = backend.run(search, start)
        except KeyboardInterrupt:
            termination = "interrupted"
    if search.kept is None or search.evaluation is None:
        raise _failure(search, features.name, termination)
    solution = Solution(
        kept=search.kept,
        objective=search.objective,
        bound=min(search.bound, search.objective),
        drop=search.evaluation.drop,
        costs=search.evaluation.costs,
        objective_kind=problem.objective,
        termination="optimal" if search.closed else termination,
        solver=features.name,
        version=features.version,
        seconds=search.seconds,
        n_cuts=search.n_cuts,
        progress=search.progress,
    )
    if not certificate:
        return solution
    return certify(problem, solution, time_limit=min(CERTIFY_SECONDS, max(1.0, search.remaining or CERTIFY_SECONDS)))


def _automatic(problem: Problem) -> str:
    """The backend that ``solver="auto"`` stands for."""
    if int((~(problem.keep | problem.remove)).sum()) <= FEW_UNITS:
        return "brute"
    needs_drop = problem.objective == "drop" or problem.max_drop is not None
    if problem.surrogate.is_linear or not needs_drop:
        return "highs"
    if isinstance(problem.surrogate, LinearHead | Quadratic) and takes(problem):
        return "nlp"
    return "scip" if BACKENDS["scip"].available else "highs"


def _failure(search: Search, solver: str, termination: str) -> Exception:
    """The error of a search without an incumbent."""
    problem = search.problem
    if termination != "infeasible":
        known = f"; the smallest drop seen is {search.least_drop:.6g}" if math.isfinite(search.least_drop) else ""
        return SolverError(
            f"{solver} stopped ({termination}) after {search.seconds:.1f} s before it found a selection that meets all "
            f"requirements, and without a proof that there is none{known}: allow more time or give a start"
        )
    if problem.max_drop is None:
        requirement = "forbidden" if len(problem.forbidden) else "budgets"
        beside = " beside the forbidden masks" if requirement == "forbidden" else ""
        return InfeasibleError(
            f"no selection meets the budgets, pins and minimum counts{beside}", requirement=requirement
        )
    easier = dataclasses.replace(problem, objective="drop", max_drop=None)
    try:
        least = solve(easier, solver, time_limit=EXPLAIN_SECONDS, seed=search.seed)
    except (InfeasibleError, SolverError) as error:
        return error
    if least.drop <= problem.drop_limit:
        return SolverError(
            f"{solver} claims that max_drop = {problem.max_drop:.6g} can't be met, but a selection drops by "
            f"{least.drop:.6g}: numerical trouble, try another solver"
        )
    limits = "within the other requirements " if problem.budgets or len(problem.forbidden) else ""
    word = "possible" if least.proved else "found"
    return InfeasibleError(
        f"max_drop is {problem.max_drop:.6g}, but the smallest drop {limits}{word} is {least.drop:.6g}: raise max_drop"
        f"{' or the budgets' if problem.budgets else ''}",
        requirement="max_drop",
        nearest=least.drop,
    )
