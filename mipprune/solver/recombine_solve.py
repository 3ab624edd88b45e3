"""One recombination problem from start to proof: exchanges, the Lagrangian dual, and the MIP over what is left."""

from __future__ import annotations

import dataclasses
import math
import time

import networkx as nx
import numpy as np

from .recombine_dual import ForestOracle, Lagrangian
from .recombine_mip import Choices, Requirements, build_knapsack
from .recombine_search import SizeExchange
from .registry import solve_linear

__all__ = ["Selection", "solve_selection"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Chosen sizes and what is proved.

    Attributes:
        chosen: index of the size per group, int64 of shape (G,), or ``None`` if no selection meets the limits.
        objective: its objective; ``inf`` without one.
        bound: lower bound on the objective of every selection.
        termination: one of ``TERMINATIONS``, or ``"infeasible"``.
    """

    chosen: np.ndarray | None
    objective: float
    bound: float
    termination: str


class _Incumbent:
    """The best selection that meets the limits, and the one that breaks them least."""

    def __init__(self, search: SizeExchange) -> None:
        self.search = search
        self.chosen: np.ndarray | None = None
        self.merit = (math.inf, math.inf, math.inf)

    def offer(self, chosen: np.ndarray) -> None:
        merit = self.search.merit(chosen)
        if merit < self.merit:
            self.chosen, self.merit = chosen, merit

    @property
    def feasible(self) -> bool:
        return self.merit[0] == 0.0

    @property
    def objective(self) -> float:
        return self.merit[1] if self.feasible else math.inf


def solve_selection(
    choices: Choices, requirements: Requirements, *, solver: str, deadline: float, threads: int, quick: bool = False
) -> Selection:
    """Solve one problem until it is proved or ``deadline`` (of ``time.monotonic``); ``quick`` leaves the MIP out.

    Ctrl-C ends the search with what was found so far.
    """
    work = _Work(choices, requirements, deadline)
    termination = "interrupted"
    try:
        work.start()
        termination = "time_limit"
        if work.proved:
            termination = "optimal"
        elif not quick and work.goes_on():
            termination = work.solve_mip(solver, threads)
    except KeyboardInterrupt:
        termination = "interrupted"
    found = work.incumbent
    if work.proved:
        termination = "optimal"
    return Selection(found.chosen if found.feasible else None, found.objective, work.bound, termination)


class _Work:
    """The state of one :func:`solve_selection`: the incumbent, the bound, and the sizes not yet ruled out."""

    def __init__(self, choices: Choices, requirements: Requirements, deadline: float) -> None:
        self.choices, self.requirements, self.deadline = choices, requirements, deadline
        self.counted = requirements.objective != "drop"
        self.search = SizeExchange(choices, requirements)
        self.incumbent = _Incumbent(self.search)
        self.left = [np.arange(len(count)) for count in choices.counts]
        self.dual: Lagrangian | None = None
        if self.counted:
            cost = requirements.costs[requirements.objective]
            smallest = np.array([count[0] for count in choices.counts])
            self.lowest = float(cost(smallest)) if requirements.monotone else -math.inf
        else:
            self.lowest = float(sum(drop.min() for drop in choices.drops))

    def goes_on(self) -> bool:
        return time.monotonic() < self.deadline

    @property
    def bound(self) -> float:
        """Never above the incumbent; a whole number where the objective is one."""
        bound = math.ceil(self.lowest - 1e-6 * max(1.0, abs(self.lowest))) if self._roundable else self.lowest
        return min(bound, self.incumbent.objective)

    @property
    def _roundable(self) -> bool:
        return self.counted and math.isfinite(self.lowest)

    @property
    def proved(self) -> bool:
        gap = self.incumbent.objective - self.lowest
        return gap < 1.0 - 1e-6 if self.counted else gap <= 1e-9 * self.search.drop_scale

    def start(self) -> None:
        """A first selection, the dual bound, and exchanges among the sizes that the bound leaves."""
        offer = self.incumbent.offer
        first = self.search.greedy()
        offer(first)
        try:
            self.dual = Lagrangian(ForestOracle(self.choices, self.requirements), self.requirements)
        except nx.HasACycle:
            pass  # no dual bound; the MIP has one
        else:
            self.dual.maximise(offer, goes_on=self.goes_on)
            self.lowest = max(self.lowest, self.dual.bound)
            self._strike_out(self.incumbent.objective)
        for chosen in (self.incumbent.chosen, first):
            if chosen is not None:
                offer(self.search.descend(chosen, self.left, self.goes_on))
        self._strike_out(self.incumbent.objective)

    def _strike_out(self, objective: float) -> None:
        """Keep only the sizes with which ``objective`` may be reached, by the dual."""
        if self.dual is not None and math.isfinite(objective):
            self.left = [np.flatnonzero(use) for use in self.dual.possible(objective)]

    def solve_mip(self, solver: str, threads: int) -> str:
        """The MIP over the sizes that are left; returns why it stopped."""
        ties = self.left
        if self.counted:
            self._strike_out(self.incumbent.objective - (1.0 - 1e-6))  # only a whole unit less is better
        if any(len(where) == 0 for where in self.left):
            self.lowest = self.incumbent.objective  # nothing that is left can be better
            return "optimal"
        rest = self.choices.where(self.left)
        knapsack = build_knapsack(rest, self.requirements)
        start = self._start()
        outcome = solve_linear(
            knapsack.mip,
            solver=solver,
            time_limit=None if math.isinf(self.deadline) else max(self.deadline - time.monotonic(), 0.01),
            threads=threads,
            start=None if start is None else knapsack.point(rest, start),
        )
        if outcome.x is not None:
            found = zip(self.left, knapsack.one_hot)
            picked = np.array([where[int(outcome.x[columns].argmax())] for where, columns in found])
            self.incumbent.offer(picked)
            # breaks ties, and repairs what the solver's tolerance let pass
            self.incumbent.offer(self.search.descend(picked, ties, self.goes_on))
        if outcome.termination == "infeasible" and not self.incumbent.feasible:
            return "infeasible"
        self.lowest = max(self.lowest, min(outcome.bound * knapsack.unit, self.incumbent.objective))
        return "optimal" if outcome.termination == "infeasible" else outcome.termination

    def _start(self) -> np.ndarray | None:
        """The incumbent in the numbering of the sizes that are left, if it is among them."""
        chosen = self.incumbent.chosen
        if chosen is None or not self.incumbent.feasible:
            return None
        if not all(i in where for i, where in zip(chosen, self.left)):
            return None
        return np.array([int(np.searchsorted(where, i)) for i, where in zip(chosen, self.left)])
