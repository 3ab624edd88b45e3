"""Good masks of one size under a convex function: exchanges on a quadratic model, and kicks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .anneal import anneal
from .cardinality_search import exchange, kick
from .oracles import Oracle

__all__ = ["LocalSearch"]

#: Units that may change sides, those nearest to it in the relaxation: at least, and at most.
WINDOW, WIDEST = 400, 1200
#: Exchanges that are evaluated exactly when the model has no better mask.
SHORTLIST = 48
#: Kicks without success before giving up.
PATIENCE = 100
#: Starts of the search on a quadratic of so many units at least (with fewer a tree is quicker), and the spread of the
#: noise that they are rounded with: measured 0 to 15 % less drop on 128 units, nothing gained on 512.
RESTARTS, LEAST_UNITS, NOISE = 16, 64, 0.3
#: Exchanges that annealing judges per unit of the window: measured on 1,200, ten times as many gain 0.2 units of 1,252.
PROPOSALS_PER_UNIT = 16_000


class LocalSearch:
    """Searches masks of a given size.  ``offer`` takes every local optimum (bool, (m,), removed units)."""

    def __init__(self, oracle: Oracle, offer: Callable[[np.ndarray], float], seed: int = 0) -> None:
        self.oracle, self.offer = oracle, offer
        self.rng = np.random.default_rng(seed)

    def search(self, point: np.ndarray, size: int, enough: float, goes_on: Callable[[], bool]) -> None:
        """Removal masks of ``size`` units near a relaxation's ``point``; stops at values up to ``enough``.

        Kicks from the rounded point; on quadratics, where all of that is cheap, also from points rounded at random.
        """
        oracle, mask, fractions, offer = self._window(point, size)
        for restart in range(RESTARTS if oracle.is_quadratic and len(mask) >= LEAST_UNITS else 1):
            if restart:
                if not goes_on():
                    break
                order = np.argsort(-(fractions + NOISE * self.rng.normal(size=len(mask))), kind="stable")
                mask = np.isin(np.arange(len(mask)), order[: int(mask.sum())])
            if self._kicks(oracle, mask, enough, offer, goes_on) <= enough:
                break

    def _kicks(
        self, oracle: Oracle, mask: np.ndarray, enough: float, offer: Callable[[np.ndarray], None],
        goes_on: Callable[[], bool],
    ) -> float:
        """Descents from a mask and from kicked local optima, until :data:`PATIENCE` kicks gain nothing; the value."""
        mask, value, gradient, curvature = self._descend(oracle, mask, goes_on)
        offer(mask)
        failures = 0
        while value > enough and failures < PATIENCE and goes_on():
            strength = int(self.rng.integers(2, 6))
            kicked = kick(mask, gradient, strength, self.rng)
            trial = exchange(gradient - curvature @ mask, curvature, kicked, goes_on=goes_on)
            trial_value = oracle.value_and_gradient(trial.astype(np.float64))[0]
            if trial_value < value - 1e-12 * abs(value):
                mask, value, gradient, curvature = self._descend(oracle, trial, goes_on)
                offer(mask)
                failures = 0
            else:
                failures += 1
        return value

    def descend(self, point: np.ndarray, size: int, goes_on: Callable[[], bool]) -> None:
        """One descent from a ``point``, rounded."""
        oracle, mask, _, offer = self._window(point, size)
        offer(self._descend(oracle, mask, goes_on)[0])

    def anneal(self, point: np.ndarray, size: int, goes_on: Callable[[], bool]) -> None:
        """Annealing on the quadratic model around a relaxation's ``point``, then a descent on ``f`` itself.

        The model is made at the fractional point: there every unit that may change sides is half-way, so it serves
        both sides, where a model around a mask is good near that mask alone.
        """
        oracle, mask, fractions, offer = self._window(point, size)
        gradient, curvature = oracle.value_and_gradient(fractions)[1], oracle.curvature(fractions)
        proposals = PROPOSALS_PER_UNIT * len(mask)
        mask = anneal(gradient - curvature @ fractions, curvature, mask, proposals, self.rng, goes_on)
        offer(mask)
        offer(self._descend(oracle, mask, goes_on)[0])

    def _window(
        self, point: np.ndarray, size: int
    ) -> tuple[Oracle, np.ndarray, np.ndarray, Callable[[np.ndarray], None]]:
        """The units near to changing sides: ``f`` of them, where they stand after and before rounding, how to offer."""
        gradient = self.oracle.value_and_gradient(point)[1]
        start = np.zeros(len(point), dtype=bool)
        start[np.lexsort((gradient, -point))[:size]] = True
        near = ((point > 1e-6) & (point < 1.0 - 1e-6)) | (start != (point > 0.5))
        price = float(np.median(gradient[near])) if near.any() else float(np.median(gradient))
        distance = np.where(near, 0.0, np.abs(gradient - price))
        width = min(max(WINDOW, 3 * int(near.sum())), WIDEST)
        window = np.sort(np.argsort(distance, kind="stable")[:width])
        oracle = self.oracle.restrict(start.astype(np.float64), window, np.zeros((0, len(point))), 0.0)

        def offer(mask: np.ndarray) -> None:
            whole = start.copy()
            whole[window] = mask
            self.offer(whole)

        return oracle, start[window], point[window], offer

    def _descend(
        self, oracle: Oracle, mask: np.ndarray, goes_on: Callable[[], bool]
    ) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
        """Best masks of quadratic models, each around the last, while the exact value falls; then single exchanges."""
        z = mask.astype(np.float64)
        value, gradient = oracle.value_and_gradient(z)
        curvature, stale = oracle.curvature(z), False
        while goes_on():
            trial = exchange(gradient - curvature @ z, curvature, mask, goes_on=goes_on)
            trial_value, trial_gradient = oracle.value_and_gradient(trial.astype(np.float64))
            if trial_value >= value - 1e-12 * abs(value):
                if stale:  # the curvature is the costly part, so it is kept while it serves
                    curvature, stale = oracle.curvature(z), False
                    continue
                moves = self._exchanges(mask, gradient, curvature)
                if oracle.is_quadratic or not moves:
                    break
                values = oracle.values_around(z, moves)
                if values.min() >= value - 1e-12 * abs(value):
                    break
                trial = mask.copy()
                trial[moves[int(values.argmin())]] ^= True
                trial_value, trial_gradient = oracle.value_and_gradient(trial.astype(np.float64))
            mask, z, value, gradient, stale = trial, trial.astype(np.float64), trial_value, trial_gradient, True
        return mask, value, gradient, curvature

    def _exchanges(self, mask: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> list[np.ndarray]:
        """The exchanges that the model ranks first."""
        half = 0.5 * np.diag(curvature)
        out, back = np.flatnonzero(~mask), np.flatnonzero(mask)
        change = (gradient + half)[out][:, None] + (half - gradient)[back][None] - curvature[np.ix_(out, back)]
        best = np.argsort(change, axis=None, kind="stable")[:SHORTLIST]
        return [np.array([out[i], back[j]]) for i, j in zip(*np.unravel_index(best, change.shape), strict=True)]
