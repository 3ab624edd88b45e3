"""The solvers by name, and what each can do."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import MissingDependencyError, SolverError
from .backend import Backend
from .linear import LinearMip
from .linear_solver import LinearOutcome, LinearSolver

__all__ = [
    "BACKENDS", "LINEAR_SOLVERS", "Features", "backend_features", "linear_solver", "register_backend", "solve_linear",
]


@dataclasses.dataclass(frozen=True)
class Features:
    """What a solver can do, and where its code lives.

    Attributes:
        name: the name that ``solve(solver=...)`` takes.
        home: module and class in this room, imported when the solver is asked for; or what makes a solver when called.
        packages: packages that it needs.
        parallel: ``threads`` above 1 are used.
    """

    name: str
    home: tuple[str, str] | Callable[[], Any]
    packages: tuple[str, ...] = ()
    parallel: bool = False

    def create(self) -> Any:
        """A solver; :class:`MissingDependencyError` if a package is missing."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingDependencyError(
                    f"solver {self.name!r} needs the package {package!r}: pip install {package}"
                ) from error
        if callable(self.home):
            return self.home()
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
        Features("cbc", ("pulp_solvers", "CbcSolver"), packages=("pulp",), parallel=True),
        Features("scip", ("scip_model", "ScipSolver"), packages=("pyscipopt",)),
    )
}

#: Backends of :func:`mipprune.solver.api.solve`.
BACKENDS = {
    features.name: features
    for features in (
        Features("scip", ("scip_tree", "ScipTree"), packages=("highspy", "pyscipopt")),
        Features("highs", ("multitree", "HighsTrees"), packages=("pulp", "highspy"), parallel=True),
        Features("cbc", ("multitree", "CbcTrees"), packages=("highspy", "pulp"), parallel=True),
        Features("nlp", ("convex_backend", "ConvexTrees")),
        Features("brute", ("brute", "Brute")),
    )
}


_OURS = frozenset({"auto", *BACKENDS})


def register_backend(
    name: str, backend: Callable[[], Backend], *, packages: tuple[str, ...] = (), parallel: bool = False
) -> None:
    """Make a solver of yours known to :func:`solve` in this process.

    Args:
        name: what ``solve(solver=...)`` takes; a later registration of the same name wins.
        backend: makes a fresh :class:`~mipprune.solver.backend.Backend` for every search, usually its class.
        packages: what must be importable; the last one's version is reported as :attr:`Solution.version`.
        parallel: it uses ``threads`` above 1.

    Raises:
        SolverError: the name is empty or one of the package's own.
    """
    if not name or name in _OURS:
        raise SolverError(f"a solver can't be registered as {name!r}: choose a name other than {sorted(_OURS)}")
    BACKENDS[name] = Features(name, backend, packages, parallel)


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
