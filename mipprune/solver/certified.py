"""The cheapest mask that provably changes the prediction of no more than a given number of samples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ..costs import CostModel
from ..errors import BudgetError, InfeasibleError, SolverError
from ..records import Record, frozen_array
from ..surrogates import Additive
from .counting import Counting, add_counting
from .linear import LinearMip, MipBuilder
from .problem import Problem
from .registry import solve_linear

__all__ = ["CertifiedChoice", "certified_predictions"]

_EDGE = 1e-6  # rows stay below 1 by this much, so that strict inequalities survive the solver's tolerance


class Gap(Protocol):
    """What is used of a :class:`mipprune.bounds.NeuronGap`."""

    @property
    def coefficients(self) -> np.ndarray: ...

    @property
    def margins(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class CertifiedChoice(Record):
    """What :func:`certified_predictions` found.

    Attributes:
        kept: bool (n,).
        certified: bool (N,), samples whose predicted class the mask can't have changed (T7, checked on the mask).
        cost: of ``kept`` (without ``violations``: samples that are left without proof); ``bound``: no mask of the
            program has less.
        costs: resource -> cost of ``kept``, of the cost model.
        proved: ``cost`` is within 1e-6 of ``bound`` (relative).
        termination: what the solver said.
    """

    kept: np.ndarray
    certified: np.ndarray
    cost: float
    bound: float
    costs: dict[str, int]
    proved: bool
    termination: str


def certified_predictions(
    gap: Gap, violations: int | None, *, costs: CostModel | np.ndarray | None = None, objective: str = "units",
    budgets: Mapping[str, float] | None = None, min_keep: int | np.ndarray = 0, keep: np.ndarray | None = None,
    time_limit: float | None = None, solver: str = "highs", seed: int = 0,
) -> CertifiedChoice:
    """The cheapest mask that keeps, provably by T1 and T7, the predicted class of all but ``violations`` samples.

    A binary v per sample beside the removal vector z: ``sqrt 2 c_k @ z <= margin_k (1 - 1e-6) + M_k v_k``, M_k the
    least number that lets every mask pass, and ``sum v <= violations``; with the exact costs and budgets of
    :class:`Problem`.  Ours.  What the solver returns is checked in float64; where its tolerance on a v let a row slip,
    units go back until the proof holds.  With no violations it is :class:`mipprune.surrogates.WorstRow` in
    :func:`solve`.

    Args:
        gap: from :func:`mipprune.bounds.neuron_gap`: ``coefficients`` (N, n) and ``margins`` (N,).
        violations: alpha N, samples that may be left without proof; ``None`` minimises their number under ``budgets``.
        costs: a cost model (``graph.costs``), or one price per unit, float64 (n,), at least 0; 1 each by default.
        objective: the resource of the cost model that is minimised; not looked at where ``violations`` is ``None``.
        budgets: resource -> largest cost allowed (absolute), of a cost model.
        min_keep, keep: as in :meth:`Problem.build`.
        time_limit: seconds; the best mask found by then is returned.
        solver: ``"highs"``, ``"cbc"`` or ``"scip"``.

    Raises:
        InfeasibleError: no mask is proved for so many samples under the budgets (``violations=None`` finds the fewest),
            or only a ball is given, which has no predictions.
        BudgetError: arguments out of range, a resource that the cost model doesn't know.
        SolverError: no mask found before the search was stopped.
    """
    n_samples, n = gap.coefficients.shape
    if not len(gap.margins):
        raise InfeasibleError("a gap over a ball has no predictions to keep", requirement="violations")
    if violations is not None and not 0 <= violations <= n_samples:
        raise BudgetError(f"violations: expected a number from 0 to {n_samples}, got {violations}")
    if violations is None and not budgets:
        raise BudgetError("violations=None needs budgets: without any, keeping all units proves the most")
    ties = int((gap.margins <= 0).sum())
    if violations is not None and ties > violations:
        raise InfeasibleError(f"{ties} samples are ties: no mask is proved to keep their class",
                              requirement="violations", nearest=float(ties))
    problem, price = _problem(n, costs, objective, budgets, min_keep, keep)
    rows, room = _rows(gap)
    program = _program(problem, price, rows, room, violations)
    outcome = solve_linear(program.mip, solver, time_limit=time_limit, start=program.start(problem), seed=seed)
    if outcome.x is None and outcome.termination == "infeasible":
        raise InfeasibleError(
            f"no mask within the budgets is proved to keep the class of {n_samples - (violations or 0)} of {n_samples} "
            "samples; raise a budget or violations, or ask for the fewest with violations=None",
            requirement="violations",
        )
    if outcome.x is None:
        raise SolverError(f"no mask found ({outcome.termination}); raise time_limit, or keep all units")
    kept = outcome.x[program.kept] > 0.5
    while True:
        certified = gap.margins > math.sqrt(2.0) * (gap.coefficients @ (~kept).astype(np.float64))
        if violations is None or (~certified).sum() <= violations or kept.all():
            break
        kept[np.where(kept, -1.0, rows[~certified].sum(0)).argmax()] = True
    broken = problem.evaluate(kept).violations
    if broken:
        raise SolverError(f"the solver's tolerance let a row slip, and units that go back break {'; '.join(broken)}; "
                          "lower a budget a little, or raise violations")
    found = problem.evaluate(kept).costs
    if violations is None:
        cost = float((~certified).sum())
    else:
        cost = float(price[kept].sum()) if price is not None else float(found[objective])
    least = max(0.0, outcome.bound * program.unit) if math.isfinite(outcome.bound) else 0.0
    return CertifiedChoice(
        kept=frozen_array(kept, bool), certified=frozen_array(certified, bool), cost=cost, bound=min(least, cost),
        costs=found, proved=bool(outcome.termination == "optimal" and cost - least <= 1e-6 * max(1.0, cost)),
        termination=outcome.termination,
    )


def _problem(
    n: int, costs: CostModel | np.ndarray | None, objective: str, budgets: Mapping[str, float] | None,
    min_keep: int | np.ndarray, keep: np.ndarray | None,
) -> tuple[Problem, np.ndarray | None]:
    """The requirements beside the proof, and the units' prices where those are given one by one."""
    price = None
    if not isinstance(costs, CostModel):
        if costs is not None:
            price = np.asarray(costs, dtype=np.float64)
            if price.shape != (n,) or not np.isfinite(price).all() or (price < 0).any():
                raise BudgetError(f"costs: expected a cost model, or {n} finite numbers of at least 0")
            if budgets or objective != "units":
                raise BudgetError("costs: budgets and another objective need a cost model, for example graph.costs")
        costs = CostModel.units_only(n)
    elif costs.n_units != n:
        raise BudgetError(f"costs: the cost model has {costs.n_units} units, the gap {n}")
    given = Problem.build(Additive(np.zeros(n)), objective, costs=costs, budgets=budgets, min_keep=min_keep, keep=keep)
    return given, price


def _rows(gap: Gap) -> tuple[np.ndarray, np.ndarray]:
    """Rows r and room: a sample's class is proved where ``r @ z < room``; room is 1, or 0 for ties."""
    rows = math.sqrt(2.0) * gap.coefficients
    finite = np.minimum(gap.margins, rows.sum(1) + 1.0)  # one output alone has infinite margins
    return rows / np.where(finite > 0, finite, 1.0)[:, None], np.where(finite > 0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    mip: LinearMip
    kept: np.ndarray
    exempt: np.ndarray
    counting: Counting
    unit: float

    def start(self, problem: Problem) -> np.ndarray | None:
        """Keeping all units proves all but the ties; no start where the budgets forbid it."""
        kept = ~problem.remove
        if not problem.evaluate(kept).feasible:
            return None
        x = np.zeros(self.mip.n_columns)
        x[self.kept] = kept
        x[self.exempt] = self.mip.lower[self.exempt]
        self.counting.fill(x, problem.costs.counts(kept))
        return x


def _program(
    problem: Problem, price: np.ndarray | None, rows: np.ndarray, room: np.ndarray, violations: int | None
) -> _Program:
    builder = MipBuilder()
    settled = (problem.fewest == problem.most)[problem.costs.group_of_unit]
    kept = builder.add_columns(
        problem.n_units, cost=0.0 if price is None or violations is None else price,
        lower=(problem.keep | (settled & ~problem.remove)).astype(float), upper=1.0 - problem.remove, integer=True,
    )
    ties = (room <= 0).astype(float)
    exempt = builder.add_columns(len(rows), cost=float(violations is None), lower=ties, integer=True)
    for row, limit, column in zip(rows, room, exempt, strict=True):
        total = float(row.sum())
        inside = limit - _EDGE if limit else 0.0
        if total > inside:
            builder.add_row(np.append(kept, column), np.append(-row, inside - total), upper=inside - total)
    if violations is not None:
        builder.add_row(exempt, 1.0, upper=float(violations))
    if price is not None or violations is None:  # the objective is on units or samples; costs are in budgets alone
        problem = dataclasses.replace(problem, objective="drop")
    counting, unit = add_counting(builder, problem, kept)
    return _Program(builder.build(), kept, exempt, counting, unit)
