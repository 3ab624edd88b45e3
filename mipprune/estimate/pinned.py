"""A game with some players fixed in or out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..game.base import Game

__all__ = ["PinnedGame"]


class PinnedGame(Game):
    """The game of the remaining players, with ``kept`` always in and ``removed`` always out.

    The loops of iterated pruning and building (2311.10468) estimate again and again among the units still free.

    Args:
        game: the game of all players.
        kept, removed: player numbers, or bool masks of shape (n,); disjoint, and not all players.

    Attributes:
        free: int64 (m,), the numbers in ``game`` of this game's players, ascending.

    Raises:
        DataError: an unknown player, one both kept and removed, or no player left.
    """

    def __init__(
        self, game: Game, kept: Sequence[int] | np.ndarray = (), removed: Sequence[int] | np.ndarray = ()
    ) -> None:
        self.game = game
        self._base = _mask(kept, game.n_players, "kept")
        out = _mask(removed, game.n_players, "removed")
        if (self._base & out).any():
            raise DataError(f"players both kept and removed: {np.flatnonzero(self._base & out).tolist()}")
        self.free = np.flatnonzero(~(self._base | out))
        self.free.setflags(write=False)
        if not len(self.free):
            raise DataError(f"all {game.n_players} players are pinned: there is no game left")

    @property
    def n_players(self) -> int:
        return len(self.free)

    @property
    def player_names(self) -> tuple[str, ...]:
        """Names of the players that are free, as the whole game has them."""
        names = self.game.player_names
        return tuple(names[i] for i in self.free)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        return self.game.values(self.expand(self._checked(coalitions)))

    def expand(self, coalitions: np.ndarray) -> np.ndarray:
        """From coalitions of the free players (..., m) to coalitions of all (..., n)."""
        full = np.broadcast_to(self._base, (*coalitions.shape[:-1], len(self._base))).copy()
        full[..., self.free] = coalitions
        return full


def _mask(players: Sequence[int] | np.ndarray, n: int, name: str) -> np.ndarray:
    players = np.asarray(players)
    if players.dtype == bool:
        if players.shape != (n,):
            raise DataError(f"{name}: a bool mask must have shape ({n},), got {players.shape}")
        return players.copy()
    mask = np.zeros(n, dtype=bool)
    if players.size:
        if players.ndim != 1 or players.dtype.kind not in "iu" or players.min() < 0 or players.max() >= n:
            raise DataError(f"{name}: expected player numbers in 0..{n - 1} or a bool mask, got {players!r}")
        mask[players] = True
    return mask
