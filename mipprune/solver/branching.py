"""What the backends that branch have in common: relax, find an incumbent, and only then branch."""

from __future__ import annotations

import abc

import numpy as np

from .backend import Backend
from .count_vectors import CountVectors, bound_by_counts
from .formulate import Formulation, formulate
from .improve import improve, improve_by_kicks, round_by
from .relax import Relaxation, relax
from .search import Search

__all__ = ["TreeBackend"]

#: Longest time for kicks before branching, in seconds, and as a fraction of the time that is left.
KICK_SECONDS, KICK_FRACTION = 5.0, 0.15
#: Longest time for relaxations of count vectors, as a fraction of the time that is left.
COUNTS_FRACTION = 0.3


class TreeBackend(Backend):
    """Relax, find an incumbent, and branch if a gap is left."""

    def run(self, search: Search, start: np.ndarray | None) -> str:
        problem = search.problem
        if start is not None and not search.offer(start).feasible:
            improve(search, start)
        search.offer(~problem.remove)
        slope = problem.surrogate.drop_and_gradient(problem.remove.astype(float))[1]
        search.offer(round_by(problem, -slope))
        if problem.objective == "drop" and not problem.surrogate.is_linear:
            self._bound_by_counts(search)
            if search.closed:
                return "optimal"

        formulation = formulate(problem, search.objective if search.kept is not None else None)
        root = relax(formulation, search)
        if root.infeasible:
            return "infeasible"
        if not search.closed and root.x is not None:
            improve(search, round_by(problem, formulation.removed(root.x)))
            if search.kept is None:
                improve(search, round_by(problem, -slope))
            remaining = search.remaining
            seconds = KICK_SECONDS if remaining is None else min(KICK_SECONDS, KICK_FRACTION * remaining)
            improve_by_kicks(search, seconds)
        if search.closed:
            return "optimal"
        return "time_limit" if search.out_of_time else self.branch(search, formulation, root)

    def _bound_by_counts(self, search: Search) -> None:
        """Measured on two layers of 1,024 and 64 units: 100 gradients bring what linear programs need minutes for."""
        stop = search.seconds + (search.remaining or 0.0) * COUNTS_FRACTION
        vectors = CountVectors.of(search)
        if vectors is None:
            return
        best = bound_by_counts(vectors, lambda: search.remaining is None or search.seconds < stop)
        if best is not None and not search.closed:
            improve(search, best)

    @abc.abstractmethod
    def branch(self, search: Search, formulation: Formulation, root: Relaxation) -> str:
        """Close the gap between ``search.bound`` and the incumbent; returns like :meth:`run`."""
