"""The search: surrogates per layer, size-loss curves, recombination under the global requirement, truth checked.

One :class:`Searcher` holds what stays fixed; :func:`under_budget` and :func:`within_tolerance` are the two strategies.
Every mask that they return was built, repaired and measured as a real smaller network.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np
from torch import nn

from ..curvature import RefitCurve, RefitModel
from ..game import LabelledData
from ..graph import UnitGraph
from ..records import Record, frozen_array
from ..solver import Recombination, SizeCurve, recombine, size_curves
from ..surgery import PrunePlan
from .measure import Quality, measure
from .multiples import allowed_counts, least_counts, searched_counts, width_steps
from .repairing import Repairer, RepairStep
from .surrogates import layer_surrogates, refit_size_curves

__all__ = ["Candidate", "Searcher", "Stage", "tighten", "under_budget", "within_tolerance"]

#: Nodes of branch and bound per size of a layer when the final bound is tightened.
TIGHTEN_NODES = 32
#: With refits, networks of more units than this are recombined without the MIP, which would take longer than everything
#: else; a search over repaired networks follows anyway.
QUICK_ABOVE = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Stage(Record):
    """One re-expansion of the surrogate and the problem that was solved around it.

    Attributes:
        kept: bool (n_units,), the incumbent.
        objective, bound: of the stage's separable surrogate problem; the bound holds for every mask inside the mask
            that the stage started from.
        surrogate_drop: predicted loss increase against the stage's starting mask, in nats.
        true_drop: measured loss increase against the same mask after repair, on the calibration data, in nats.
        max_drop: limit on ``surrogate_drop`` in the stage's problem, if it had one.
        termination, solver, version, seconds: of the recombination.
    """

    kept: np.ndarray
    objective: float
    bound: float
    surrogate_drop: float
    true_drop: float
    max_drop: float | None
    termination: str
    solver: str
    version: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mask that was really built, and the chain of stages that led to it."""

    kept: np.ndarray
    quality: Quality
    stages: tuple[Stage, ...]


class OutOfTime(Exception):
    """The time limit passed between two steps of the search."""


@dataclasses.dataclass
class Searcher:
    """What stays fixed during a search, and the best candidate so far."""

    graph: UnitGraph
    data: LabelledData
    surrogate: str
    pinned: np.ndarray
    min_keep: int
    repairer: Repairer
    solver: str
    n_jobs: int
    seed: int
    deadline: float | None
    tick: Callable[[str], None]
    multiple: int = 1
    unseen: LabelledData | None = None
    effort: float = 1.0
    stopped: Callable[[], bool] = lambda: False
    # what was built last: mask and repairs, the network, what they did
    _built: tuple[tuple[bytes, tuple[str, ...]], nn.Module, tuple[RepairStep, ...]] | None = dataclasses.field(
        default=None, init=False  # dataclasses.replace starts anew: the repairs may be others
    )

    @property
    def floor(self) -> np.ndarray:
        """``min_keep``, or 0 for groups that may be emptied: int64 (G,)."""
        return least_counts(self.graph, self.min_keep)

    @property
    def fewest(self) -> np.ndarray:
        """Fewest units that every group must keep, pinned ones among them: int64 (G,)."""
        return np.maximum(self.floor, self.graph.costs.counts(self.pinned))

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """What the kept counts of every group must be multiples of: int64 (G,)."""
        return width_steps(self.graph, self.multiple)

    @property
    def allowed(self) -> tuple[np.ndarray, ...]:
        """Counts that every group may keep, ascending."""
        return allowed_counts(self.graph.costs.sizes, self.fewest, self.steps)

    def remaining(self) -> float | None:
        """Seconds left, or ``None`` without a limit; raises :class:`OutOfTime` when there are none."""
        if self.deadline is None:
            return None
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return left

    def scaled(self, trials: int) -> int:
        """So many trials of a search, times the effort that was asked for; at least one."""
        return max(1, round(self.effort * trials))

    def goes_on(self) -> bool:
        """Whether there is time left and nobody has asked to stop."""
        return not self.stopped() and (self.deadline is None or time.monotonic() < self.deadline)

    def deployed(self, kept: np.ndarray) -> tuple[nn.Module, tuple[RepairStep, ...]]:
        """The smaller network of a mask, repaired, and what the repairs did; the last one built is remembered."""
        return self._deploy(kept, self.repairer.names)

    def truth(self, kept: np.ndarray) -> Quality:
        """Quality on the calibration data of the network with all repairs but the slow ``"lm"``."""
        names = tuple(name for name in self.repairer.names if name != "lm")
        if not names:
            return measure(PrunePlan.from_mask(self.graph, kept).apply(self.graph.model), self.data)
        return measure(self._deploy(kept, names)[0], self.data)

    def _deploy(self, kept: np.ndarray, names: tuple[str, ...]) -> tuple[nn.Module, tuple[RepairStep, ...]]:
        key = kept.tobytes(), names
        if self._built is None or self._built[0] != key:
            self._built = key, *self.repairer.deploy(kept, names, self.goes_on)
        return self._built[1:]

    def curves(self, kept: np.ndarray, max_nodes: int = 0) -> list[SizeCurve]:
        """Size-loss curve of every group around the mask ``kept``; units that are off stay off.

        ``max_nodes`` of branch and bound go into closing the gap at every size.
        """
        self.tick("measuring")
        if self.surrogate == "refit":
            return refit_size_curves(self.refit_curves, self.fewest)
        surrogates = layer_surrogates(self.surrogate, self.graph, self.data, kept, self.seed)
        self.tick("solving layers")
        limit = self.remaining()
        groups, counts = self.graph.groups, self.graph.costs.counts(kept)
        searched = [
            None if step == 1 else searched_counts(sizes, count)
            for sizes, count, step in zip(self.allowed, counts, self.steps, strict=True)
        ]
        curves = size_curves(
            surrogates, searched, min_keep=[int(least) for least in self.floor],
            keep=[self.pinned[group.units] for group in groups], remove=[~kept[group.units] for group in groups],
            max_nodes=max_nodes, n_jobs=self.n_jobs, seed=self.seed, time_limit=limit,
        )
        if any(curve.termination == "interrupted" for curve in curves):
            raise KeyboardInterrupt
        return curves

    @functools.cached_property
    def refit_model(self) -> RefitModel:
        """The refit-aware surrogate around the dense network."""
        return RefitModel(self.graph, self.data, sensitivity=self.repairer.sensitivity)

    @functools.cached_property
    def refit_curves(self) -> list[RefitCurve]:
        """Its curve of every group."""
        return self.refit_model.curves(self.pinned)

    def combine(self, curves: list[SizeCurve], **problem: object) -> Recombination:
        """Best sizes of all groups together."""
        self.tick("combining layers")
        quick = self.surrogate == "refit" and self.graph.n_units > QUICK_ABOVE
        return recombine(
            curves, self.graph.costs, multiples=self.steps.tolist(), solver=self.solver, time_limit=self.remaining(),
            quick=quick, **problem,  # type: ignore[arg-type]
        )

    def stage(self, found: Recombination, before: Quality, after: Quality, max_drop: float | None) -> Stage:
        return Stage(
            kept=frozen_array(found.kept, bool), objective=found.objective, bound=found.bound,
            surrogate_drop=found.drop, true_drop=after.loss - before.loss, max_drop=max_drop,
            termination=found.termination, solver=found.solver, version=found.version, seconds=found.seconds,
        )


def under_budget(search: Searcher, limits: dict[str, int], stages: int, best: list[Candidate]) -> None:
    """Smallest loss under ``limits`` (resource -> absolute), removing units in ``stages`` steps.

    After each step the surrogate is measured anew around the smaller network, because a second-order expansion of the
    dense network says little about one that lost half its units.  The final mask is appended to ``best``; the chain as
    a whole is a heuristic, each step has its bound.
    """
    costs = search.graph.costs
    full = {resource: costs.cost(resource, costs.sizes) for resource in limits}
    kept = np.ones(search.graph.n_units, dtype=bool)
    quality = search.truth(kept)
    chain: list[Stage] = []
    for step in range(1, stages + 1):
        now = {r: full[r] - (full[r] - limit) * step // stages for r, limit in limits.items()}
        found = search.combine(search.curves(kept), objective="drop", budgets=now)
        after = search.truth(found.kept)
        chain.append(search.stage(found, quality, after, None))
        kept, quality = found.kept, after
        if found.termination == "interrupted":
            raise KeyboardInterrupt
    best.append(Candidate(kept, quality, tuple(chain)))


def within_tolerance(
    search: Searcher, nats: float, minimize: str, stages: int, best: list[Candidate], trials: int = 8,
    rise: Callable[[np.ndarray], float] = lambda kept: 0.0,
) -> None:
    """Cheapest network in ``minimize`` whose measured loss increase stays within ``nats``.

    The surrogate's limit ``max_drop`` is searched for: the largest one whose solution, built and repaired, keeps the
    true loss within the tolerance, and ``rise`` of the mask too.  Every stage may use an equal further share of the
    tolerance.  Masks that pass are appended to ``best``, each at least as cheap as the one before.
    """
    costs = search.graph.costs
    kept = np.ones(search.graph.n_units, dtype=bool)
    quality = dense = search.truth(kept)
    chain: tuple[Stage, ...] = ()
    best.append(Candidate(kept, dense, chain))
    for step in range(1, stages + 1):
        allowed = dense.loss + nats * step / stages
        curves = search.curves(kept)
        low, high, limit = None, None, max(allowed - quality.loss, nats / 16, 1e-6)
        winner: tuple[Recombination, Quality, float] | None = None
        for _ in range(trials):
            found = search.combine(curves, objective=minimize, max_drop=limit)
            after = search.truth(found.kept)
            if after.loss <= allowed and rise(found.kept) <= nats:
                low = limit
                if winner is None or found.objective <= winner[0].objective:
                    winner = (found, after, limit)
            else:
                high = limit
            if found.termination == "interrupted":
                raise KeyboardInterrupt
            if low is not None and high is not None:
                limit = float(np.sqrt(low * high))
                if high / low < 1.05:
                    break
            else:
                limit = limit * 4 if high is None else limit / 4
        if winner is None:
            continue
        found, after, limit = winner
        chain = (*chain, search.stage(found, quality, after, limit))
        kept, quality = found.kept, after
        if costs.cost(minimize, costs.counts(kept)) <= costs.cost(minimize, costs.counts(best[-1].kept)):
            best.append(Candidate(kept, quality, chain))


def tighten(search: Searcher, best: Candidate, passes: Callable[[Quality], bool], **problem: object) -> Candidate:
    """Solve the last stage's ``problem`` once more with branch and bound inside every layer, for a better bound.

    A better incumbent is taken if the network built from it ``passes``; else the mask stays and its bound rises.
    """
    last = best.stages[-1]
    start = best.stages[-2].kept if len(best.stages) > 1 else np.ones(search.graph.n_units, dtype=bool)
    found = search.combine(search.curves(start, TIGHTEN_NODES), **problem)
    seconds = last.seconds + found.seconds
    if found.objective < last.objective:
        after = search.truth(found.kept)
        if passes(after):
            before = dataclasses.replace(best.quality, loss=best.quality.loss - last.true_drop)
            stage = search.stage(found, before, after, last.max_drop)
            stage = dataclasses.replace(stage, bound=max(found.bound, last.bound), seconds=seconds)
            return Candidate(found.kept, after, (*best.stages[:-1], stage))
    stage = dataclasses.replace(last, bound=max(found.bound, last.bound), seconds=seconds)
    return dataclasses.replace(best, stages=(*best.stages[:-1], stage))
