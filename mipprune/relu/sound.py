"""The sound form: binary gates, exact ReLU rows, fewest units whose real network meets the requirement."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import scipy.sparse as sp

from ..bounds import output_range, value_ranges
from ..errors import InfeasibleError, SolverError
from ..solver import LinearMip, MipBuilder, solve_linear
from .incumbent import Incumbents
from .masked_rows import MaskedRows
from .requirement import Margin, MeanLoss, Requirement
from .tangents import LossColumns, with_rows
from .task import Task, no_good

__all__ = ["SoundProgram", "SoundResult", "solve_sound"]

#: Share of the time limit that the first incumbents may take.
_START_SHARE = 0.25
#: Masks of the first search whose logits get tangents.
_MAX_SEEDS = 100
#: Most rounds of tangents on the relaxation, and by how much a tangent has to be broken to be added.
_RELAXED_ROUNDS, _BROKEN = 40, 1e-3


class SoundProgram:
    """``min sum s`` subject to the network's rows and the requirement on its logits.

    A margin is linear: ``l_y - l_c >= margin - M v`` for every wrong class c, with one binary v per sample that may
    miss it and M from a bound of ``l_y - l_c`` over all masks.  A mean cross-entropy is convex in the logits: one
    epigraph column per sample, tangents (see :class:`~mipprune.relu.tangents.LossColumns`).
    """

    def __init__(self, task: Task, requirement: Requirement) -> None:
        self.task, self.requirement = task, requirement
        builder = MipBuilder()
        self.ranges = value_ranges(task.network, task.x, task.x, task.keep)
        self.rows = MaskedRows(builder, task.network, self.ranges, task.x, task.keep)
        task.add_rows(builder, self.rows.gates)
        self.violations: np.ndarray | None = None
        self.loss: LossColumns | None = None
        if isinstance(requirement, Margin):
            self._add_margins(builder, requirement)
        elif isinstance(requirement, MeanLoss):
            lower, upper = self.ranges.lower[-1], self.ranges.upper[-1]
            self.loss = LossColumns(builder, self.rows.outputs, lower, upper, task.targets)
            builder.add_row(self.loss.losses, 1.0 / len(task.x), upper=requirement.limit)
        self.mip: LinearMip = builder.build()

    def _add_margins(self, builder: MipBuilder, requirement: Margin) -> None:
        task = self.task
        if requirement.max_violated > 0:
            self.violations = builder.add_columns(len(task.x), integer=True)
            builder.add_row(self.violations, 1.0, upper=float(requirement.max_violated))
        classes = task.network.sizes[-1]
        for k, right in enumerate(task.targets.tolist()):
            wrong = [c for c in range(classes) if c != right]
            rows = np.eye(classes)[right] - np.eye(classes)[wrong]
            here = dataclasses.replace(
                self.ranges,
                lower=tuple(v[k : k + 1] for v in self.ranges.lower),
                upper=tuple(v[k : k + 1] for v in self.ranges.upper),
            )
            least = output_range(task.network, here, rows, task.keep)[0][0]
            output = self.rows.outputs[k]
            matrix, constant = sp.csr_array(rows @ output.matrix), rows @ output.constant
            for i in range(len(wrong)):
                span = slice(matrix.indptr[i], matrix.indptr[i + 1])
                columns, values = matrix.indices[span].astype(np.int64), matrix.data[span]
                if self.violations is not None:
                    columns = np.append(columns, self.violations[k])
                    # a little more than needed, so that rounding in the bound can't cut off a mask
                    values = np.append(values, max(0.0, requirement.margin - least[i]) * (1 + 1e-9))
                builder.add_row(columns, values, lower=requirement.margin - constant[i])

    def point(self, kept: np.ndarray) -> np.ndarray:
        """The program's solution that stands for a mask."""
        point = self.rows.point(kept, self.mip.n_columns)
        logits = self.task.network.output(self.task.x, kept)
        if self.violations is not None and isinstance(self.requirement, Margin):
            missed = ~np.array([
                bool(dataclasses.replace(self.requirement, max_violated=0).met(row[None], y[None]))
                for row, y in zip(logits, self.task.targets)
            ])
            point[self.violations] = missed
        if self.loss is not None:
            self.loss.fill(point, logits)
        return point

    def mask(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(np.round(x[self.rows.gates]).astype(bool))


@dataclasses.dataclass
class SoundResult:
    """What the search found; ``kept`` is ``None`` without an incumbent."""

    program: SoundProgram
    kept: np.ndarray | None = None
    bound: float = 0.0
    termination: str = "time_limit"
    n_rounds: int = 0
    n_cuts: int = 0

    @property
    def objective(self) -> float:
        return math.inf if self.kept is None else float(self.kept.sum())

    @property
    def closed(self) -> bool:
        return self.objective - self.bound < 1.0 - 1e-6


def solve_sound(
    task: Task, requirement: Requirement, *, start: np.ndarray | None, solver: str, time_limit: float | None,
    threads: int, seed: int,
) -> SoundResult:
    """Search: incumbents on the real network, then linear programs with tangents until bound and incumbent meet.

    Every mask that a solver hands back is judged by the oracle; one that fails is answered by tangents at its real
    logits, or forbidden where no tangent says more (it failed by the solver's tolerances).  Both leave the bound valid.
    """
    begin = time.monotonic()
    deadline = math.inf if time_limit is None else begin + time_limit
    early = begin + _START_SHARE * (deadline - begin) if time_limit else math.inf
    incumbents = Incumbents(task.oracle, requirement, task.targets, task.allowed, early, seed)
    stopped = False
    try:  # before the program is built: there's an incumbent however little time is given
        for mask in [*([] if start is None else [start | task.keep]), np.ones(task.n_units, dtype=bool)]:
            incumbents.search(mask)
    except KeyboardInterrupt:
        stopped = True
    result = SoundResult(SoundProgram(task, requirement), incumbents.best)
    result.bound = float(sum(max(int(task.keep[units].sum()), least)
                             for units, least in zip(task.groups, task.min_keep)))
    try:
        termination = "interrupted" if stopped else _search(result, incumbents.seen, deadline, solver, threads, seed)
    except KeyboardInterrupt:
        termination = "interrupted"
    if termination == "infeasible" and result.kept is None:
        raise _infeasible(task, requirement)
    if result.kept is None:
        raise SolverError(
            f"{solver} stopped ({termination}) after {time.monotonic() - begin:.1f} s before it found a mask "
            f"with {_dense_text(task, requirement)}: allow more time, give a start, or ask for less"
        )
    result.termination = "optimal" if result.closed else termination
    return result


def _search(
    result: SoundResult, seen: list[np.ndarray], deadline: float, solver: str, threads: int, seed: int
) -> str:
    """Linear programs until bound and incumbent meet; returns why that ended, ``"infeasible"`` is a proof."""
    program, mip = result.program, result.program.mip
    task, requirement = program.task, program.requirement
    if program.loss is not None:
        mip = _tangents(result, mip, seen[-_MAX_SEEDS:])
        mip = _relaxed_rounds(result, mip, solver, deadline, threads, seed)
    while not result.closed:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return "time_limit"
        limit = None if math.isinf(remaining) else remaining
        start = None if result.kept is None else program.point(result.kept)
        outcome = solve_linear(mip, solver, limit, threads, start, seed)
        result.n_rounds += 1
        if outcome.termination == "infeasible":
            result.bound = result.objective  # only masks that fail were forbidden
            return "infeasible"
        if math.isfinite(outcome.bound):
            result.bound = max(result.bound, math.ceil(outcome.bound - 1e-6))
        if outcome.x is None:
            return "solver_error" if outcome.termination == "unbounded" else outcome.termination
        mask = program.mask(outcome.x)
        if task.allowed(mask) and bool(requirement.met(task.oracle(mask)[0], task.targets)):
            _offer(result, mask)
        elif outcome.termination == "optimal":
            mip = _refuted(result, mip, outcome.x, mask)
            continue
        if outcome.termination != "optimal":
            return outcome.termination
        if not result.closed:
            return "solver_error"  # an optimum that is none
    return "optimal"


def _offer(result: SoundResult, mask: np.ndarray) -> None:
    if mask.sum() < result.objective:
        result.kept = mask


def _tangents(result: SoundResult, mip: LinearMip, masks: list[np.ndarray]) -> LinearMip:
    """The program with tangents at the logits of some masks."""
    loss = result.program.loss
    assert loss is not None
    for mask in masks:
        matrix, lower = loss.tangents(result.program.task.network.output(result.program.task.x, mask), mip.n_columns)
        mip = with_rows(mip, matrix, lower)
        result.n_cuts += len(lower)
    return mip


def _relaxed_rounds(
    result: SoundResult, mip: LinearMip, solver: str, deadline: float, threads: int, seed: int
) -> LinearMip:
    """Tangents where the relaxation (all columns continuous) lands, until they say nothing new; raises the bound."""
    loss = result.program.loss
    assert loss is not None
    for _ in range(_RELAXED_ROUNDS):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            break
        relaxed = dataclasses.replace(mip, integer=np.zeros_like(mip.integer))
        outcome = solve_linear(relaxed, solver, None if math.isinf(remaining) else remaining, threads, None, seed)
        result.n_rounds += 1
        if outcome.x is None or outcome.termination != "optimal":
            break
        result.bound = max(result.bound, math.ceil(outcome.bound - 1e-6))
        matrix, lower = loss.tangents(outcome.x[loss.logits], mip.n_columns)
        broken = lower - matrix @ outcome.x > _BROKEN
        if not broken.any():
            break
        mip = with_rows(mip, sp.csr_array(matrix[broken]), lower[broken])
        result.n_cuts += int(broken.sum())
    return mip


def _refuted(result: SoundResult, mip: LinearMip, x: np.ndarray, mask: np.ndarray) -> LinearMip:
    """The program with rows that cut off a mask which fails on the real network."""
    program = result.program
    if program.loss is not None:
        logits = program.task.network.output(program.task.x, mask)
        matrix, lower = program.loss.tangents(logits, mip.n_columns)
        point = program.point(mask)
        point[program.loss.losses] = x[program.loss.losses]
        if (lower - matrix @ point > 1e-5).any():
            result.n_cuts += len(lower)
            return with_rows(mip, matrix, lower)
    values, lower_limit = no_good(mask)
    row = sp.csr_array((values, program.rows.gates, [0, len(values)]), shape=(1, mip.n_columns))
    result.n_cuts += 1
    return with_rows(mip, row, np.array([lower_limit]))


def _dense_text(task: Task, requirement: Requirement) -> str:
    return requirement.describe(task.oracle(np.ones(task.n_units, dtype=bool))[0], task.targets) + " when dense"


def _infeasible(task: Task, requirement: Requirement) -> InfeasibleError:
    beside = ", min_keep, the pins and the forbidden masks" if len(task.forbidden) else ", min_keep and the pins"
    return InfeasibleError(
        f"no mask meets the requirement{beside}: {_dense_text(task, requirement)}; ask for a smaller margin, a larger "
        f"loss or more violated samples",
        requirement="margin" if isinstance(requirement, Margin) else "max_loss",
    )
