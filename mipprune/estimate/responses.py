"""Estimators that use every coalition for every player: maximum sample reuse, and regression for Shapley values.

They are not means of independent vectors, but smooth functions of such means.  Their standard errors come from the
influence of every coalition on the result (the delta method), so they hold for many coalitions per player; both are
biased by a term of the order of one over the number of coalitions, far below their standard error.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import numpy as np

from ..errors import BudgetError
from .blocks import State, block_means
from .density import Density
from .designs import uniforms
from .sampling import Evaluator, Source

__all__ = ["RegressionSource", "Responses", "ReuseSource"]

#: Coalitions whose influence is computed at a time: about this many numbers.
CHUNK_NUMBERS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Responses(State):
    """The values of all coalitions so far, in order; the coalitions follow from the seed.

    Attributes:
        values: float64 (room, cost), replicate by replicate; filled up to ``n_replicates``.  The spare room behind is
            shared with later states, which never touch what is filled.
    """

    values: np.ndarray
    n_replicates: int = 0

    def added(self, found: np.ndarray) -> Responses:
        values, total = self.values, self.n_replicates + len(found)
        if total > len(values):
            values = np.empty((max(total, 2 * len(values)), values.shape[1]))
            values[: self.n_replicates] = self.filled
        values[self.n_replicates : total] = found
        return Responses(values, total)

    @property
    def filled(self) -> np.ndarray:
        return self.values[: self.n_replicates]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"responses": self.filled}

    def restored(self, arrays: dict[str, np.ndarray]) -> Responses:
        return Responses(arrays["responses"], len(arrays["responses"]))


class _ResponseSource(Source):
    """Replicates are one coalition, or two that are each other's complement (antithetic)."""

    def __init__(self, n_players: int, evaluator: Evaluator, seed: int, antithetic: bool) -> None:
        self.n_players, self.evaluator, self.seed, self.antithetic = n_players, evaluator, seed, antithetic
        self.size, self.cost = n_players, self.cost_of(antithetic)

    @staticmethod
    def cost_of(antithetic: bool) -> int:
        return 1 + antithetic

    @abc.abstractmethod
    def coalitions(self, first: int, count: int) -> np.ndarray:
        """Coalitions of the replicates from number ``first`` on: bool (count, cost, n), a function of the seed."""

    def replicates(self, first: int, count: int) -> np.ndarray:
        drawn = self.coalitions(first, count).reshape(-1, self.n_players)
        return self.evaluator.values(drawn).reshape(count, self.cost)

    def empty(self) -> State:
        return Responses(np.empty((64, self.cost)))

    def _chunks(self, total: int) -> list[tuple[int, int]]:
        step = max(1, CHUNK_NUMBERS // (self.cost * self.n_players))
        return [(start, min(start + step, total)) for start in range(0, total, step)]


class ReuseSource(_ResponseSource):
    """Any p-binomial semivalue with 0 < p < 1 by maximum sample reuse (2205.15466 for p = 1/2).

    Coalitions take in every player with probability p; a player's value is the mean over coalitions with it minus the
    mean over those without it.  The influence of a coalition S with value v on player i is ``(v - m1_i) / f_i`` if it
    holds i and ``-(v - m0_i) / (1 - f_i)`` if not, with the two means m and the share f_i of coalitions with i (the
    derivative of the difference of two ratios of means, our derivation).  Time and memory O(m n) for m coalitions.
    """

    def __init__(self, n_players: int, evaluator: Evaluator, seed: int, p: float, antithetic: bool) -> None:
        super().__init__(n_players, evaluator, seed, antithetic)
        self.density = Density(p)
        # enough that a player who is in no coalition, or in all of them, has a chance below e^-40
        self.least = math.ceil(40 / min(p, 1 - p) / self.cost)

    def coalitions(self, first: int, count: int) -> np.ndarray:
        u = uniforms(self.seed, first, count, 1 + self.n_players)
        return np.stack(self.density.masks(u, self.antithetic), axis=1)

    def finish(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(state, Responses)
        values, total = state.filled, state.n_replicates
        inside, sums = np.zeros(self.size), np.zeros((2, self.size))
        for start, stop in self._chunks(total):
            masks = self.coalitions(start, stop - start)
            inside += masks.sum(axis=(0, 1))
            sums[1] += np.einsum("rc,rci->i", values[start:stop], masks)
        count = total * self.cost
        sums[0] = values.sum() - sums[1]
        counts = np.array([count - inside, inside])
        if not counts.all():
            player = self.evaluator.game.player_names[int(np.flatnonzero(~counts.all(axis=0))[0])]
            raise BudgetError(f"player {player} was in none or in all of {count} coalitions: raise n_evals, or use "
                              "method='one_toggle'")
        means, weights = sums / counts, np.array([[-1.0], [1.0]]) * count / counts
        influence = np.empty((total, self.size))
        for start, stop in self._chunks(total):
            masks, here = self.coalitions(start, stop - start), values[start:stop, :, None]
            each = np.where(masks, weights[1] * (here - means[1]), weights[0] * (here - means[0]))
            influence[start:stop] = each.mean(axis=1)
        blocks, sizes = block_means(influence)
        return means[1] - means[0] + blocks, sizes


class RegressionSource(_ResponseSource):
    """Shapley values by least squares on coalitions sampled by leverage (2410.01917), in complementary pairs.

    Shapley values solve a least-squares problem over all coalitions but the full and the empty one, with weights
    ``(n - 1) / (C(n, s) s (n - s))`` at size s and the constraint that they sum to v(N) - v(empty) (Charnes 1988).
    The statistical leverage of every coalition of size s is 1 / C(n, s), so sizes are drawn uniformly from 1..n-1 and
    the sampled problem has weights 1 / (s (n - s)).  The constraint is eliminated by projecting onto vectors of sum 0.

    Influence of replicate r on the result: ``G^-1 x_r w_r e_r`` with projected indicator x, weight w, residual e and
    G = mean w x x'; scaled by m / (m - n + 1) for the m - n + 1 degrees of freedom of the residuals.
    Time O(m n^2 + n^3), memory O(m n).
    """

    def __init__(
        self, n_players: int, evaluator: Evaluator, seed: int, value_empty: float, value_full: float, antithetic: bool
    ) -> None:
        super().__init__(n_players, evaluator, seed, antithetic)
        self.value_empty, self.total = value_empty, value_full - value_empty
        self.least = 2 * n_players + 16

    def coalitions(self, first: int, count: int) -> np.ndarray:
        n = self.n_players
        u = uniforms(self.seed, first, count, 1 + n)
        size = 1 + np.minimum((u[:, :1] * (n - 1)).astype(np.int64), n - 2)
        rank = u[:, 1:].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        mask = rank < size
        return np.stack([mask, ~mask] if self.antithetic else [mask], axis=1)

    def _rows(self, values: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projected indicators (k, n), weights (k,) and responses (k,) of some replicates."""
        n = self.n_players
        masks = self.coalitions(start, stop - start)
        size = masks[:, 0].sum(axis=1)
        share = (size / n)[:, None]
        gain = values[start:stop] - self.value_empty
        response = gain[:, 0] - share[:, 0] * self.total
        if self.antithetic:  # the complement asks for minus the same combination of the unknowns
            response = (response - (gain[:, 1] - (1 - share[:, 0]) * self.total)) / 2
        return masks[:, 0] - share, 1.0 / (size * (n - size)), response

    def finish(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(state, Responses)
        n, total = self.n_players, state.n_replicates
        gram, right = np.full((n, n), 1.0 / n), np.zeros(n)  # ones fill the direction that the projection empties
        for start, stop in self._chunks(total):
            x, weight, y = self._rows(state.filled, start, stop)
            gram += (x * weight[:, None]).T @ x
            right += x.T @ (weight * y)
        inverse = np.linalg.pinv(gram, hermitian=True)
        centred = inverse @ right
        influence = np.empty((total, n))
        for start, stop in self._chunks(total):
            x, weight, y = self._rows(state.filled, start, stop)
            influence[start:stop] = (weight * (y - x @ centred))[:, None] * (x @ inverse)
        freedom = max(1, total - n + 1)
        blocks, sizes = block_means(influence * (total * np.sqrt(total / freedom)))
        return centred + self.total / n + blocks, sizes
