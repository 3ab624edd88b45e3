"""A search over masks of networks that nothing repairs: moves screened by a quadratic, judged by the loss itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..costs import CostModel
from .unit_exchange import UnitExchange
from .widths import WidthSearch

__all__ = ["GateSearch"]

#: Random exchanges proposed for every step of a path.
PROPOSALS = 40
#: Single exchanges judged when a path leads nowhere, and rounds in a row without a better mask that end the search.
SINGLES, PATIENCE = 3, 8
#: Exchanges that a path starts with, and at most has.
FIRST_LENGTH, MOST_LENGTH = 2, 8
#: Noise on what units are worth, in standard deviations of their group: a little, and more after a round in vain.
NOISE, MORE_NOISE = 0.2, 0.5


@dataclasses.dataclass(frozen=True)
class _Ranking:
    """The units of a group in the order in which they would leave, those that are off first, and what that costs."""

    order: np.ndarray
    error: np.ndarray

    def mask(self, count: int) -> np.ndarray:
        kept = np.zeros(len(self.order), dtype=bool)
        kept[self.order[len(self.order) - count :]] = True
        return kept


class GateSearch:
    """Exchanges of units in a trust region: the quadratic proposes, the loss decides.

    Every round expands the loss at the present mask, in the gates of all units.  Random exchanges (of
    :class:`~mipprune.pruning.unit_exchange.UnitExchange`, by what the units are worth there, and groups emptied as a
    whole) are ranked by the quadratic, the best one is taken, then the best one from there, and so on: a path, whose
    end, middle and beginning are judged by the loss, and the next best single exchanges after them.  The first better
    mask is taken.  Paths double in length where the end was better and are halved where it wasn't: the length is the
    radius in which the quadratic is trusted.  A local search, without a bound, never worse than its start.

    Args:
        limits: resource -> largest cost.
        allowed: per group the widths that it may have, ascending.
        pinned: bool (n_units,), units that stay.
        expand: mask -> gradient (n_units,) and curvature (n_units, n_units) of the loss in all gates, as of
            :func:`~mipprune.curvature.sketch_gates`.
        judge: mask -> loss.
        kept, loss: where to start.

    Attributes:
        kept, loss: the best mask so far, at any time, and its loss.
        judged: masks judged.
    """

    def __init__(
        self, costs: CostModel, limits: dict[str, int], allowed: Sequence[np.ndarray], pinned: np.ndarray,
        expand: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], judge: Callable[[np.ndarray], float],
        kept: np.ndarray, loss: float, seed: int = 0,
    ) -> None:
        self.costs, self.limits, self.allowed, self.pinned = costs, limits, allowed, pinned
        self.expand, self.judge, self.kept, self.loss = expand, judge, kept, loss
        self.judged = 0
        self._rng = np.random.default_rng(seed)
        self._seen = {kept.tobytes()}
        ends = np.cumsum(costs.sizes)
        self._units = [slice(int(end - size), int(end)) for size, end in zip(costs.sizes, ends, strict=True)]

    def run(self, rounds: int, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Search until so many rounds are over, several in a row found nothing, or it is told to end."""
        length, failed = FIRST_LENGTH, 0
        for _ in range(rounds):
            if failed == PATIENCE or not goes_on():
                return
            path, singles = self._proposed(length, MORE_NOISE if failed else NOISE)
            better = None
            for trial in _each_once([*path[-1:], *path[len(path) // 2 : -1][:1], *path[:1], *singles]):
                if not goes_on():
                    return
                if self._judged(trial):
                    better = trial
                    break
            failed = 0 if better is not None else failed + 1
            reached = better is not None and better is path[-1]
            length = min(2 * length, MOST_LENGTH) if reached else max(length // 2, 1)

    def _judged(self, trial: np.ndarray) -> bool:
        """Whether the mask is the best so far; it is remembered then."""
        self._seen.add(trial.tobytes())
        self.judged += 1
        loss = self.judge(trial)
        if not loss < self.loss:
            return False
        self.kept, self.loss = trial, loss
        return True

    def _proposed(self, length: int, noise: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """A path of exchanges from the present mask, and single ones; nothing that was judged before."""
        slope, curvature = self.expand(self.kept)
        path: list[np.ndarray] = []
        singles: list[np.ndarray] = []
        here = self.kept
        for step in range(length):
            trials = list(self._neighbours(here, slope, curvature.diagonal(), noise, step == 0))
            trials = [t for t in _each_once(trials) if t.tobytes() not in self._seen]
            if not trials:
                break
            change = here.astype(float) - np.array(trials)
            value = change @ slope + 0.5 * ((change @ curvature) * change).sum(1)
            order = np.argsort(value, kind="stable")
            if step == 0:
                singles = [trials[i] for i in order[1 : SINGLES + 1]]
            elif value[order[0]] >= 0:
                break
            slope = slope + curvature @ change[order[0]]
            here = trials[order[0]]
            path.append(here)
        return path, singles

    def _neighbours(
        self, kept: np.ndarray, slope: np.ndarray, diagonal: np.ndarray, noise: float, emptied: bool
    ) -> Iterator[np.ndarray]:
        """Masks one exchange away, some drawn several times."""
        worth = np.where(kept, slope + 0.5 * diagonal, slope - 0.5 * diagonal)  # of staying, of coming back
        rankings = []
        for units in self._units:
            noisy = worth[units] + noise * worth[units].std() * self._rng.gumbel(size=units.stop - units.start)
            order = np.lexsort((noisy, kept[units]))
            rankings.append(_Ranking(order, np.concatenate([[0.0], np.cumsum(noisy[order])])))
        widths = WidthSearch(rankings, self.costs, self.limits, self.allowed, self.judge)
        exchange = UnitExchange(widths, self.pinned, int(self._rng.integers(2**31)))
        for _ in range(PROPOSALS):
            if (trial := exchange.moved(kept)) is not None:
                yield trial
        for group, units in enumerate(self._units if emptied else ()):
            if self.allowed[group][0] == 0 and kept[units].any():
                yield exchange.without(kept, group)


def _each_once(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    return list({mask.tobytes(): mask for mask in masks}.values())
