"""A search over the widths of all layers whose oracle is the repaired network itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from ..costs import CostModel

__all__ = ["Curve", "WidthSearch"]


class Curve(Protocol):
    """In which order the units of a group leave, and what that costs; a :class:`~mipprune.curvature.RefitCurve` is one.

    Attributes:
        order: int64 (n,), units within the group, the first to leave first.
        error: float64 (n + 1,), entry r once ``order[:r]`` have left.
    """

    @property
    def order(self) -> np.ndarray: ...

    @property
    def error(self) -> np.ndarray: ...

    def mask(self, count: int) -> np.ndarray:
        """Bool (n,): the units that stay when ``count`` do."""


class WidthSearch:
    """Exchanges between the widths of two groups, each judged by the oracle; masks come from the curves' orders.

    Args:
        limits: resource -> largest cost.
        allowed: per group the widths it may have, ascending.
        oracle: mask -> loss.
    """

    def __init__(
        self, curves: Sequence[Curve], costs: CostModel, limits: dict[str, int],
        allowed: Sequence[np.ndarray],
        oracle: Callable[[np.ndarray], float], seed: int = 0,
    ) -> None:
        self.curves, self.costs, self.limits, self.allowed = curves, costs, limits, allowed
        self.oracle = oracle
        self.seen: dict[tuple[int, ...], float] = {}
        self._rng = np.random.default_rng(seed)

    def mask(self, counts: np.ndarray) -> np.ndarray:
        """Bool (n_units,): the units that stay longest in every curve."""
        return np.concatenate([curve.mask(int(k)) for curve, k in zip(self.curves, counts, strict=True)])

    def run(self, counts: np.ndarray, evaluations: int, goes_on: Callable[[], bool]) -> tuple[np.ndarray, float]:
        """The best widths found, and their loss; ends at a local optimum, after ``evaluations``, or when told to."""
        best = self.filled(np.array(counts, dtype=np.int64))
        start = tuple(int(k) for k in counts)
        loss = self._loss(best)
        if tuple(best) != start and self._loss(np.array(start)) < loss:
            best, loss = np.array(start), self._loss(np.array(start))
        coarse = True
        while len(self.seen) < evaluations and goes_on():
            improved = False
            for group in self._rng.permutation(len(best)) if coarse else ():
                trial = self._emptied(best, group)
                if trial is None or self._key(trial) in self.seen or len(self.seen) >= evaluations or not goes_on():
                    continue
                value = self._loss(trial)
                if value < loss:
                    best, loss, improved = trial, value, True
            pairs = [(a, b) for a in range(len(best)) for b in range(len(best)) if a != b]
            self._rng.shuffle(pairs)
            for a, b in pairs:
                while len(self.seen) < evaluations and goes_on():
                    trial = self._exchanged(best, a, b, coarse)
                    if trial is None or self._key(trial) in self.seen:
                        break
                    value = self._loss(trial)
                    if value >= loss:
                        break
                    best, loss, improved = trial, value, True  # and once more in the same direction
            if not improved:
                if not coarse:
                    break
                coarse = False
        return best, loss

    def finalists(self, most: int) -> list[tuple[np.ndarray, float]]:
        """The best widths seen for each choice of emptied groups, and their loss; the ``most`` best ones."""
        best: dict[tuple[bool, ...], tuple[np.ndarray, float]] = {}
        for key, loss in self.seen.items():
            empty = tuple(k == 0 for k in key)
            counts = np.array(key, dtype=np.int64)
            if self.fits(counts) and (empty not in best or loss < best[empty][1]):
                best[empty] = (counts, loss)
        return sorted(best.values(), key=lambda found: found[1])[:most]

    def judge(self, counts: np.ndarray) -> float:
        """The oracle's loss of these widths with what the limits still allow added."""
        return self._loss(self.filled(np.array(counts, dtype=np.int64)))

    def trimmed(self, empty: Collection[int]) -> np.ndarray | None:
        """Widths with nothing of the groups ``empty`` and something of the others, by the curves.

        From all units down, each time the step of least predicted loss per cost saved; ``None`` if nothing fits.
        """
        least = [widths[0] if g in empty else widths[widths > 0][0] for g, widths in enumerate(self.allowed)]
        counts = np.array([0 if g in empty else w[-1] for g, w in enumerate(self.allowed)], dtype=np.int64)
        limits = np.array([*self.limits.values()])
        while not self.fits(counts):
            steps = []
            for g, widths in enumerate(self.allowed):
                lower = widths[(widths <= counts[g] - max(1, counts[g] // 24)) & (widths >= least[g])]
                if g not in empty and len(lower):
                    steps.append((g, int(lower[-1])))
            now, then = self.priced(counts, steps)
            saved = ((now - then) * (now > limits)).sum(1)
            options = [(self.rise(g, counts[g], width) / save, g, width)
                       for (g, width), save in zip(steps, saved, strict=True) if save > 0]
            if not options:
                return None
            _, g, width = min(options)
            counts[g] = width
        return counts

    def filled(self, counts: np.ndarray) -> np.ndarray:
        """The widths with what the limits still allow added, least predicted loss per cost first.

        Groups that were emptied stay empty.
        """
        counts = counts.copy()
        limits = np.array([*self.limits.values()])
        while True:
            steps = [(g, wider) for g, k in enumerate(counts)
                     if (k > 0 or self.allowed[g][0] > 0) and (wider := self._next(g, k)) > k]
            now, then = self.priced(counts, steps)
            options = [(self.rise(g, counts[g], width) / max(price, 1), g)
                       for (g, width), price, fits in
                       zip(steps, (then - now).sum(1), np.all(then <= limits, 1), strict=True) if fits]
            if not options:
                return counts
            best = min(options)[1]
            counts[best] = self._next(best, counts[best])

    def priced(self, counts: np.ndarray, steps: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Costs of the limited resources: int64 (R,) at ``counts``, and (S, R) after each ``(group, width)`` alone."""
        rows = np.repeat(counts[None], len(steps) + 1, 0)
        for at, (group, width) in enumerate(steps, 1):
            rows[at, group] = width
        found = np.array([self.costs[r].of_counts(rows) for r in self.limits], dtype=np.int64)
        found = found.reshape(len(self.limits), len(rows)).T
        return found[0], found[1:]

    def rise(self, group: int, before: int, after: int) -> float:
        """What the curve says of a change of one group's width, in nats."""
        curve = self.curves[group]
        return float(curve.error[len(curve.order) - after] - curve.error[len(curve.order) - before])

    def fits(self, counts: np.ndarray) -> bool:
        """Whether the limits allow these widths."""
        return all(self.costs.cost(r, counts) <= limit for r, limit in self.limits.items())

    def _exchanged(self, counts: np.ndarray, a: int, b: int, coarse: bool) -> np.ndarray | None:
        """Fewer of group ``a``, as many more of ``b`` as that pays for."""
        wider = self._next(b, counts[b])
        lower = self.allowed[a][self.allowed[a] <= counts[a] - (max(1, round(counts[a] / 6)) if coarse else 1)]
        for width in lower[::-1] if wider > counts[b] else ():  # a head may take many channels to pay for
            grown = counts.copy()
            grown[a], grown[b] = width, wider
            if self.fits(grown):
                break
        else:
            return None
        while (wider := self._next(b, grown[b])) > grown[b]:
            last, grown[b] = grown[b], wider
            if not self.fits(grown):
                grown[b] = last
                break
        return self.filled(grown)

    def _emptied(self, counts: np.ndarray, group: int) -> np.ndarray | None:
        """Nothing of a group that may be emptied, and of the others what that pays for."""
        if counts[group] == 0 or self.allowed[group][0] > 0:
            return None
        trial = counts.copy()
        trial[group] = 0
        return self.filled(trial)

    def _next(self, group: int, count: int) -> int:
        """The next larger width that the group may have, or the present one if there is none."""
        return int(min(self.allowed[group][self.allowed[group] > count], default=count))

    @staticmethod
    def _key(counts: np.ndarray) -> tuple[int, ...]:
        return tuple(int(k) for k in counts)

    def _loss(self, counts: np.ndarray) -> float:
        key = self._key(counts)
        if key not in self.seen:
            self.seen[key] = self.oracle(self.mask(counts))
        return self.seen[key]
