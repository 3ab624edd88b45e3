"""Layers decided apart, put together under budgets that all of them share: the other half of the decoupled road."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from ..costs import CostModel
from ..errors import BudgetError, InfeasibleError, SolverError
from ..records import frozen_array
from .curve import SizeCurve
from .problem import FEASIBILITY_TOLERANCE
from .recombine_mip import Choices, Requirements
from .recombine_solve import Selection, solve_selection
from .registry import LINEAR_SOLVERS, linear_solver
from .solution import Solution

__all__ = ["Recombination", "recombine"]

#: Most sizes per group in the program of the bound; more are merged into runs.
BOUND_SIZES = 512


@dataclasses.dataclass(frozen=True, eq=False)
class Recombination(Solution):
    """The solution of the separable problem ``min sum_g drop_g(z_g)`` (or a cost) under common limits.

    ``kept`` joins the chosen masks in unit order, ``objective`` and ``drop`` are sums of the layers' exact drops,
    ``costs`` are exact.  ``bound`` holds for every choice of masks of every layer, also of sizes and masks that the
    curves never tried.  ``termination`` is ``"optimal"`` when both problems (see :func:`recombine`) were solved; a gap
    that is left then is that of the curves.

    Attributes:
        counts: int64, shape (G,): units kept per group.
    """

    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "counts", frozen_array(self.counts, np.int64))


def recombine(
    curves: Sequence[SizeCurve],
    costs: CostModel,
    *,
    objective: str = "drop",
    max_drop: float | None = None,
    budgets: Mapping[str, float] | None = None,
    multiples: int | Sequence[int] = 1,
    solver: str = "highs",
    time_limit: float | None = None,
    threads: int = 1,
    quick: bool = False,
) -> Recombination:
    """Choose one mask from every curve: a multiple-choice knapsack over the exact costs.

    The answer uses the masks of the curves and their ``upper`` drops.  The bound comes from a second problem, over
    *all* sizes with the curves' lower bounds: whatever masks are put together, each has a size, its drop is at
    least the lower bound of that size, and its cost is that of its size, so the second problem's bound is below it.

    Each problem is solved three ways, each of which starts from the one before: local search over the sizes of two
    groups, the Lagrangian dual (exact dynamic programming when the products in the costs form a forest), whose bound
    also strikes out most sizes, and the MIP over what is left.  Among equal drops the exchanges prefer lower costs;
    among equal costs a lower drop.

    Args:
        curves: one per group of ``costs``, in its order.
        objective: ``"drop"`` or a resource.
        max_drop: largest sum of drops.
        budgets: resource -> largest cost (absolute).
        multiples: one number for all groups, or one per group: a group keeps a multiple of so many units, or all.
        solver: name of the MIP solver.
        time_limit: seconds; what is found by then is returned with its gap, as on Ctrl-C.
        threads: of the MIP solver.
        quick: leave the MIPs out; the dual bound (none where products of counts form a cycle) and the exchanges stay.

    Raises:
        BudgetError: an unknown resource or a limit that isn't finite.
        InfeasibleError: no selection of the curves' masks meets a limit; ``nearest`` is the value that one does meet.
        SolverError: the time was up before any selection was found.
    """
    started = time.perf_counter()
    linear_solver(solver)  # an unknown or missing solver is told before any work
    budgets = dict(budgets or {})
    requirements = _requirements(curves, costs, objective, max_drop, budgets)
    upper = Choices(tuple(c.counts[::-1] for c in curves), tuple(c.upper[::-1] for c in curves))
    lower = Choices(tuple(np.arange(c.fewest, c.most + 1) for c in curves), tuple(c.all_lower for c in curves))
    upper, lower = (_on_multiples(choices, costs, multiples) for choices in (upper, lower))
    same = all(len(u) == len(b) and (u == b).all() for u, b in zip(upper.drops, lower.drops))
    if requirements.monotone:
        upper, lower = upper.undominated(), lower.undominated().coarse(BOUND_SIZES)
    _check_budgets(upper, requirements)

    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    first = math.inf if time_limit is None else time.monotonic() + time_limit / (1 if same else 2)
    found = solve_selection(upper, requirements, solver=solver, deadline=first, threads=threads, quick=quick)
    if found.chosen is None:
        _explain(upper, requirements, found, solver, deadline, threads)
    bound, termination = found.bound, found.termination
    if not same:
        stop = termination == "interrupted"
        below = solve_selection(
            lower, requirements, solver=solver, deadline=deadline, threads=threads, quick=stop or quick
        )
        bound = below.bound
        if not stop and below.termination != "optimal":
            termination = below.termination
    if quick and termination == "time_limit" and time.monotonic() < deadline:
        termination = "iteration_limit"
    return _assemble(curves, requirements, upper, found, bound, termination, solver, time.perf_counter() - started)


def _requirements(
    curves: Sequence[SizeCurve], costs: CostModel, objective: str, max_drop: float | None, budgets: dict[str, float]
) -> Requirements:
    if [c.n_units for c in curves] != costs.sizes.tolist():
        raise ValueError(
            f"expected one curve per group {list(costs.groups)} of {costs.sizes.tolist()} units, "
            f"got curves of {[c.n_units for c in curves]} units"
        )
    for resource in [*budgets, *([] if objective == "drop" else [objective])]:
        costs[resource]  # raises BudgetError on an unknown resource
    for resource, limit in budgets.items():
        if not math.isfinite(limit):
            raise BudgetError(f"the budget of {resource!r} must be finite, got {limit}")
    if max_drop is not None and not math.isfinite(max_drop):
        raise BudgetError(f"max_drop must be finite, got {max_drop}")
    return Requirements(
        costs=costs,
        objective=objective,
        drop_limit=math.inf if max_drop is None else max_drop + FEASIBILITY_TOLERANCE * max(1.0, abs(max_drop)),
        budgets={resource: math.floor(limit) for resource, limit in budgets.items()},
    )


def _on_multiples(choices: Choices, costs: CostModel, multiples: int | Sequence[int]) -> Choices:
    """Only the sizes that are multiples, or whole groups."""
    each = np.broadcast_to(np.asarray(multiples), costs.sizes.shape)
    if (each < 1).any():
        raise BudgetError(f"multiples must be at least 1, got {each.tolist()}")
    sizes = zip(choices.counts, each, costs.sizes)
    use = [np.flatnonzero((count % m == 0) | (count == size)) for count, m, size in sizes]
    for group, where in enumerate(use):
        if len(where) == 0:
            raise InfeasibleError(
                f"group {costs.groups[group]!r}: none of the sizes is a multiple of {each[group]}",
                requirement="multiples",
            )
    return choices.where(use)


def _check_budgets(choices: Choices, requirements: Requirements) -> None:
    """Refuse a budget below the smallest selection, and say what that one costs."""
    if not requirements.monotone:
        return
    smallest = np.array([count[0] for count in choices.counts])
    for resource, limit in requirements.budgets.items():
        cheapest = requirements.costs[resource](smallest)
        if cheapest > limit:
            raise InfeasibleError(
                f"the budget of {resource!r} is {limit}, but the smallest sizes of all curves cost {cheapest}: "
                f"raise the budget, lower min_keep or search smaller sizes",
                requirement=resource,
                nearest=cheapest,
            )


def _explain(
    choices: Choices, requirements: Requirements, found: Selection, solver: str, deadline: float, threads: int
) -> NoReturn:
    """Say why no selection was found: a limit that can't be met, or too little time."""
    if found.termination == "infeasible" and math.isfinite(requirements.drop_limit):
        easier = dataclasses.replace(requirements, objective="drop", drop_limit=math.inf)
        least = solve_selection(choices, easier, solver=solver, deadline=deadline, threads=threads)
        if least.chosen is not None:
            raise InfeasibleError(
                f"max_drop is {requirements.drop_limit:.6g}, but the best selection of the curves' masks "
                f"{'within the budgets ' if requirements.budgets else ''}drops by {least.objective:.6g}: "
                f"raise max_drop{' or the budgets' if requirements.budgets else ''}, or search more sizes",
                requirement="max_drop",
                nearest=least.objective,
            )
    if found.termination == "infeasible":
        raise InfeasibleError(
            f"no sizes meet the budgets {requirements.budgets} together", requirement=", ".join(requirements.budgets)
        )
    raise SolverError(
        f"no selection was found before the search stopped ({found.termination}): allow more time or relax a limit"
    )


def _assemble(
    curves: Sequence[SizeCurve], requirements: Requirements, choices: Choices, found: Selection, bound: float,
    termination: str, solver: str, seconds: float,
) -> Recombination:
    assert found.chosen is not None
    counts = choices.counts_at(found.chosen)
    costs = {name: cost(counts) for name, cost in requirements.costs.resources.items()}
    drop = choices.drop_at(found.chosen)
    objective = drop if requirements.objective == "drop" else float(costs[requirements.objective])
    return Recombination(
        kept=np.concatenate([curve.mask(int(k)) for curve, k in zip(curves, counts)]),
        objective=objective,
        bound=min(bound, objective),
        drop=drop,
        costs=costs,
        objective_kind=requirements.objective,
        termination=termination,
        solver=solver,
        version=importlib.metadata.version(LINEAR_SOLVERS[solver].packages[-1]),
        seconds=seconds,
        counts=counts,
    )
