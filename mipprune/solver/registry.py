"""The solvers by name, and what each can do."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import time
from typing import Any

import numpy as np

from ..errors import MissingDependencyError, SolverError
from .linear import LinearMip
from .linear_solver import LinearOutcome, LinearSolver

__all__ = ["BACKENDS", "LINEAR_SOLVERS", "Features", "backend_features", "linear_solver", "solve_linear"]


@dataclasses.dataclass(frozen=True)
class Features:
    """What a solver can do, and where its code lives.

    Attributes:
        name: the name that ``solve(solver=...)`` takes.
        home: module and class in this room; imported when the solver is asked for.
        packages: packages that it needs.
        single_tree: one branch and bound that asks for tangent cuts on its way, instead of one search after another.
        parallel: ``threads`` above 1 are used.
        gives_bound: a search that is stopped early still yields a bound of its own.
        max_free: most units that may be undecided, or ``None`` for any number.
        one_count: only for problems of a single group, whose costs depend on the number of kept units alone.
    """

    name: str
    home: tuple[str, str]
    packages: tuple[str, ...] = ()
    single_tree: bool = False
    parallel: bool = False
    gives_bound: bool = True
    max_free: int | None = None
    one_count: bool = False

    def create(self) -> Any:
        """A solver; :class:`MissingDependencyError` if a package is missing."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingDependencyError(
                    f"solver {self.name!r} needs the package {package!r}: pip install {package}"
                ) from error
        module, kind = self.home
        return getattr(importlib.import_module(f".{module}", __package__), kind)()

    @property
    def version(self) -> str:
        """Version of its last package, "" without one."""
        return importlib.metadata.version(self.packages[-1]) if self.packages else ""

    @property
    def available(self) -> bool:
        """Whether its packages can be imported."""
        try:
            self.create()
        except MissingDependencyError:
            return False
        return True


#: Solvers of linear MIPs.
LINEAR_SOLVERS = {
    features.name: features
    for features in (
        Features("highs", ("pulp_solvers", "HighsSolver"), packages=("pulp", "highspy"), parallel=True),
        Features("cbc", ("pulp_solvers", "CbcSolver"), packages=("pulp",), parallel=True, gives_bound=False),
        Features("scip", ("scip_model", "ScipSolver"), packages=("pyscipopt",)),
    )
}

#: Backends of :func:`mipprune.solver.api.solve`.
BACKENDS = {
    features.name: features
    for features in (
        Features("scip", ("scip_tree", "ScipTree"), packages=("highspy", "pyscipopt"), single_tree=True),
        Features("highs", ("multitree", "HighsTrees"), packages=("pulp", "highspy"), parallel=True),
        Features("cbc", ("multitree", "CbcTrees"), packages=("highspy", "pulp"), parallel=True, gives_bound=False),
        Features("nlp", ("convex_backend", "ConvexTrees"), one_count=True),
        Features("brute", ("brute", "Brute"), gives_bound=False, max_free=22),
    )
}


def backend_features(name: str) -> Features:
    """The backend called ``name``; :class:`SolverError` lists the known ones."""
    if name not in BACKENDS:
        raise SolverError(f"unknown solver {name!r}; known are {['auto', *BACKENDS]}")
    return BACKENDS[name]


def linear_solver(name: str) -> LinearSolver:
    """The solver of linear MIPs called ``name``.

    Raises:
        SolverError: no solver of that name.
        MissingDependencyError: its package is not installed.
    """
    if name not in LINEAR_SOLVERS:
        raise SolverError(f"unknown solver {name!r} of linear programs; known are {sorted(LINEAR_SOLVERS)}")
    solver: LinearSolver = LINEAR_SOLVERS[name].create()
    return solver


def solve_linear(
    mip: LinearMip,
    solver: str = "highs",
    time_limit: float | None = None,
    threads: int = 1,
    start: np.ndarray | None = None,
    seed: int = 0,
) -> LinearOutcome:
    """Solve a linear MIP to a relative gap of zero.

    Args:
        mip: the problem; an infeasible one yields the termination ``"infeasible"``, not an error.
        solver: ``"highs"``, ``"cbc"`` or ``"scip"``.
        time_limit: seconds; what was found until then is returned.  Ctrl-C likewise.
        threads: used by HiGHS and CBC.
        start: float64 of shape (N,), a solution to begin with; one that breaks a row is left out by the solver.
        seed: of the solver's own random choices.

    Raises:
        SolverError: an unknown solver, or one that broke down.
        MissingDependencyError: the solver's package is not installed.
    """
    begin = time.perf_counter()
    backend = linear_solver(solver)
    if mip.n_columns == 0:
        feasible = bool((mip.row_lower <= 0).all() and (mip.row_upper >= 0).all())
        x, termination = (np.zeros(0), "optimal") if feasible else (None, "infeasible")
        return LinearOutcome.of(mip, x, 0.0, termination, time.perf_counter() - begin)
    if start is not None:
        start = np.asarray(start, dtype=np.float64)
        if start.shape != (mip.n_columns,):
            raise ValueError(f"start: expected shape ({mip.n_columns},), got {start.shape}")
    return backend.solve_linear(mip, time_limit=time_limit, threads=threads, start=start, seed=seed)
