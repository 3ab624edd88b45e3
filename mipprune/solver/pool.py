"""Solution pools: several masks of one problem that are optimal, or nearly so, by no-good cuts."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from ..errors import BudgetError, InfeasibleError, SolverError
from ..records import Record
from .api import solve
from .problem import Problem
from .solution import Solution

__all__ = ["Pool", "near_optimal"]

#: Drops within this of each other, relative to their size, count as equal.
SAME_DROP = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Pool(Record):
    """Distinct masks of one problem, from best to worst.

    Attributes:
        solutions: at least one; each is the best mask that differs from all before it, as far as it is ``proved``.
        complete: whether it is proved that no other mask lies within the gap that was asked for.
    """

    solutions: tuple[Solution, ...]
    complete: bool

    @property
    def masks(self) -> np.ndarray:
        """Kept masks: bool, shape (K, n)."""
        return np.array([solution.kept for solution in self.solutions])

    def __len__(self) -> int:
        return len(self.solutions)


def near_optimal(
    problem: Problem,
    count: int = 10,
    gap: float = 0.0,
    *,
    solver: str = "auto",
    time_limit: float | None = None,
    seed: int = 0,
) -> Pool:
    """The best masks of a problem, at most ``count``, whose objective is within ``gap`` of the best.

    Each mask found is forbidden by a no-good cut, and the problem is solved again.  With a gap of 0 and a large
    ``count`` these are all optima.  Costs one full solve per mask, so it is for small pools and small problems.

    Args:
        count: most masks to list.
        gap: absolute, in the unit of the objective (nats, units, multiply-adds, ...).
        solver, seed: as for :func:`~mipprune.solver.api.solve`.
        time_limit: seconds for all solves together; Ctrl-C and a limit keep the masks found so far.

    Raises:
        BudgetError: ``count`` or ``gap`` out of range.
        InfeasibleError: no mask meets the requirements.
        SolverError: none was found in time.
    """
    if count < 1 or not gap >= 0:
        raise BudgetError(f"a pool needs count >= 1 and gap >= 0, got {count} and {gap}")
    stop = None if time_limit is None else time.perf_counter() + time_limit
    solutions: list[Solution] = []
    complete = False
    while len(solutions) < count:
        remaining = None if stop is None else stop - time.perf_counter()
        if solutions and remaining is not None and remaining <= 0:
            break
        forbidden = np.concatenate([problem.forbidden, *(solution.kept[None] for solution in solutions)])
        try:
            found = solve(
                dataclasses.replace(problem, forbidden=forbidden), solver, time_limit=remaining, seed=seed
            )
        except InfeasibleError:
            if not solutions:
                raise
            complete = True
            break
        except SolverError:
            if not solutions:
                raise
            break
        best = min(solution.objective for solution in [*solutions, found])
        reach = best + gap + (SAME_DROP * max(1e-3, abs(best)) if problem.objective == "drop" else 0.0)
        if found.objective > reach:
            complete = found.bound > reach
            break
        solutions.append(found)
        if found.termination == "interrupted":
            break
    solutions.sort(key=lambda solution: solution.objective)
    within = solutions[0].objective + gap + SAME_DROP * max(1e-3, abs(solutions[0].objective))
    return Pool(tuple(s for s in solutions if s.objective <= within), complete)
