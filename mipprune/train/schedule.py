"""When units leave during training, and which: a cubic schedule, and the solver on the present surrogate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from ..curvature import expand_gates
from ..errors import ConfigError
from ..game.data import LabelledData
from ..graph import UnitGraph
from ..records import Record
from ..solver import recombine, size_curve
from ..surrogates import Quadratic

__all__ = ["CubicSchedule", "PruningEvent", "choose_units"]


@dataclasses.dataclass(frozen=True)
class CubicSchedule:
    """How much of the removal is done when: ``1 - (1 - t)^3``, t from 0 to 1 between two points (1710.01878).

    Attributes:
        start, end: shares of the epochs at which the first and the last units leave; what is behind ``end`` is training
            of the final network.
        events: how many times units leave, at equal distances; fewer if there are fewer epochs.
    """

    start: float = 0.25
    end: float = 0.75
    events: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < 1 or self.events < 1:
            raise ConfigError(f"schedule: expected 0 <= start <= end < 1 and events >= 1, got {self}")

    def shares(self, epochs: int) -> dict[int, float]:
        """Number of epochs done -> share of the removal done then; the last share is 1."""
        when = np.round(np.linspace(self.start * epochs, self.end * epochs, self.events)).astype(int)
        points = np.unique(np.minimum(when, epochs - 1))
        if self.events == 1:
            points = points[-1:]
        done = np.arange(1, len(points) + 1) / len(points)
        return {int(epoch): float(1 - (1 - t) ** 3) for epoch, t in zip(points, done, strict=True)}


@dataclasses.dataclass(frozen=True, eq=False)
class PruningEvent(Record):
    """Units that left at one point of the training.

    Attributes:
        epoch: epochs done before.
        limits: resource -> absolute limit that was met.
        counts: int64 (G,), units kept per group afterwards.
        objective, bound: of the surrogate problem, nats of loss increase; no mask does better than ``bound`` there.
        termination: why its solver stopped.
        loss_before, loss_after: mean cross-entropy on the selection's samples around the surgery, in nats.
        seconds: wall-clock time of expansion and solving.
    """

    epoch: int
    limits: dict[str, int]
    counts: np.ndarray
    objective: float
    bound: float
    termination: str
    loss_before: float
    loss_after: float
    seconds: float


def choose_units(
    graph: UnitGraph, data: LabelledData, limits: Mapping[str, int], pinned: np.ndarray, *, min_keep: int, solver: str,
    seed: int, epoch: int,
) -> tuple[np.ndarray, PruningEvent]:
    """The kept mask (n_units,) of least loss by the second-order gate surrogate under ``limits``, and its account.

    The surrogate is that of :func:`mipprune.prune`: gradient and Gauss-Newton curvature in the gates, one convex
    quadratic per group, a size-loss curve for each, and a mixed-integer program over the exact costs.
    ``loss_after`` of the account is left at NaN.
    """
    began = time.monotonic()
    expansion = expand_gates(graph, data)
    curves = [
        size_curve(
            Quadratic.from_curvature(expansion.gradient[group.units], block),
            min_keep=min(min_keep, group.size), keep=pinned[group.units], max_nodes=0, seed=seed,
        )
        for group, block in zip(graph.groups, expansion.curvature, strict=True)
    ]
    found = recombine(curves, graph.costs, objective="drop", budgets=dict(limits), solver=solver)
    if "interrupted" in (found.termination, *(curve.termination for curve in curves)):
        raise KeyboardInterrupt
    return found.kept, PruningEvent(epoch, dict(limits), found.counts, found.objective, found.bound, found.termination,
                                    expansion.loss, float("nan"), time.monotonic() - began)
