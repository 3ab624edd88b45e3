"""Sampling where every sample of the data has coalitions of its own.

An index is linear in the game and the value is a mean over N samples, so the mean of N per-sample estimates, each from
an order (mask) of its own, is unbiased too.  A pass of all samples costs what a shared order costs, and averages N
independent orders instead of one; what remains of its variance is about a share 1/N (our derivation; the samples'
common part of the variance of a shared order is what is gained).

Counted in coalition evaluations: all samples taking one step each are one evaluation, whatever their coalitions.  A
pass over n toggles is n evaluations (a mask: 1 + n, with the value at the mask itself).
"""

from __future__ import annotations

import abc

import numpy as np

from ..errors import DataError
from ..game.base import Game, SampleGame
from .blocks import SampleSums, State
from .density import Density
from .designs import ToggleDesign, uniforms
from .pinned import PinnedGame
from .sampling import Evaluator, Source

__all__ = [
    "PinnedSampleGame", "SamplePairSource", "SampleToggleSource", "SampleWalkSource", "per_sample", "sample_orders",
]


def per_sample(game: Game) -> SampleGame | None:
    """The game as one whose samples can walk alone, or None if its value is no mean over samples.

    A :class:`~mipprune.estimate.PinnedGame` can if the game inside can.
    """
    if isinstance(game, SampleGame):
        return game if getattr(game, "decomposes", True) else None
    if isinstance(game, PinnedGame) and per_sample(game.game) is not None:
        return PinnedSampleGame(game)
    return None


class PinnedSampleGame(SampleGame):
    """A pinned game over a :class:`SampleGame`: walks put the kept players first and the removed ones last."""

    def __init__(self, pinned: PinnedGame) -> None:
        inner = per_sample(pinned.game)
        if inner is None:
            raise DataError("the pinned game's value is no mean over samples")
        self.pinned, self.inner = pinned, inner
        self._kept = pinned.expand(np.zeros(pinned.n_players, dtype=bool))
        self._removed = ~pinned.expand(np.ones(pinned.n_players, dtype=bool))

    @property
    def n_players(self) -> int:
        return self.pinned.n_players

    @property
    def n_samples(self) -> int:
        return self.inner.n_samples

    @property
    def player_names(self) -> tuple[str, ...]:
        return self.pinned.player_names

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.pinned.values(coalitions)

    def sample_values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.inner.sample_values(self.pinned.expand(self._checked(coalitions)))

    def walk(self, orders: np.ndarray) -> np.ndarray:
        first, last = (np.tile(np.flatnonzero(end), (len(orders), 1)) for end in (self._kept, self._removed))
        whole = np.concatenate([first, self.pinned.free[orders], last], axis=1)
        return self.inner.walk(whole)[:, self.pinned.free]

    def toggle(self, masks: np.ndarray) -> np.ndarray:
        return self.inner.toggle(self.pinned.expand(masks))[:, self.pinned.free]

    def toggle_pairs(self, masks: np.ndarray) -> np.ndarray:
        return self.inner.toggle_pairs(self.pinned.expand(masks))[np.ix_(self.pinned.free, self.pinned.free)]


def sample_orders(seed: int, replicate: int, n_samples: int, n_players: int) -> np.ndarray:
    """Independent uniform orders for all samples: int64 of shape (N, n), a function of the arguments alone.

    Random words whose low bits are replaced by the player's number are sorted: one integer sort, no ties.  With b low
    bits taken, the order of two players whose 64 - b other bits agree (chance below n^3 / 2^64 a row) is not random.
    """
    bits = np.random.PCG64(seed)
    bits.advance(replicate * n_samples * n_players)
    words = bits.random_raw(n_samples * n_players).reshape(n_samples, n_players)
    low = np.uint64((1 << (n_players - 1).bit_length()) - 1)
    words &= ~low
    words |= np.arange(n_players, dtype=np.uint64)
    words.sort(axis=1)
    return (words & low).astype(np.int64)


class _SampleSource(Source):
    """Replicates one by one, each a function of the seed and its number, so chunks can't change a result."""

    def __init__(
        self, game: SampleGame, evaluator: Evaluator, seed: int, antithetic: bool, keep_samples: bool = False
    ) -> None:
        self.game, self.evaluator, self.seed, self.antithetic = game, evaluator, seed, antithetic
        self.keep_samples = keep_samples
        self.size = game.n_players
        self.cost = self.cost_of(game.n_players, antithetic)

    @staticmethod
    @abc.abstractmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        """Coalition evaluations that a replicate counts as."""

    @abc.abstractmethod
    def _passes(self, replicate: int) -> list[np.ndarray]:
        """What all samples walk or toggle in a replicate, one array per pass."""

    @abc.abstractmethod
    def _run(self, drawn: np.ndarray) -> np.ndarray:
        """What a pass finds, a row per sample or one row for their mean: (N, size) or (1, size)."""

    def empty(self) -> State:
        return SampleSums.empty(self.game.n_samples, self.size) if self.keep_samples else super().empty()

    def replicates(self, first: int, count: int) -> np.ndarray:
        """Shape (count, size); with ``keep_samples`` (count, N, size)."""
        return np.stack([self._replicate(r) for r in range(first, first + count)])

    def _replicate(self, replicate: int) -> np.ndarray:
        passes = self._passes(replicate)
        total: np.ndarray | float = 0.0
        for drawn in passes:
            self.evaluator.clock.check()
            found = self._run(drawn)
            mean = found.mean(axis=0)
            if not np.isfinite(mean).all():
                raise DataError(self._complaint(found))
            total = total + (found if self.keep_samples else mean)
            self.evaluator.count(self.cost // len(passes))
        return np.asarray(total / len(passes))

    def _complaint(self, found: np.ndarray) -> str:
        k, i = np.argwhere(~np.isfinite(found))[0]
        return (
            f"sample {k}: the value changes by {found[k, i]} with player {self.game.player_names[i]}. An index needs "
            "finite values: clip the value function, or pin the players without which it is not defined (PinnedGame)"
        )


class SampleWalkSource(_SampleSource):
    """Shapley values: every sample walks a random order of its own, and back (antithetic).

    Each replicate sums to ``v(N) - v(empty)`` by telescoping, sample by sample, up to the game's rounding.
    Time O(N n) game steps and O(N n log n) for the orders; memory O(N n) numbers.
    """

    @staticmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        return (1 + antithetic) * n_players

    def _passes(self, replicate: int) -> list[np.ndarray]:
        orders = sample_orders(self.seed, replicate, self.game.n_samples, self.size)
        return [orders, orders[:, ::-1]] if self.antithetic else [orders]

    def _run(self, drawn: np.ndarray) -> np.ndarray:
        return self.game.walk(drawn)


class SampleToggleSource(_SampleSource):
    """Any semivalue of a :class:`Density`: every sample toggles all players around a random mask of its own.

    Antithetic: two negatively dependent masks per sample, see :meth:`Density.thresholds`.  Cost as for walks.
    """

    def __init__(
        self, game: SampleGame, evaluator: Evaluator, seed: int, density: Density, antithetic: bool,
        keep_samples: bool = False,
    ) -> None:
        super().__init__(game, evaluator, seed, antithetic, keep_samples)
        self.density = density

    @staticmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        return (1 + antithetic) * (n_players + 1)

    def _passes(self, replicate: int) -> list[np.ndarray]:
        n_samples = self.game.n_samples
        u = uniforms(self.seed, replicate * n_samples, n_samples, 1 + self.game.n_players)
        return self.density.masks(u, self.antithetic)

    def _run(self, drawn: np.ndarray) -> np.ndarray:
        return self.game.toggle(drawn)


class SamplePairSource(SampleToggleSource):
    """Interactions of all pairs i < j (row-major): every sample toggles every pair around a mask of its own.

    Counted as the 1 + n + n(n-1)/2 coalitions that the differences need.  Memory O(N n + n^2).
    """

    def __init__(
        self, game: SampleGame, evaluator: Evaluator, seed: int, density: Density, antithetic: bool
    ) -> None:
        super().__init__(game, evaluator, seed, density, antithetic)
        self._pairs = np.triu_indices(game.n_players, 1)
        self.size = len(self._pairs[0])

    @staticmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        return ToggleDesign.cost_of(n_players, antithetic, pairs=True)

    def _run(self, drawn: np.ndarray) -> np.ndarray:
        return self.game.toggle_pairs(drawn)[self._pairs][None]

    def _complaint(self, found: np.ndarray) -> str:
        pair = int(np.flatnonzero(~np.isfinite(found[0]))[0])
        i, j = (self.game.player_names[p[pair]] for p in self._pairs)
        return (
            f"the interaction of the players {i} and {j} is {found[0, pair]} at some sample's coalition. An index "
            "needs finite values: clip the value function, or pin the players without which it is not defined"
        )
