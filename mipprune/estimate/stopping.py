"""When a sampled ranking is good enough: the cut between kept and removed players is resolved."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import special

from ..errors import ConfigError
from ..records import Record

__all__ = ["CutResolved", "check_after"]

#: Replicates before the first check, and the growth from one check to the next.
FIRST_CHECK, CHECK_GROWTH = 16, 1.25


@dataclasses.dataclass(frozen=True, eq=False)
class CutResolved(Record):
    """Stop when the ``keep`` best players are told apart from all others.

    The chance of stopping at a cut of which any kept player is worth less than any removed one by more than ``margin``
    is at most ``1 - confidence``, to the normal approximation of the block means that standard errors rest on too.
    Two things are paid for (our derivation, by union bounds): the cut is read off the same data, so all n (n - 1)
    ordered pairs share the error; and there are many looks, so look j = 1, 2, ... gets the share 6 / (pi j)^2 of it.

    Players that are tied across the cut never come apart: give a ``margin``, or a budget that ends the sampling.

    Attributes:
        keep: number of players above the cut, between 1 and n - 1.
        confidence: in (0, 1).
        margin: differences that don't matter, in units of the game's value, >= 0.
    """

    keep: int
    confidence: float = 0.95
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(f"confidence={self.confidence}: must lie between 0 and 1, e.g. 0.95")
        if not self.margin >= 0.0 or not math.isfinite(self.margin):
            raise ConfigError(f"margin={self.margin}: must be a finite number >= 0")

    def check_players(self, n_players: int) -> None:
        """Raise :class:`ConfigError` unless there is a cut of ``keep`` among ``n_players``."""
        if not 1 <= self.keep < n_players:
            raise ConfigError(f"CutResolved(keep={self.keep}): with {n_players} players, keep must lie in "
                              f"1..{n_players - 1}")

    def resolved(self, means: np.ndarray, sizes: np.ndarray, look: int) -> bool:
        """Whether look number ``look`` (from 1) at block means (B, n) of ``sizes`` (B,) replicates ends the sampling.

        Time O(B keep (n - keep)) when resolved; mostly much less when not, the nearest pairs come first.
        """
        n, share = means.shape[1], sizes / sizes.sum()
        values = share @ means
        order = np.argsort(-values, kind="stable")
        below = order[self.keep :]
        error = (1.0 - self.confidence) * 6.0 / (math.pi * look) ** 2 / (n * (n - 1))
        quantile = -float(special.stdtrit(len(sizes) - 1, error))
        centred = means - values
        for player in order[self.keep - 1 :: -1]:
            gap = values[player] - values[below] + self.margin
            variance = share @ (centred[:, [player]] - centred[:, below]) ** 2 / (len(sizes) - 1)
            if (gap <= quantile * np.sqrt(variance)).any():
                return False
        return True


def check_after(n_replicates: int) -> int:
    """The first number of replicates above ``n_replicates`` at which to look: a fixed schedule, so runs repeat."""
    look = FIRST_CHECK
    while look <= n_replicates:
        look = math.ceil(look * CHECK_GROWTH)
    return look
