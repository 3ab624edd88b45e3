"""The state of one search: the incumbent, the bound, the clock.  Every backend writes here and nowhere else."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Self

import numpy as np
from tqdm import tqdm

from .problem import Evaluation, Problem

__all__ = ["Search"]


class Search:
    """What is known about a problem so far.

    Incumbents come in through :meth:`offer`, which evaluates them exactly, and bounds through :meth:`raise_bound`.
    Whatever interrupts a backend, what it reported before is kept.

    Attributes:
        problem: the problem.
        threads, seed: for the solver.
        kept: the incumbent, bool of shape (n,), or ``None``.
        evaluation: its evaluation.
        bound: best proved lower bound, rounded up to the next value that the objective can have.
        n_cuts: tangent cuts added so far.
        least_drop: smallest drop of any mask offered that meets all requirements but ``max_drop``.
        events: (seconds, objective, bound) at every improvement, see :attr:`Solution.progress`.
    """

    def __init__(
        self, problem: Problem, *, time_limit: float | None = None, threads: int = 1, seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.problem, self.threads, self.seed = problem, threads, seed
        self.kept: np.ndarray | None = None
        self.evaluation: Evaluation | None = None
        self.bound = -math.inf
        self.n_cuts = 0
        self.least_drop = math.inf
        self.events: list[tuple[float, float, float]] = []
        self.begin = time.perf_counter()
        self.deadline = math.inf if time_limit is None else self.begin + time_limit
        self._lattice = None if problem.objective == "drop" else problem.costs[problem.objective].lattice
        self._bar = tqdm(disable=not progress, desc="solve", bar_format="{desc}: {elapsed} {postfix}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start."""
        return time.perf_counter() - self.begin

    @property
    def remaining(self) -> float | None:
        """Seconds left, not below 0; ``None`` without a limit."""
        return None if math.isinf(self.deadline) else max(0.0, self.deadline - time.perf_counter())

    @property
    def out_of_time(self) -> bool:
        return time.perf_counter() >= self.deadline

    @property
    def objective(self) -> float:
        """Objective of the incumbent, ``inf`` without one."""
        return math.inf if self.evaluation is None else self.evaluation.objective

    @property
    def closed(self) -> bool:
        """Whether the bound meets the incumbent."""
        if self._lattice is not None:
            return self.bound > self.objective - 0.5
        return self.bound >= self.objective - 1e-7 * max(1e-3, abs(self.objective))

    def offer(self, kept: np.ndarray) -> Evaluation:
        """Evaluate a mask exactly and keep it if it is feasible and better than the incumbent."""
        evaluation = self.problem.evaluate(kept)
        if evaluation.feasible and evaluation.objective < self.objective:
            self.kept, self.evaluation = np.array(kept, dtype=bool), evaluation
            self._improved()
        if evaluation.drop < self.least_drop and all(v.startswith("drop ") for v in evaluation.violations):
            self.least_drop = evaluation.drop
        return evaluation

    def raise_bound(self, bound: float) -> None:
        """Report a proved lower bound (in the problem's own unit)."""
        bound = float(bound)  # numpy's numbers would follow it into every comparison and file
        if math.isnan(bound):
            return
        if self._lattice is not None and math.isfinite(bound):
            offset, unit = self._lattice
            steps = (bound - offset) / unit
            bound = offset + unit * math.ceil(steps - 1e-6 - 1e-9 * abs(steps))
        if bound > self.bound:
            self.bound = bound
            self._improved()

    @property
    def progress(self) -> tuple[tuple[float, float, float], ...]:
        """The events with no bound above the incumbent's objective, so that the last is what a solution says."""
        return tuple((seconds, objective, min(bound, self.objective)) for seconds, objective, bound in self.events)

    def _improved(self) -> None:
        seconds = self.seconds
        if self.events and _tick(self.events[-1][0]) == _tick(seconds):
            del self.events[-1]
        self.events.append((seconds, self.objective, self.bound))
        self._bar.set_postfix_str(
            f"objective {self.objective:.6g}, bound {self.bound:.6g}, {self.n_cuts} cuts", refresh=True
        )


def _tick(seconds: float) -> int:
    """Number of a moment on a logarithmic clock whose ticks are 2 % apart, from 1e-6 seconds."""
    return math.floor(math.log(max(seconds, 1e-6)) / math.log(1.02))
