"""The root relaxation: a linear program with tangent cuts, solved again and again until the cuts say nothing new."""

from __future__ import annotations

import dataclasses
import math

import highspy
import numpy as np

from ..errors import SolverError
from .cuts import Cuts, tangents
from .formulate import Formulation
from .highs_program import highs_program
from .search import Search

__all__ = ["Relaxation", "relax"]

#: A cut is added when it is broken by more than this (in units of the formulation, see ``drop_unit``).
VIOLATION = 1e-3
#: Cuts that were slack in this many programs in a row are taken out.
PATIENCE = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Relaxation:
    """The last linear program.

    Attributes:
        x: float64, shape (N,), its solution; ``None`` when it is infeasible or was not solved.
        cuts: the cuts that hold it up.
        infeasible: whether the program, and so the problem, has no solution.
        rounds: programs solved.
    """

    x: np.ndarray | None
    cuts: Cuts
    infeasible: bool
    rounds: int


def relax(formulation: Formulation, search: Search, *, max_rounds: int = 200) -> Relaxation:
    """Kelley's cutting planes, steadied; bounds go to ``search`` as they come.

    Every round adds the tangents at the program's own solution and, which is what makes it converge, at a second point
    on the way from an inner point: where the drop reaches its limit (extended supporting hyperplanes), or half-way if
    the drop is minimised.  The inner point moves along.  Measured on a 128-unit head: 30 rounds for what takes plain
    Kelley 120.

    Stops when no tangent cuts, when the bound meets the incumbent or stops moving, or when half of the time is gone.
    """
    program = _Program(formulation)
    inner = _Inner(formulation)
    if len(formulation.theta):
        for z in inner.first_points():
            program.add(tangents(formulation, z))
    x, bounds = None, []
    for round_ in range(max_rounds):
        remaining = search.remaining
        found = program.solve(remaining)
        if found is None:
            return Relaxation(None, program.cuts, program.infeasible, round_)
        x, bound = found
        search.raise_bound(bound * formulation.unit)
        bounds.append(bound)
        if len(formulation.theta) == 0 or search.closed or _stalled(bounds):
            break
        if search.remaining is not None and search.seconds > search.remaining:
            break
        new = Cuts.join([tangents(formulation, z) for z in inner.query(formulation.removed(x))])
        new = new[new.violation(formulation, x) > VIOLATION]
        if len(new) == 0:
            break
        program.age(x)
        program.add(new)
        search.n_cuts += len(new)
    return Relaxation(x, program.cuts if x is None else program.tight(x), False, len(bounds))


def _stalled(bounds: list[float]) -> bool:
    """The bound moved less than 1e-5 of its size in five rounds."""
    return len(bounds) > 5 and bounds[-1] - bounds[-6] <= 1e-5 * max(1e-6, abs(bounds[-1]))


class _Inner:
    """The inner point and the points where tangents are asked for."""

    def __init__(self, formulation: Formulation) -> None:
        problem = formulation.problem
        self.surrogate = problem.surrogate
        self.limit = problem.max_drop
        self.minimised = problem.objective == "drop"
        self.z = problem.remove.astype(float)
        self.drop = self.surrogate.drop(self.z)
        self.last = 1.0 - problem.keep

    def first_points(self) -> list[np.ndarray]:
        return [self.z, 0.5 * (self.z + self.last)]

    def query(self, z: np.ndarray) -> list[np.ndarray]:
        """Where to take tangents when the program answers ``z``; moves the inner point."""
        drop = self.surrogate.drop(z)
        if self.minimised:
            middle = 0.5 * (self.z + z)
            at_middle = self.surrogate.drop(middle)
            self.drop, self.z = min(((self.drop, self.z), (at_middle, middle), (drop, z)), key=lambda pair: pair[0])
            return [z, middle]
        assert self.limit is not None
        if drop <= self.limit or self.drop >= self.limit:  # nothing to find between the two points
            if drop < self.drop:
                self.drop, self.z = drop, z
            return [z]
        low, high = 0.0, 1.0
        for _ in range(10):
            step = 0.5 * (low + high)
            inside = self.surrogate.drop(self.z + step * (z - self.z)) <= self.limit
            low, high = (step, high) if inside else (low, step)
        border = self.z + high * (z - self.z)
        self.z = self.z + 0.5 * low * (z - self.z)
        self.drop = self.surrogate.drop(self.z)
        return [z, border]


class _Program:
    """A linear program in HiGHS that grows and sheds rows and is solved from its last basis."""

    def __init__(self, formulation: Formulation) -> None:
        self.formulation = formulation
        self.base = formulation.mip.n_rows
        self.cuts = Cuts.none(formulation)
        self.slack_for = np.zeros(0, dtype=np.int64)
        self.infeasible = False
        self.highs = highs_program(formulation.mip)

    def solve(self, time_limit: float | None) -> tuple[np.ndarray, float] | None:
        """Solution and objective, or ``None``: infeasible (see :attr:`infeasible`) or out of time."""
        if time_limit is not None:
            self.highs.setOptionValue("time_limit", self.highs.getRunTime() + time_limit)
        self.highs.run()
        status = self.highs.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            objective = self.highs.getInfo().objective_function_value + self.formulation.mip.constant
            return np.array(self.highs.getSolution().col_value), objective
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            self.infeasible = True
        elif status != highspy.HighsModelStatus.kTimeLimit:
            raise SolverError(f"HiGHS could not solve the relaxation: {self.highs.modelStatusToString(status)}")
        return None

    def add(self, cuts: Cuts) -> None:
        row, unit = np.nonzero(cuts.coefficients)
        count = len(cuts)
        rows = np.concatenate([np.arange(count), row])
        order = np.argsort(rows, kind="stable")
        columns = np.concatenate([self.formulation.theta[cuts.term], self.formulation.kept[unit]])[order]
        values = np.concatenate([np.ones(count), cuts.coefficients[row, unit]])[order]
        starts = np.searchsorted(rows[order], np.arange(count))
        self.highs.addRows(
            count, cuts.lower, np.full(count, math.inf), len(values), starts.astype(np.int32),
            columns.astype(np.int32), values,
        )
        self.cuts = Cuts.join([self.cuts, cuts])
        self.slack_for = np.append(self.slack_for, np.zeros(count, dtype=np.int64))

    def age(self, x: np.ndarray) -> None:
        """Take out cuts that have been slack for long."""
        slack = self.cuts.violation(self.formulation, x) < -1e-6
        self.slack_for = np.where(slack, self.slack_for + 1, 0)
        old = self.slack_for >= PATIENCE
        if old.any():
            where = self.base + np.flatnonzero(old)
            self.highs.deleteRows(len(where), where.astype(np.int32))
            self.cuts, self.slack_for = self.cuts[~old], self.slack_for[~old]

    def tight(self, x: np.ndarray) -> Cuts:
        """The cuts without slack at ``x``."""
        return self.cuts[self.cuts.violation(self.formulation, x) >= -1e-3]
