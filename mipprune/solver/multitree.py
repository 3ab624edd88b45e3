"""Any solver of linear MIPs on convex problems: solve, add tangents where it landed, solve again."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..errors import SolverError
from .branching import TreeBackend
from .cuts import Cuts, append_cuts, tangents
from .formulate import Formulation
from .linear_solver import LinearOutcome
from .masks import costs_of, counts_fit, counts_of
from .registry import linear_solver
from .relax import Relaxation
from .search import Search

__all__ = ["CbcTrees", "HighsTrees", "MultiTree"]

#: Tangents are added where they are broken by more than this (in units of the formulation, see ``drop_unit``).
VIOLATION = 1e-5
#: Masks around the optimum of a MIP that get tangents too: so many at once, in so many rounds.
AROUND, ROUNDS = 16, 6
#: Most pairs of units that are looked at for that.
MAX_PAIRS = 4096


class MultiTree(TreeBackend):
    """Outer approximation: a sequence of linear MIPs, each a relaxation, each with more tangents than the last.

    Ends when the bound of a MIP meets the incumbent: a MIP whose optimum breaks no tangent has found the optimum of the
    problem.  An optimum that is infeasible only by the solver's tolerance is forbidden by a row of its own.  Between
    two MIPs the masks around the last optimum that still look better than the incumbent get tangents too.
    """

    solver: ClassVar[str]

    def branch(self, search: Search, formulation: Formulation, root: Relaxation) -> str:
        cuts = root.cuts
        forbidden = np.zeros((0, search.problem.n_units), dtype=bool)
        while not search.closed:
            if search.out_of_time:
                return "time_limit"
            try:
                outcome = self._solve(search, formulation, cuts, forbidden)
            except SolverError:
                if search.kept is None:
                    raise
                return "solver_error"  # the incumbent and the bound were found before
            if outcome.termination == "infeasible":
                if search.kept is None:
                    return "infeasible"
                search.raise_bound(search.objective)  # only infeasible masks were forbidden
                return "optimal"
            search.raise_bound(outcome.bound * formulation.unit)
            if outcome.x is None:
                return outcome.termination
            mask = formulation.mask(outcome.x)
            feasible = search.offer(mask).feasible
            if outcome.termination != "optimal":
                return outcome.termination
            new = _broken(formulation, cuts, mask)
            if len(new):
                cuts = _refute_around(search, formulation, Cuts.join([cuts, new]), mask)
                search.n_cuts += len(new)
            elif feasible:
                return "optimal"  # what is left of the gap is the solver's tolerance
            else:
                forbidden = np.concatenate([forbidden, mask[None]])
        return "optimal"

    def _solve(
        self, search: Search, formulation: Formulation, cuts: Cuts, forbidden: np.ndarray
    ) -> LinearOutcome:
        return linear_solver(self.solver).solve_linear(
            append_cuts(formulation, cuts, forbidden),
            time_limit=search.remaining,
            threads=search.threads,
            start=None if search.kept is None else formulation.point(search.kept),
            seed=search.seed,
        )


class HighsTrees(MultiTree):
    """HiGHS, through PuLP."""

    solver = "highs"


class CbcTrees(MultiTree):
    """CBC, through PuLP."""

    solver = "cbc"


def _broken(formulation: Formulation, cuts: Cuts, mask: np.ndarray) -> Cuts:
    """The tangents at a mask that say more there than ``cuts`` do."""
    if len(formulation.theta) == 0:
        return Cuts.none(formulation)
    new = tangents(formulation, (~mask).astype(float))
    believed = _believed_terms(formulation, cuts, mask[None])[0]
    return new[new.lower - new.coefficients @ mask > believed[new.term] + VIOLATION]


def _believed_terms(formulation: Formulation, cuts: Cuts, masks: np.ndarray) -> np.ndarray:
    """What the relaxation takes the terms of masks (M, n) for: shape (M, B), in its unit."""
    believed = np.repeat(formulation.mip.lower[formulation.theta][None], len(masks), axis=0)
    values = cuts.lower - masks @ cuts.coefficients.T
    for term in range(believed.shape[1]):
        believed[:, term] = np.maximum(believed[:, term], values[:, cuts.term == term].max(axis=1, initial=-np.inf))
    return believed


def _refute_around(search: Search, formulation: Formulation, cuts: Cuts, mask: np.ndarray) -> Cuts:
    """Add tangents at masks one flip or one exchange away that the relaxation holds for better than the incumbent."""
    problem = search.problem
    around = _around(problem.keep, problem.remove, mask, np.random.default_rng(search.seed))
    around = around[counts_fit(problem, around)]
    linear = (~around).astype(float) @ problem.surrogate.linear
    for _ in range(ROUNDS):
        if len(around) == 0 or search.out_of_time:
            break
        drops = linear + _believed_terms(formulation, cuts, around).sum(1) * formulation.drop_unit
        if problem.objective == "drop":
            better = drops < search.objective
        else:
            better = costs_of(problem.costs[problem.objective], counts_of(problem, around)) < search.objective
        better &= drops <= problem.drop_limit
        doubtful = np.flatnonzero(better)[np.argsort(drops[better], kind="stable")[:AROUND]]
        new = []
        for index in doubtful:
            search.offer(around[index])
            new.append(_broken(formulation, cuts, around[index]))
        if not any(len(part) for part in new):
            break
        search.n_cuts += sum(len(part) for part in new)
        cuts = Cuts.join([cuts, *new])
    return cuts


def _around(keep: np.ndarray, remove: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Masks one flip away, and (a sample of) those one exchange away: bool, shape (M, n)."""
    free = np.flatnonzero(~(keep | remove))
    out, back = free[mask[free]], free[~mask[free]]
    pairs = np.stack([np.repeat(out, len(back)), np.tile(back, len(out))], axis=1)
    if len(pairs) > MAX_PAIRS:
        pairs = pairs[rng.choice(len(pairs), MAX_PAIRS, replace=False)]
    masks = np.repeat(mask[None], len(free) + len(pairs), axis=0)
    masks[np.arange(len(free)), free] ^= True
    rows = len(free) + np.arange(len(pairs))
    masks[rows, pairs[:, 0]] ^= True
    masks[rows, pairs[:, 1]] ^= True
    return masks
