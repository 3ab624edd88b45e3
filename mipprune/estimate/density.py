"""Which coalitions an index averages over: the law of the probability that a player is in."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import special

from ..errors import ConfigError

__all__ = ["FAITHFUL", "SHAPLEY", "Density"]


@dataclasses.dataclass(frozen=True)
class Density:
    """A coalition takes in every player with probability q, independently; q is fixed, or drawn from Beta(a, a).

    Every index of this room is the mean of a first or second difference of the game over such coalitions:

    * ``Density(p)``: q = p, the p-binomial semivalue (2311.10468); p = 1/2 is Banzhaf.
    * :data:`SHAPLEY`, q uniform: coalitions of m others have weight ``1 / ((m + 1) C(m, s))``, which is Shapley's
      for single players (m = n - 1) and the Shapley interaction index for pairs (m = n - 2).
    * :data:`FAITHFUL`, q ~ Beta(2, 2): pairs of the faithful Shapley interaction of order 2 (2203.00870); its weight
      ``6 (t + 1)! (n - t - 1)! / (n + 1)!`` is that Beta integral (our derivation).

    Attributes:
        p: the fixed inclusion probability in [0, 1], or None for a Beta law.
        beta: the parameter a of Beta(a, a), > 0; unused when p is given.
    """

    p: float | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.p is not None and not 0.0 <= self.p <= 1.0:
            raise ConfigError(f"p={self.p}: the probability that a player is in a coalition must lie in [0, 1]")

    def weights(self, n_others: int) -> np.ndarray:
        """Probability of one coalition of each size 0..m out of m = ``n_others`` players: float64 of shape (m + 1,)."""
        size = np.arange(n_others + 1)
        if self.p is not None:
            return np.float_power(self.p, size) * np.float_power(1.0 - self.p, n_others - size)
        a = self.beta
        return np.asarray(special.beta(size + a, n_others - size + a) / special.beta(a, a))

    def thresholds(self, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two vectors (low, high) of the shape of ``uniforms``, for masks ``u < low`` and ``u >= high``.

        With u uniform both masks have the law of this density, and they are negatively dependent: with p = 1/2 or a
        Beta law one is the complement of the other, otherwise each player's two indicators have covariance
        ``-min(p, 1 - p)^2``.
        """
        if self.p is not None:
            return np.full(uniforms.shape, self.p), np.full(uniforms.shape, 1.0 - self.p)
        q = special.betaincinv(self.beta, self.beta, uniforms)
        return q, q

    def masks(self, uniforms: np.ndarray, antithetic: bool) -> list[np.ndarray]:
        """One mask per row of ``uniforms`` (M, 1 + n), or two negatively dependent ones: bool (M, n) each."""
        low, high = self.thresholds(uniforms[:, :1])
        masks = [uniforms[:, 1:] < low, uniforms[:, 1:] >= high]
        return masks if antithetic else masks[:1]


SHAPLEY = Density(beta=1.0)
FAITHFUL = Density(beta=2.0)
