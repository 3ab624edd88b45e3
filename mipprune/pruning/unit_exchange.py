"""A search over single units: exchanges that leave the curves' order behind."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from .widths import WidthSearch

__all__ = ["UnitExchange"]


class UnitExchange:
    """Random exchanges of single units, and of a few units of one group for those of another, judged by the oracle.

    The curves' order around the dense network says little about which units a network of a tenth of its size should
    have; this search starts from any mask and moves off that order.  A local search: no bound, and never worse than
    its start by the oracle.

    Args:
        widths: curves, limits, allowed widths and the oracle.
        pinned: bool (n_units,), units that stay.
        alike: groups (projected streams) of which only the number of units counts.
        keep_empty: whether :meth:`run` leaves it as it is which groups are empty.
    """

    def __init__(
        self, widths: WidthSearch, pinned: np.ndarray, seed: int = 0, alike: Collection[int] = (),
        keep_empty: bool = False,
    ) -> None:
        self.widths, self.pinned, self.alike = widths, pinned, set(alike)
        self.keep_empty = keep_empty
        self._rng = np.random.default_rng(seed)
        sizes = [len(curve.order) for curve in widths.curves]
        self._units = [np.arange(end - n, end) for n, end in zip(sizes, np.cumsum(sizes), strict=True)]
        self._rank = np.concatenate([np.argsort(curve.order) for curve in widths.curves])  # high: stays long

    def run(
        self, kept: np.ndarray, evaluations: int, goes_on: Callable[[], bool] = lambda: True, enough: float = -np.inf
    ) -> list[np.ndarray]:
        """The masks that were better than all before them, the best one last, of so many ``evaluations``.

        It starts at ``kept``, whose loss has to be known anyway, and ends as soon as a loss is at most ``enough``.
        """
        loss, path = self.widths.oracle(kept), []
        seen = {kept.tobytes()}
        spent = 0
        for _ in range(20 * evaluations):  # moves that don't fit or were tried before cost nothing
            if spent == evaluations or loss <= enough or not goes_on():
                break
            trial = self.moved(kept)
            if trial is None or trial.tobytes() in seen:
                continue
            if self.keep_empty and ((self._counts(trial) == 0) != (self._counts(kept) == 0)).any():
                continue
            seen.add(trial.tobytes())
            spent += 1
            value = self.widths.oracle(trial)
            if value < loss:
                kept, loss = trial, value
                path.append(kept)
        return path

    def thinned(self, kept: np.ndarray) -> np.ndarray | None:
        """Units taken away, least predicted loss per cost first, until the limits hold; ``None`` if they can't."""
        kept, widths = kept.copy(), self.widths
        counts = self._counts(kept)
        while not widths.fits(counts):
            steps, leaving = [], []
            for g, allowed in enumerate(widths.allowed):
                out = [u for u in self._by_rank(g) if kept[u] and not self.pinned[u]]
                narrower = allowed[allowed < counts[g]]
                if len(narrower) and len(out) >= counts[g] - narrower[-1]:
                    steps.append((g, int(narrower[-1])))
                    leaving.append(out[: counts[g] - narrower[-1]])
            if not steps:
                return None
            now, then = widths.priced(counts, steps)
            losses = [widths.rise(g, counts[g], width) for g, width in steps]
            best = int(np.argmin(losses / np.maximum((now - then).sum(1), 1)))
            kept[leaving[best]] = False
            counts[steps[best][0]] = steps[best][1]
        return kept

    def moved(self, kept: np.ndarray) -> np.ndarray | None:
        """A mask one random exchange away, bool (n_units,); ``None`` where the one that was drawn isn't allowed."""
        a, b = self._rng.integers(len(self._units), size=2)
        if a == b and int(a) in self.alike:
            return None
        out = [u for u in self._by_rank(a) if kept[u] and not self.pinned[u]]
        back = [u for u in self._by_rank(b)[::-1] if not kept[u]]
        if not out or not back:
            return None
        trial = kept.copy()
        if a == b:
            trial[self._rng.choice(out[: max(1, 2 * len(out) // 3)])] = False
            trial[self._rng.choice(back[: max(3, len(back) // 3)])] = True
            return trial
        trial[out[: self._rng.integers(1, len(out) // 4 + 2)]] = False
        counts = self._counts(trial)
        counts[b] = self._widest(counts, b)
        if counts[b] == kept[self._units[b]].sum():
            return None
        counts = self.widths.filled(counts)
        if any(k not in allowed for k, allowed in zip(counts, self.widths.allowed, strict=True)):
            return None
        return self._grown(trial, counts)

    def without(self, kept: np.ndarray, group: int) -> np.ndarray:
        """Nothing of a group that may be emptied, and of the others what that pays for: bool (n_units,)."""
        trial = kept.copy()
        trial[self._units[group]] = False
        return self._grown(trial, self.widths.filled(self._counts(trial)))

    def _grown(self, kept: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The mask, changed in place, with so many units of every group: those that stay longest come back."""
        for group, count in enumerate(counts):
            off = [u for u in self._by_rank(group)[::-1] if not kept[u]]
            kept[off[: count - kept[self._units[group]].sum()]] = True
        return kept

    def _by_rank(self, group: int) -> np.ndarray:
        """Units of a group, those that leave first by the curve first."""
        units = self._units[group]
        return units[np.argsort(self._rank[units])]

    def _counts(self, kept: np.ndarray) -> np.ndarray:
        return np.array([int(kept[units].sum()) for units in self._units], dtype=np.int64)

    def _widest(self, counts: np.ndarray, group: int) -> int:
        """The largest width of one group that the limits allow beside the others'."""
        width, trial = int(counts[group]), counts.copy()
        for wider in self.widths.allowed[group][self.widths.allowed[group] > width]:
            trial[group] = wider
            if not self.widths.fits(trial):
                break
            width = int(wider)
        return width
