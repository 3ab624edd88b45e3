"""How well a surrogate predicts a game at coalitions that it has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import ConfigError
from ..game.base import Game
from ..records import Record, frozen_array
from .base import Surrogate

__all__ = ["FitError", "fit_error"]


@dataclasses.dataclass(frozen=True, eq=False)
class FitError(Record):
    """Predicted against real drops ``v(all) - v(S)`` on random coalitions, in the game's unit.

    Attributes:
        n_coalitions: how many.
        keep_rate: share of units kept: the lowest and the highest.
        rmse: root of the mean squared error.
        bias: mean of predicted minus real.
        worst: largest absolute error.
        spread: standard deviation of the real drops: the error of predicting their mean.
        rank_correlation: Spearman's, of predicted and real; NaN if either is constant.
        predicted, real: float64, shape (n_coalitions,).
    """

    n_coalitions: int
    keep_rate: tuple[float, float]
    rmse: float
    bias: float
    worst: float
    spread: float
    rank_correlation: float
    predicted: np.ndarray
    real: np.ndarray

    @property
    def explained(self) -> float:
        """``1 - (rmse / spread)^2``: 1 is perfect, 0 as good as the mean, below 0 worse; NaN without spread."""
        return 1.0 - (self.rmse / self.spread) ** 2 if self.spread > 0 else float("nan")

    def __str__(self) -> str:
        return (
            f"fit on {self.n_coalitions} coalitions keeping {self.keep_rate[0]:.0%}-{self.keep_rate[1]:.0%}: rmse "
            f"{self.rmse:.4g} (spread {self.spread:.4g}), bias {self.bias:+.4g}, worst {self.worst:.4g}, rank "
            f"correlation {self.rank_correlation:.3f}"
        )


def fit_error(
    surrogate: Surrogate,
    game: Game,
    n_coalitions: int = 200,
    keep_rate: float | tuple[float, float] = (0.3, 0.9),
    seed: int = 0,
) -> FitError:
    """Compare a surrogate with its game on random coalitions.

    Args:
        surrogate: one unit per player.
        game: what the surrogate stands for.  For held-out *data* too, pass a game over other samples.
        n_coalitions: evaluations of the game, one more for the full coalition.
        keep_rate: chance of a unit to be in; drawn per coalition between the two numbers.  Near the density that will
            be asked for is what matters.
        seed: take another than the estimate's, so that the coalitions are new.

    Raises:
        ConfigError: another number of units, or a rate outside [0, 1].
    """
    from scipy.stats import spearmanr  # takes a second to import

    n = game.n_players
    if surrogate.n_units != n:
        raise ConfigError(f"the surrogate has {surrogate.n_units} units, the game {n} players")
    low, high = keep_rate if isinstance(keep_rate, tuple) else (keep_rate, keep_rate)
    if not 0 <= low <= high <= 1 or n_coalitions < 2:
        raise ConfigError(f"keep_rate={keep_rate}, n_coalitions={n_coalitions}: expected rates in [0, 1] and 2 or more")
    rng = np.random.default_rng(seed)
    kept = rng.random((n_coalitions, n)) < rng.uniform(low, high, (n_coalitions, 1))
    real = game.value_full - game.values(kept)
    predicted = surrogate.drops((~kept).astype(np.float64))
    error = predicted - real
    constant = np.ptp(predicted) == 0 or np.ptp(real) == 0
    return FitError(
        n_coalitions=n_coalitions,
        keep_rate=(float(low), float(high)),
        rmse=float(np.sqrt((error**2).mean())),
        bias=float(error.mean()),
        worst=float(np.abs(error).max()),
        spread=float(real.std()),
        rank_correlation=float("nan") if constant else float(spearmanr(predicted, real).statistic),
        predicted=frozen_array(predicted),
        real=frozen_array(real),
    )
