"""Sampling designs: which coalitions a replicate asks for, and the unbiased vector that their values make.

A design holds all of the randomness and evaluates nothing.  Replicate r is a function of the seed and of r alone, so
that neither the batch size nor the order of the work can change a result.
"""

from __future__ import annotations

import abc

import numpy as np

from .density import Density

__all__ = ["Design", "PermutationDesign", "ToggleDesign", "uniforms"]


def uniforms(seed: int, first: int, count: int, width: int) -> np.ndarray:
    """Uniform numbers of the replicates ``first .. first + count - 1``, ``width`` each: float64 (count, width)."""
    bits = np.random.PCG64(seed)
    bits.advance(first * width)  # one 64-bit word per double, so a replicate starts at a known place in the stream
    return np.random.Generator(bits).random((count, width))


class Design(abc.ABC):
    """Contract: replicates are independent and identically distributed, and ``vectors`` has the index as its mean.

    Attributes:
        n_players: n.
        seed: of the whole design.
        cost: coalition evaluations per replicate.
        size: length of a replicate's vector.
    """

    n_players: int
    seed: int
    cost: int
    size: int

    @abc.abstractmethod
    def draw(self, first: int, count: int) -> np.ndarray:
        """The random part of ``count`` replicates from number ``first`` on; ``len`` of the array is ``count``.

        A game that can walk (toggle one unit at a small price) needs nothing else of the design.
        """

    @abc.abstractmethod
    def coalitions(self, draw: np.ndarray) -> np.ndarray:
        """The coalitions of a draw, replicate by replicate: bool of shape (count * cost, n)."""

    @abc.abstractmethod
    def vectors(self, draw: np.ndarray, values: np.ndarray) -> np.ndarray:
        """From the values of those coalitions (count, cost) to one vector per replicate: float64 (count, size)."""


class PermutationDesign(Design):
    """Marginal contributions along random orders; each replicate sums to ``v(N) - v(empty)`` by telescoping.

    Args:
        value_empty, value_full: the two ends that all orders share; they are evaluated once, by the caller.
        antithetic: a replicate is an order and its reverse, whose early and late marginals swap places.
    """

    def __init__(self, n_players: int, seed: int, value_empty: float, value_full: float, antithetic: bool) -> None:
        self.n_players, self.size, self.seed = n_players, n_players, seed
        self.ends = (value_empty, value_full)
        self.antithetic = antithetic
        self.cost = self.cost_of(n_players, antithetic)

    @staticmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        return (1 + antithetic) * (n_players - 1)

    def draw(self, first: int, count: int) -> np.ndarray:
        """Position of every player in every order: int64 of shape (count, 1 or 2, n)."""
        position = uniforms(self.seed, first, count, self.n_players).argsort(axis=1, kind="stable")[:, None]
        return np.concatenate([position, self.n_players - 1 - position], axis=1) if self.antithetic else position

    def coalitions(self, draw: np.ndarray) -> np.ndarray:
        steps = np.arange(1, self.n_players)[:, None]
        return (draw[:, :, None, :] < steps).reshape(-1, self.n_players)

    def vectors(self, draw: np.ndarray, values: np.ndarray) -> np.ndarray:
        path = np.empty((*draw.shape[:2], self.n_players + 1))
        path[..., 0], path[..., -1] = self.ends
        path[..., 1:-1] = values.reshape(*draw.shape[:2], self.n_players - 1)
        return np.take_along_axis(np.diff(path, axis=-1), draw, axis=-1).mean(axis=1)


class ToggleDesign(Design):
    """First or second differences at random masks, for all players (pairs) at the same mask: paired.

    At a mask S the estimate of player i is ``v(S + i) - v(S - i)``; S without i has the law that the index averages
    over, whether or not i was drawn.  Pairs likewise with the second difference.  Per mask that costs 1 + n
    (1 + n + n(n-1)/2) evaluations for n (n(n-1)/2) numbers, half of what two fresh coalitions per player would.

    Args:
        pairs: second differences of all pairs i < j (row-major order), instead of first differences of all players.
        antithetic: a replicate is two negatively dependent masks (see :meth:`Density.thresholds`).
    """

    def __init__(self, n_players: int, seed: int, density: Density, antithetic: bool, pairs: bool = False) -> None:
        self.n_players, self.seed, self.density, self.antithetic = n_players, seed, density, antithetic
        one = np.eye(n_players, dtype=bool)
        self._left, self._right = np.triu_indices(n_players, 1)
        self.pairs = pairs
        both = [one[self._left] | one[self._right]] if pairs else []
        self._flips = np.concatenate([np.zeros((1, n_players), bool), one, *both])
        self.size = len(self._left) if pairs else n_players
        self.cost = self.cost_of(n_players, antithetic, pairs)

    @staticmethod
    def cost_of(n_players: int, antithetic: bool, pairs: bool = False) -> int:
        return (1 + antithetic) * (1 + n_players + pairs * (n_players * (n_players - 1) // 2))

    def draw(self, first: int, count: int) -> np.ndarray:
        """The masks: bool of shape (count, 1 or 2, n)."""
        u = uniforms(self.seed, first, count, 1 + self.n_players)
        return np.stack(self.density.masks(u, self.antithetic), axis=1)

    def coalitions(self, draw: np.ndarray) -> np.ndarray:
        return (draw[:, :, None, :] ^ self._flips).reshape(-1, self.n_players)

    def vectors(self, draw: np.ndarray, values: np.ndarray) -> np.ndarray:
        values = values.reshape(*draw.shape[:2], -1)
        sign = np.where(draw, 1.0, -1.0)  # a toggle takes out a player that is in, and puts in one that is out
        at, single = values[..., :1], values[..., 1 : 1 + self.n_players]
        if not self.pairs:
            return (sign * (at - single)).mean(axis=1)
        i, j = self._left, self._right
        second = at - single[..., i] - single[..., j] + values[..., 1 + self.n_players :]
        return (sign[..., i] * sign[..., j] * second).mean(axis=1)
