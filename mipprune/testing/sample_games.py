"""A small numpy game whose value is a mean over samples, so that sample-wise estimates can be checked exactly."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from ..game.base import SampleGame
from ..records import frozen_array

__all__ = ["MeanOfTables", "mean_of_networks"]


class MeanOfTables(SampleGame):
    """The mean of N games that are given by their tables of values.

    Args:
        tables: float64 of shape (N, 2^n), each bit-indexed as in :class:`~mipprune.game.TableGame`.
    """

    def __init__(self, tables: np.ndarray) -> None:
        self.tables = frozen_array(tables)
        if self.tables.ndim != 2 or self.tables.shape[1] != 1 << (self.tables.shape[1].bit_length() - 1):
            raise DataError(f"tables: expected shape (N, 2^n), got {self.tables.shape}")
        self._n = self.tables.shape[1].bit_length() - 1

    @property
    def n_players(self) -> int:
        return self._n

    @property
    def n_samples(self) -> int:
        return len(self.tables)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.sample_values(coalitions).mean(axis=1)

    def sample_values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.tables[:, self._codes(self._checked(coalitions))].T

    def walk(self, orders: np.ndarray) -> np.ndarray:
        codes = np.cumsum(np.left_shift(1, orders), axis=1)
        path = np.take_along_axis(self.tables, np.pad(codes, ((0, 0), (1, 0))), axis=1)
        out = np.empty(orders.shape)
        np.put_along_axis(out, orders, np.diff(path, axis=1), axis=1)
        return out

    def toggle(self, masks: np.ndarray) -> np.ndarray:
        codes, bits = self._codes(self._checked(masks))[:, None], 1 << np.arange(self._n)
        with_player = np.take_along_axis(self.tables, codes | bits, axis=1)
        return with_player - np.take_along_axis(self.tables, codes & ~bits, axis=1)

    def _codes(self, coalitions: np.ndarray) -> np.ndarray:
        return coalitions @ (1 << np.arange(self._n, dtype=np.int64))


def mean_of_networks(n_players: int, n_samples: int = 5, seed: int = 0) -> MeanOfTables:
    """Cross-entropies of a random little ReLU layer on N random inputs; units are dead on some samples, not on all."""
    rng = np.random.default_rng(seed)
    bits = (np.arange(1 << n_players)[:, None] >> np.arange(n_players) & 1).astype(float)
    active = np.maximum(rng.normal(size=(n_samples, n_players)) + 0.5, 0)
    active[np.arange(n_players) % n_samples, np.arange(n_players)] += 0.5
    inner, outer = rng.normal(size=(n_players, 6)) * 1.5 / np.sqrt(n_players), rng.normal(size=(6, 3))
    logits = np.maximum((bits * active[:, None]) @ inner, 0) @ outer
    return MeanOfTables(logits[..., 0] - np.log(np.exp(logits).sum(-1)))
