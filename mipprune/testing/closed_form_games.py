"""Games whose Shapley values, semivalues and interactions are known as formulas."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special, stats

from ..game.base import Game

__all__ = [
    "AdditiveGame", "AirportGame", "ClosedFormGame", "GloveGame", "SymmetricGame", "UnanimitySum", "closed_form_games",
]


class ClosedFormGame(Game):
    """A game that knows its own indices.  Banzhaf values are ``semivalue(0.5)``."""

    def __init__(self, n_players: int) -> None:
        self._n = n_players

    @property
    def n_players(self) -> int:
        return self._n

    @abc.abstractmethod
    def shapley(self) -> np.ndarray:
        """Shapley values, float64 (n,)."""

    @abc.abstractmethod
    def semivalue(self, p: float) -> np.ndarray:
        """p-binomial semivalues, float64 (n,)."""


class UnanimitySum(ClosedFormGame):
    """``v(S) = sum of c_T over the sets T that lie in S``; every game is of this form, with Moebius coefficients c.

    Args:
        n_players: n.
        coefficients: set of player numbers -> c_T.
    """

    def __init__(self, n_players: int, coefficients: Mapping[tuple[int, ...], float]) -> None:
        super().__init__(n_players)
        self.coefficients = dict(coefficients)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        coalitions = self._checked(coalitions)
        out = np.zeros(len(coalitions))
        for members, c in self.coefficients.items():
            out += c * coalitions[:, list(members)].all(axis=1)
        return out

    def shapley(self) -> np.ndarray:
        return self._shares({size: 1 / size for size in range(1, self._n + 1)})

    def semivalue(self, p: float) -> np.ndarray:
        return self._shares({size: p ** (size - 1) for size in range(1, self._n + 1)})

    def _shares(self, share: Mapping[int, float]) -> np.ndarray:
        out = np.zeros(self._n)
        for members, c in self.coefficients.items():
            for i in members:
                out[i] += c * share[len(members)]
        return out

    def pair_interactions(self, index: str, p: float = 0.5) -> np.ndarray:
        """Interactions (n, n): "shapley" gives c_T / (|T| - 1) to every pair in T, "banzhaf" gives c_T p^(|T| - 2)."""
        out = np.zeros((self._n, self._n))
        for members, c in self.coefficients.items():
            for i in members:
                for j in members:
                    if i != j:
                        out[i, j] += c * (1 / (len(members) - 1) if index == "shapley" else p ** (len(members) - 2))
        return out


class AdditiveGame(ClosedFormGame):
    """``v(S) = v0 + sum of the members' weights``: every index is the weight; weight 0 is a dummy player."""

    def __init__(self, weights: Sequence[float], value_empty: float = 0.0) -> None:
        super().__init__(len(weights))
        self.weights, self._v0 = np.array(weights, dtype=np.float64), value_empty

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self._v0 + self._checked(coalitions) @ self.weights

    def shapley(self) -> np.ndarray:
        return self.weights.copy()

    def semivalue(self, p: float) -> np.ndarray:
        return self.weights.copy()


class SymmetricGame(ClosedFormGame):
    """``v(S) = g[|S|]``, with n + 1 numbers g: all players are worth the same."""

    def __init__(self, by_size: Sequence[float]) -> None:
        super().__init__(len(by_size) - 1)
        self.by_size = np.array(by_size, dtype=np.float64)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.by_size[self._checked(coalitions).sum(axis=1)]

    def shapley(self) -> np.ndarray:
        return np.full(self._n, (self.by_size[-1] - self.by_size[0]) / self._n)

    def semivalue(self, p: float) -> np.ndarray:
        chance = stats.binom.pmf(np.arange(self._n), self._n - 1, p)
        return np.full(self._n, chance @ np.diff(self.by_size))


class GloveGame(ClosedFormGame):
    """The first ``left`` players own a left glove, the others a right one; a pair is worth 1.

    A left player is pivotal when more right than left gloves are there before.
    """

    def __init__(self, left: int, right: int) -> None:
        super().__init__(left + right)
        self.left, self.right = left, right

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        coalitions = self._checked(coalitions)
        return np.minimum(coalitions[:, : self.left].sum(1), coalitions[:, self.left :].sum(1)).astype(np.float64)

    def shapley(self) -> np.ndarray:
        def pivotal(own: int, other: int) -> float:  # the chance of the sizes a < b, with a uniform density
            return sum(
                math.comb(own - 1, a) * math.comb(other, b) * float(special.beta(a + b + 1, own + other - a - b))
                for a in range(own) for b in range(a + 1, other + 1)
            )

        return self._spread(pivotal(self.left, self.right), pivotal(self.right, self.left))

    def semivalue(self, p: float) -> np.ndarray:
        def pivotal(own: int, other: int) -> float:
            a = np.arange(own)
            return float(stats.binom.pmf(a, own - 1, p) @ stats.binom.sf(a, other, p))

        return self._spread(pivotal(self.left, self.right), pivotal(self.right, self.left))

    def _spread(self, left: float, right: float) -> np.ndarray:
        return np.repeat([left, right], [self.left, self.right])


class AirportGame(ClosedFormGame):
    """``v(S)`` = the largest cost in S; every player pays for the parts of the runway that only longer ones share."""

    def __init__(self, costs: Sequence[float]) -> None:
        super().__init__(len(costs))
        self.costs = np.array(costs, dtype=np.float64)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return np.where(self._checked(coalitions), self.costs, 0.0).max(axis=1)

    def shapley(self) -> np.ndarray:
        return self._parts(1.0 / np.arange(self._n, 0, -1))

    def semivalue(self, p: float) -> np.ndarray:
        return self._parts((1.0 - p) ** np.arange(self._n - 1, -1, -1))

    def _parts(self, share: np.ndarray) -> np.ndarray:
        """Part k, between the k-th cost and the one before, counts ``share[k]`` for all players from the k-th on."""
        order = np.argsort(self.costs, kind="stable")
        out = np.empty(self._n)
        out[order] = np.cumsum(np.diff(self.costs[order], prepend=0.0) * share)
        return out


def closed_form_games() -> dict[str, ClosedFormGame]:
    """Cases by name, 1 to 9 players."""
    rng = np.random.default_rng(7)
    sets = [tuple(np.flatnonzero(row).tolist()) for row in rng.random((12, 8)) < 0.35]
    return {
        "one player": AdditiveGame([2.5], value_empty=-1.0),
        "additive with a dummy": AdditiveGame([1.0, -2.0, 0.0, 0.5], value_empty=3.0),
        "one unanimity game": UnanimitySum(5, {(0, 2, 3): 1.0}),
        "sum of unanimity games": UnanimitySum(8, {s: float(rng.normal()) for s in sets if s}),
        "pairs": UnanimitySum(6, {(0,): 1.0, (0, 1): -2.0, (2, 3): 0.5, (1, 4): 1.0, (): -4.0}),
        "symmetric": SymmetricGame([0.0, 0.1, 0.5, 2.0, 2.1, 3.0, 2.5]),
        "majority": SymmetricGame([0.0] * 5 + [1.0] * 5),
        "glove 1-2": GloveGame(1, 2),
        "glove 3-5": GloveGame(3, 5),
        "airport": AirportGame([4.0, 1.0, 2.0, 2.0, 7.0, 3.5]),
    }
