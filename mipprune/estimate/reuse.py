"""Maximum sample reuse: p-binomial semivalues from the values of Dropout-like masks, every mask serving all players."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..game.base import Game
from .density import Density
from .designs import Design, uniforms
from .records import Estimate
from .running import run_source
from .sampling import BATCH_SIZE, Clock, CoalitionSource, Evaluator
from .semivalues import EVALS_PER_PLAYER, check_arguments

__all__ = ["PILOT_MASKS", "ReuseDesign", "sample_reuse"]

#: Masks whose mean value becomes the baseline that all others are compared to; at most a quarter of the budget.
PILOT_MASKS = 32


class ReuseDesign(Design):
    """One value ``v(S)`` gives all players a number: ``(v(S) - b) / p`` if i is in S, ``-(v(S) - b) / (1 - p)`` if not.

    Its mean is ``E[v | i in S] - E[v | i not in S]``, the p-binomial semivalue, since players are in independently;
    the baseline b cancels in the mean and takes out the noise of v's own size.

    Args:
        p: chance that a player is in, 0 < p < 1.
        baseline: b, independent of the masks drawn here.
        antithetic: a replicate is two negatively dependent masks (see :meth:`Density.thresholds`).
    """

    def __init__(self, n_players: int, seed: int, p: float, baseline: float, antithetic: bool) -> None:
        self.n_players, self.size, self.seed = n_players, n_players, seed
        self.p, self.baseline, self.antithetic = p, baseline, antithetic
        self.cost = 1 + antithetic

    def draw(self, first: int, count: int) -> np.ndarray:
        """The masks: bool of shape (count, 1 or 2, n)."""
        u = uniforms(self.seed, first, count, self.n_players)
        low, high = Density(self.p).thresholds(u[:, :1])
        return np.stack([u < low, u >= high] if self.antithetic else [u < low], axis=1)

    def coalitions(self, draw: np.ndarray) -> np.ndarray:
        return draw.reshape(-1, self.n_players)

    def vectors(self, draw: np.ndarray, values: np.ndarray) -> np.ndarray:
        weight = np.where(draw, 1.0 / self.p, -1.0 / (1.0 - self.p))
        return ((values.reshape(draw.shape[:2]) - self.baseline)[..., None] * weight).mean(axis=1)


def sample_reuse(
    game: Game, *, p: float, n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
) -> Estimate:
    """p-binomial semivalues by Dropout-like sampling: mean value of the masks with a unit minus that of those without.

    Every mask keeps each unit with chance p, as Dropout does, and its value serves all units at once: maximum sample
    reuse, which Wang and Jia (2205.15466) propose for Banzhaf values (p = 1/2); for other p, the baseline and the
    antithetic masks it is our form.  Unbiased.  The error of a unit falls like ``sd(v) / sqrt(p (1 - p) M)`` with M
    masks, however many units there are, where toggles (:func:`~mipprune.estimate.semivalue`) need n + 1 evaluations
    a replicate but see single differences: better for many units whose value can't be split by samples.

    Args:
        game: the game.
        p: keep rate, 0 < p < 1.
        n_evals: budget in coalition evaluations, never exceeded; None: 256 (n + 1), or until ``time_limit``.
        seed, antithetic, time_limit, batch_size, progress: as in :func:`~mipprune.estimate.shapley`.

    Raises:
        ConfigError: p at or beyond an end, where no mask lacks (has) a unit.
        BudgetError, DataError: as :func:`~mipprune.estimate.shapley`.
    """
    check_arguments(game, "auto", (), n_evals, seed)
    if not 0.0 < p < 1.0:
        raise ConfigError(f"p={p}: masks with and without every unit need 0 < p < 1; semivalue() takes the ends too")
    n = game.n_players
    budget = EVALS_PER_PLAYER * (n + 1) if n_evals is None and time_limit is None else n_evals
    pilots = PILOT_MASKS if budget is None else min(PILOT_MASKS, max(1, budget // 4))
    with Evaluator(game, batch_size, Clock(time_limit), progress) as evaluator:
        # the pilot's stream is another one than that of the masks, so that the baseline is independent of them
        words = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,))).random((pilots, n))
        baseline = float(evaluator.values(words < p).mean())
        source = CoalitionSource(ReuseDesign(n, int(seed), p, baseline, antithetic), evaluator)
        return run_source(source, evaluator, budget, pilots, index="semivalue", p=p, method="reuse", seed=int(seed))
