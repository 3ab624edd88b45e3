"""The program of 2002.07259 (OAMIP): continuous unit scores, ReLU binaries per image, pruning by a threshold."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from ..bounds import Affine, interval_ranges
from ..errors import BudgetError, TraceError
from ..records import Record
from ..solver import LinearMip, MipBuilder, solve_linear
from .expression import Entry
from .masked_rows import MaskedRows
from .requirement import losses
from .tangents import LossColumns, with_rows
from .task import Task

__all__ = ["OamipOptions", "OamipProgram", "OamipResult", "solve_oamip"]

#: Gap between objective and bound, relative, at which the rounds of tangents end.
RELATIVE_GAP = 1e-4
#: Share of the time limit after which the binaries are no longer relaxed.
_RELAXED_SHARE = 0.4
#: Most linear programs; half of them, at most, with relaxed binaries.
_MAX_ROUNDS = 200


@dataclasses.dataclass(frozen=True, eq=False)
class OamipOptions(Record):
    """Settings of the original form, with its authors' values.

    Attributes:
        loss_weight: lambda, the weight of the mean cross-entropy beside the sparsity term.
        epsilon: half the width of the input box that the ReLUs' bounds are computed on.
        threshold: units with a score below it are pruned.
    """

    loss_weight: float = 5.0
    epsilon: float = 1e-4
    threshold: float = 0.1

    def __post_init__(self) -> None:
        if not (self.loss_weight >= 0 and self.epsilon >= 0 and 0 <= self.threshold <= 1):
            raise BudgetError(f"loss_weight and epsilon must be at least 0 and threshold in [0, 1], got {self}")


class OamipRows(MaskedRows):
    """The rows of :class:`OamipProgram` instead of the exact ones; ``gates`` are the scores."""

    def _add_gates(self) -> np.ndarray:
        return self.builder.add_columns(len(self.keep), lower=self.keep.astype(float))

    def _relu(self, a: Entry, k: int, source: int, i: int, unit: int, value: int) -> Entry:
        """No ReLU is decided by its bounds: they are those of the unpruned network."""
        on = unit < 0 or bool(self.keep[unit])
        if on and a.is_constant:
            return Entry.of(max(a.constant, 0.0))
        low, high = self._range(k, source, i)
        high = max(high, 0.0)
        builder = self.builder
        h = self._add("value", k, value, i, upper=high)
        z = self._add("active", k, source, i)
        builder.add_row(np.array([h, z]), np.array([1.0, -high]), upper=0.0)
        if on:
            a.add_row(builder, [h], [1.0], lower=0.0)
            a.add_row(builder, [h, z], [1.0, -low], upper=-low)
        else:
            s = int(self.gates[unit])
            a.add_row(builder, [h, s], [1.0, -high], lower=-high)
            a.add_row(builder, [h, z, s], [1.0, -low, -high], upper=-low - high)
        return Entry.of(0.0, [h], [1.0])

    def _product(self, x: Entry, k: int, source: int, i: int, unit: int, value: int) -> Entry:
        if unit < 0 or self.keep[unit]:
            return x
        raise TraceError(
            "formulation='oamip' puts scores on ReLUs that only the next layer reads; pin the layers whose units are "
            "read otherwise, or use formulation='sound'"
        )

    def _range(self, k: int, value: int, entry: int) -> tuple[float, float]:
        low, high = super()._range(k, value, entry)
        behind_relu = value > 0 and not isinstance(self.network.node_of(value), Affine)
        return (min(low, 0.0), high) if behind_relu else (low, high)  # a lower score can bring it down to 0


class OamipProgram:
    """Scores s in [0, 1] shared by all images; per image and ReLU a binary z and h with::

        h <= z U+,   h >= a - (1 - s) U+,   h <= a - (1 - z) L - (1 - s) U+,   h >= 0,   U+ = max(U, 0),

    L and U from interval arithmetic on x +- epsilon in the *unpruned* network.  A score below 1 thus lowers the
    pre-activation: ``h = relu(a - (1 - s) U+)``.  Objective: ``lambda mean_k CE_k`` plus the sum of the r largest layer
    means of ``s - 2``, where r is the number of scored layers less one, at least one.  Convolution, pooling and
    batch-norm are affine rows, all positions of a channel share its score.  The log-sum-exp is given by tangents, so
    that any solver of linear programs can take it.

    Written from 2002.07259 and the behaviour of its authors' public code; where the two leave room, this is our form of
    it.  What to know about it:

    - L and U hold for s = 1 only.  With other scores a deeper ``a - (1 - s) U+`` may lie below L, which forbids these
      scores rather than pruning them: the program cuts off masks that the network itself could take.
    - With a tiny epsilon, U and L have the same sign for nearly every ReLU, so nearly every binary is decided before
      the search starts.
    - The scores are fractional; the threshold rounds them.  Objective and bound are about the scores, not about the
      mask that is deployed.

    Raises:
        TraceError: a unit that isn't a ReLU read by the next layer alone.
    """

    def __init__(self, task: Task, options: OamipOptions) -> None:
        self.task, self.options = task, options
        builder = MipBuilder()
        every = np.ones(task.n_units, dtype=bool)
        ranges = interval_ranges(task.network, task.x - options.epsilon, task.x + options.epsilon, keep=every)
        self.rows = OamipRows(builder, task.network, ranges, task.x, task.keep)
        free = np.full((len(task.x), task.network.sizes[-1]), np.inf)
        cost = options.loss_weight / len(task.x)
        self.loss = LossColumns(builder, self.rows.outputs, -free, free, task.targets, cost)
        self._top: list[int] = []
        self._add_sparsity(builder)
        self.mip: LinearMip = builder.build()

    def _add_sparsity(self, builder: MipBuilder) -> None:
        """Sum of the r largest layer means: ``min over t of r t + sum_l max(0, mean_l - t)``."""
        layers = [units for units in self.task.groups if not self.task.keep[units].all()]
        if not layers:
            return
        largest = max(len(layers) - 1, 1)
        t = builder.add_columns(1, cost=float(largest), lower=-2.0, upper=-1.0)
        above = builder.add_columns(len(layers), cost=1.0)
        for column, units in zip(above, layers):
            n = len(units)
            columns = np.concatenate([[column], t, self.rows.gates[units]])
            builder.add_row(columns, np.concatenate([[1.0, 1.0], np.full(n, -1.0 / n)]), lower=-2.0)
        self._top = t.tolist()

    def dense_point(self) -> np.ndarray:
        """The program's solution with all scores 1: the unpruned network."""
        point = self.rows.point(np.ones(self.task.n_units, dtype=bool), self.mip.n_columns)
        point[self._top] = -1.0
        self.loss.fill(point, self.task.network.output(self.task.x))
        return point

    def objective(self, x: np.ndarray) -> float:
        """Objective at a solution with its log-sum-exp computed, not taken from the tangents."""
        exact = x.copy()
        exact[self.loss.losses] = losses(x[self.loss.logits], self.task.targets)
        return float(self.mip.c @ exact)


@dataclasses.dataclass
class OamipResult:
    """Scores with their objective and bound, and the mask that the threshold makes of them."""

    program: OamipProgram
    scores: np.ndarray
    kept: np.ndarray
    objective: float
    bound: float = -math.inf
    termination: str = "iteration_limit"
    n_rounds: int = 0
    n_cuts: int = 0

    @property
    def closed(self) -> bool:
        return self.objective - self.bound <= RELATIVE_GAP * max(1.0, abs(self.objective))


def solve_oamip(
    task: Task, options: OamipOptions, *, solver: str, time_limit: float | None, threads: int, seed: int
) -> OamipResult:
    """Solve, add tangents at the logits of the solution, solve again, until objective and bound agree to 1e-4.

    The first rounds relax the binaries, which is cheap and yields most of the tangents.
    """
    begin = time.monotonic()
    program = OamipProgram(task, options)
    best = program.dense_point()
    result = OamipResult(program, np.ones(task.n_units), np.ones(task.n_units, bool), program.objective(best))
    try:
        result.termination = _rounds(result, best, begin, time_limit, solver, threads, seed)
    except KeyboardInterrupt:
        result.termination = "interrupted"
    if result.closed:
        result.termination = "optimal"
    result.kept = mask_of(result.scores, task, options.threshold)
    return result


def _rounds(
    result: OamipResult, best: np.ndarray, begin: float, time_limit: float | None, solver: str, threads: int, seed: int
) -> str:
    """Linear programs until objective and bound agree; returns why that ended."""
    program = result.program
    mip = _cut(result, program.mip, best)
    limit = math.inf if time_limit is None else time_limit
    relaxed = True
    while result.n_rounds < _MAX_ROUNDS and not result.closed:
        left = limit - (time.monotonic() - begin)
        if left <= 0:
            return "time_limit"
        if relaxed:  # at least a little, so that a slow start still yields a bound
            left = max(left - (1 - _RELAXED_SHARE) * limit, 0.1 * left) if time_limit else left
            now = dataclasses.replace(mip, integer=np.zeros_like(mip.integer))
        else:
            now = mip
        outcome = solve_linear(
            now, solver, left if time_limit else None, threads, None if relaxed else _filled(program, best), seed
        )
        result.n_rounds += 1
        result.bound = max(result.bound, outcome.bound)
        if outcome.termination == "interrupted":
            return "interrupted"
        if relaxed and (outcome.x is None or outcome.termination != "optimal"):
            relaxed = False  # too large to be relaxed first in the time given
            continue
        if outcome.x is None:
            return "solver_error" if outcome.termination == "unbounded" else outcome.termination
        x, value = outcome.x, program.objective(outcome.x)
        if not relaxed and value < result.objective:
            best, result.objective, result.scores = x, value, np.clip(x[program.rows.gates], 0.0, 1.0)
        if outcome.termination != "optimal":
            return outcome.termination
        mip = _cut(result, mip, x)
        late = time.monotonic() - begin > _RELAXED_SHARE * limit
        if late or result.n_rounds >= _MAX_ROUNDS // 2 or value - outcome.bound <= RELATIVE_GAP * max(1.0, abs(value)):
            relaxed = False
    return "iteration_limit"


def mask_of(scores: np.ndarray, task: Task, threshold: float) -> np.ndarray:
    """Units whose score reaches the threshold, and in every layer the ``min_keep`` highest whatever their score."""
    kept = (scores >= threshold) | task.keep
    for units, least in zip(task.groups, task.min_keep):
        kept[units[np.argsort(-scores[units], kind="stable")[:least]]] = True
    return np.asarray(kept)


def _cut(result: OamipResult, mip: LinearMip, x: np.ndarray) -> LinearMip:
    matrix, lower = result.program.loss.tangents(x[result.program.loss.logits], mip.n_columns)
    result.n_cuts += len(lower)
    return with_rows(mip, matrix, lower)


def _filled(program: OamipProgram, x: np.ndarray) -> np.ndarray:
    """A solution with its losses computed, so that it meets all tangents."""
    filled = x.copy()
    filled[program.loss.losses] = losses(x[program.loss.logits], program.task.targets)
    return filled
