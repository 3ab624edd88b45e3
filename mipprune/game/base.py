"""What a game is: players, and the value of every coalition of them.  No network is needed here."""

from __future__ import annotations

import abc

import numpy as np

from ..errors import DataError
from ..records import frozen_array

__all__ = ["Game", "SampleGame", "TableGame"]


class Game(abc.ABC):
    """A cooperative game: ``n_players`` and the characteristic function ``values``.

    Contract (checked by ``mipprune.testing.GameContract``):

    * ``values(coalitions)`` takes a bool array of shape (M, n) and returns float64 of shape (M,), one value per row;
      the value of a coalition depends on that row alone, not on the others or on M.
    * ``player_names`` names the players, for reports.
    * It is deterministic: the same coalition always has the same value, up to float rounding.

    A game of a network has one player per unit; the value is higher when the network works better.
    """

    @property
    @abc.abstractmethod
    def n_players(self) -> int:
        """Number of players."""

    @abc.abstractmethod
    def values(self, coalitions: np.ndarray) -> np.ndarray:
        """Values of the coalitions (bool, shape (M, n)): float64 of shape (M,)."""

    @property
    def player_names(self) -> tuple[str, ...]:
        """A name per player; the numbers if nothing better is known."""
        return tuple(str(i) for i in range(self.n_players))

    def value(self, coalition: np.ndarray) -> float:
        """Value of one coalition, a bool vector of shape (n,)."""
        return float(self.values(np.asarray(coalition, dtype=bool)[None])[0])

    @property
    def value_full(self) -> float:
        """Value of the grand coalition: the dense network."""
        return self.value(np.ones(self.n_players, dtype=bool))

    @property
    def value_empty(self) -> float:
        """Value of the empty coalition."""
        return self.value(np.zeros(self.n_players, dtype=bool))

    def _checked(self, coalitions: np.ndarray) -> np.ndarray:
        coalitions = np.asarray(coalitions)
        if coalitions.dtype != bool or coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise DataError(
                f"coalitions: expected a bool array of shape (M, {self.n_players}), "
                f"got {coalitions.dtype} of shape {coalitions.shape}"
            )
        return coalitions


class SampleGame(Game):
    """A game whose value is a mean over samples, so that every sample may walk coalitions of its own.

    An index is linear in the value, so the mean over samples may be taken last: with a coalition order per sample, one
    pass over the data averages ``n_samples`` independent orders at the price of one.
    """

    @property
    @abc.abstractmethod
    def n_samples(self) -> int:
        """Number of samples N."""

    @abc.abstractmethod
    def sample_values(self, coalitions: np.ndarray) -> np.ndarray:
        """Per-sample values of shared coalitions (bool, (M, n)): float64 of shape (M, N)."""

    @abc.abstractmethod
    def walk(self, orders: np.ndarray) -> np.ndarray:
        """Marginals along orders: sample k adds the players ``orders[k]`` one by one to the empty coalition.

        Args:
            orders: integers of shape (N, n), every row a permutation of the players.

        Returns:
            float64 of shape (N, n): entry (k, i) is what sample k's value rose by when player i came in; a row sums to
            sample k's value of the full minus the empty coalition.
        """

    @abc.abstractmethod
    def toggle(self, masks: np.ndarray) -> np.ndarray:
        """Differences around masks: ``v_k(S_k + i) - v_k(S_k - i)`` for every sample k and player i.

        Args:
            masks: bool of shape (N, n), row k the coalition S_k.

        Returns:
            float64 of shape (N, n).
        """

    def toggle_pairs(self, masks: np.ndarray) -> np.ndarray:
        """Mean over samples of the second differences of ``v_k`` in the players i and j around S_k, for all pairs.

        ``v(S+i+j) - v(S+i-j) - v(S-i+j) + v(S-i-j)``; here by n + 1 calls of :meth:`toggle`, twice the coalitions that
        are needed, which a game may know to avoid.  Memory O(N n + n^2).

        Args:
            masks: bool of shape (N, n), row k the coalition S_k.

        Returns:
            float64 of shape (n, n), symmetric, zero diagonal.
        """
        here, out = self.toggle(masks), np.zeros((self.n_players, self.n_players))
        for j in range(self.n_players):
            flipped = masks.copy()
            flipped[:, j] ^= True
            sign = np.where(masks[:, j], 1.0, -1.0)
            out[j] = sign @ (here - self.toggle(flipped)) / len(masks)
            out[j, j] = 0.0
        return (out + out.T) / 2


class TableGame(Game):
    """A game given by the table of all its values, bit-indexed: ``table[sum_i 2^i [i in S]]``.

    Args:
        table: float64 of shape (2^n,).
        player_names: n names; the numbers by default.

    Raises:
        DataError: no power of two, or values that aren't finite.
    """

    def __init__(self, table: np.ndarray, player_names: tuple[str, ...] | None = None) -> None:
        self.table = frozen_array(table)
        n = len(self.table).bit_length() - 1
        if self.table.ndim != 1 or len(self.table) != 1 << n:
            raise DataError(f"a table of values needs 2^n entries, got shape {self.table.shape}")
        if not np.isfinite(self.table).all():
            raise DataError("the table of values holds numbers that aren't finite")
        self._n = n
        self._names = player_names

    @property
    def n_players(self) -> int:
        return self._n

    @property
    def player_names(self) -> tuple[str, ...]:
        """The names given, or numbers."""
        return self._names if self._names is not None else super().player_names

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        coalitions = self._checked(coalitions)
        return self.table[coalitions @ (1 << np.arange(self._n, dtype=np.int64))]
