"""What every solver of a :class:`~mipprune.solver.linear.LinearMip` promises, and the check on what it hands back."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections.abc import Callable

import numpy as np

from ..records import Record, frozen_array
from .linear import LinearMip

__all__ = ["LinearOutcome", "LinearSolver", "recheck", "run_interruptible"]

#: Why a linear solver stopped; the first two are proofs.
LINEAR_TERMINATIONS = ("optimal", "infeasible", "unbounded", "time_limit", "interrupted", "solver_error")


@dataclasses.dataclass(frozen=True, eq=False)
class LinearOutcome(Record):
    """What became of a linear MIP.

    Attributes:
        x: float64, shape (N,), a solution that passed :func:`recheck` (integer columns are whole numbers), or ``None``.
        objective: objective of ``x`` with the constant, recomputed; ``inf`` without a solution.
        bound: proved lower bound on the objective (``-inf`` if none, ``inf`` if infeasible), as far as the solver's
            tolerances go.
        termination: one of :data:`LINEAR_TERMINATIONS`.  "infeasible" and "unbounded" are findings, not errors.
        seconds: wall-clock time.
    """

    x: np.ndarray | None
    objective: float
    bound: float
    termination: str
    seconds: float

    @classmethod
    def of(cls, mip: LinearMip, x: np.ndarray | None, bound: float, termination: str, seconds: float) -> LinearOutcome:
        """Recheck ``x`` on ``mip``, recompute its objective; ``bound`` comes without the problem's constant."""
        bound += mip.constant
        x = None if x is None else recheck(mip, x)
        if x is None:
            if termination == "optimal":
                termination = "solver_error"  # an "optimum" that breaks its own constraints
            return cls(None, np.inf, np.inf if termination == "infeasible" else bound, termination, seconds)
        objective = float(mip.c @ x) + mip.constant
        return cls(frozen_array(x), objective, min(bound, objective), termination, seconds)


class LinearSolver(abc.ABC):
    """Solves a :class:`LinearMip` to a relative gap of zero."""

    @abc.abstractmethod
    def solve_linear(
        self, mip: LinearMip, *, time_limit: float | None, threads: int, start: np.ndarray | None, seed: int
    ) -> LinearOutcome:
        """Solve; on time-out or Ctrl-C return the incumbent (``start`` is a solution to begin with, or ``None``)."""


def recheck(mip: LinearMip, x: np.ndarray, tolerance: float = 1e-5) -> np.ndarray | None:
    """``x`` with its integer columns rounded, or ``None`` when it is no solution.

    Solvers that run out of time have been seen to return fractional or all-zero vectors under an innocent status.
    The tolerance is absolute on integrality, and relative to the size of each row's terms on rows.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.shape != mip.c.shape or not np.isfinite(x).all():
        return None
    whole = np.round(x)
    if (np.abs(x - whole)[mip.integer] > tolerance).any():
        return None
    x = np.where(mip.integer, whole, x)
    scale = 1.0 + np.abs(x)
    if (mip.lower - x > tolerance * scale).any() or (x - mip.upper > tolerance * scale).any():
        return None
    matrix = mip.matrix
    activity, size = matrix @ x, 1.0 + abs(matrix) @ np.abs(x)
    if (mip.row_lower - activity > tolerance * size).any() or (activity - mip.row_upper > tolerance * size).any():
        return None
    return np.clip(x, mip.lower, mip.upper)


def run_interruptible(run: Callable[[], object], stop: Callable[[], object]) -> bool:
    """Call ``run`` in a thread while this one waits; on Ctrl-C call ``stop`` and wait on.  Returns whether that was so.

    Native solvers hold the thread that calls them: only a waiting thread can see a ``KeyboardInterrupt``.  ``run``
    must release the GIL.  What it raises is raised here.
    """
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as error:  # carried over to the waiting thread
            failure.append(error)

    previous = threading.stack_size(64 << 20)  # solvers recurse deeper than the small default of some systems
    try:
        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
    finally:
        threading.stack_size(previous)
    interrupted = False
    while True:
        try:
            thread.join(0.05)
            if not thread.is_alive():
                break
        except KeyboardInterrupt:
            interrupted = True
            stop()
    if failure:
        raise failure[0]
    return interrupted
