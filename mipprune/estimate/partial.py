"""k-partial Shapley values (2407.15875): marginals at coalitions that lack, or have, at most k players."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from ..errors import BudgetError, ConfigError, DataError
from ..game.base import Game, SampleGame
from .blocks import mean_and_stderr
from .designs import Design, uniforms
from .exact import EXACT_PLAYERS
from .methods import EVALS_PER_PLAYER
from .records import Estimate
from .samplewise import _SampleSource, per_sample
from .sampling import BATCH_SIZE, Clock, CoalitionSource, Evaluator, OutOfTimeError, Source, gather, replicates_for
from .semivalues import AUTO_EXACT_PLAYERS, check_arguments

__all__ = ["PartialDesign", "k_partial"]

SIDES = ("removed", "kept")
SAMPLEWISE = "sample_one_toggle"


def k_partial(
    game: Game, k: int, *, side: str = "removed", method: str = "auto", n_evals: int | None = None, seed: int = 0,
    antithetic: bool = True, time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
) -> Estimate:
    """Shapley values cut short: only coalitions with at most ``k`` players removed (or kept) are looked at.

    The Shapley value is the mean over sizes of the mean marginal contribution at coalitions of that size; here it is
    the mean over k of the sizes only.  Removed side: from k - 1 others and the player itself removed down to the player
    alone, so k = 1 is leave-one-out; kept side: from the player alone up to k - 1 others beside it.  k = n is the
    Shapley value on both.  After the k-partial rank of 2407.15875, in our form: the exact sum where that needs few
    coalitions, an unbiased sample with standard errors where it doesn't.

    Args:
        game: the game.
        k: 1 .. n.
        side: ``"removed"`` (near the dense network) or ``"kept"`` (near the empty one).
        method: ``"exact"`` (all ``sum_{j <= k} C(n, j)`` sets, at most 2^20), ``"one_toggle"`` (all players toggled
            at random sets, n + 1 evaluations a set), ``"sample_one_toggle"`` (a set for every sample of a
            :class:`~mipprune.game.SampleGame`), or ``"auto"``: exact when that fits ``n_evals`` (2^14 sets if None),
            otherwise sample_one_toggle where the game can, or one_toggle.
        n_evals: budget in coalition evaluations, never exceeded.  None: 256 (n + 1), or until ``time_limit``.
        antithetic: pair every set with a disjoint one as much smaller as it is larger than the average.
        seed, time_limit, batch_size, progress: as in :func:`~mipprune.estimate.shapley`.

    Raises:
        BudgetError, ConfigError, DataError: as :func:`~mipprune.estimate.shapley`; ConfigError also for a k or a side
            that doesn't exist.
    """
    check_arguments(game, method, ("exact", "one_toggle", SAMPLEWISE), n_evals, seed)
    n = game.n_players
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= n:
        raise ConfigError(f"k={k!r}: expected an integer in 1..{n}, the number of players")
    if side not in SIDES:
        raise ConfigError(f"unknown side {side!r}; known: {SIDES}")
    samples = per_sample(game)
    if method == SAMPLEWISE and samples is None:
        raise DataError(
            "method='sample_one_toggle' needs a SampleGame, whose value is a mean over samples (no callable of all "
            "outputs); method='one_toggle' works with coalitions that all samples share"
        )
    k, index = int(k), f"{k}-partial {side}"
    needed = sum(math.comb(n, size) for size in range(k + 1))
    affordable = min(1 << EXACT_PLAYERS, 1 << AUTO_EXACT_PLAYERS if n_evals is None else n_evals)
    with Evaluator(game, batch_size, Clock(time_limit), progress) as evaluator:
        if method == "exact" or (method == "auto" and needed <= affordable):
            limit = 1 << EXACT_PLAYERS if n_evals is None else affordable
            if needed > limit:
                raise BudgetError(
                    f"exact {k}-partial values of {n} players need {needed} evaluations, allowed are {limit}: use "
                    "method='one_toggle' or a smaller k"
                )
            return _exact(evaluator, k, side, index, needed)
        budget = EVALS_PER_PLAYER * (n + 1) if n_evals is None and time_limit is None else n_evals
        removed, picked = side == "removed", "one_toggle" if samples is None or method == "one_toggle" else SAMPLEWISE
        source: Source
        if samples is not None and picked == SAMPLEWISE:
            source = _PartialSampleSource(samples, evaluator, int(seed), k, removed, antithetic)
        else:
            source = CoalitionSource(PartialDesign(n, int(seed), k, removed, antithetic), evaluator)
        return _sampled(source, evaluator, budget, index, picked, int(seed))


def _sampled(
    source: Source, evaluator: Evaluator, budget: int | None, index: str, method: str, seed: int
) -> Estimate:
    game = evaluator.game
    n_replicates = None
    if budget is not None:
        n_replicates = replicates_for(budget, 0, source, f"{method} sampling of {game.n_players} players")
        evaluator.announce(n_replicates * source.cost)
    state, termination = gather(source, n_replicates, evaluator.batch_size)
    means, sizes = source.finish(state)
    values, stderr = mean_and_stderr(means, sizes)
    return Estimate(
        values, stderr, index, None, method, state.n_replicates * source.cost, seed, None, None, game.player_names,
        means, sizes, termination, evaluator.clock.seconds,
    )


def _exact(evaluator: Evaluator, k: int, side: str, index: str, needed: int) -> Estimate:
    """Sum over all sets of at most k players, the ones removed or the ones kept; time O(n sum C(n, j)).

    A set of size s is the coalition without i for the stratum s - 1 of each member i (removed side), and the one with
    i for the stratum s of each other player; kept sets the other way round.  The weights of a player sum to 0, so
    values are taken relative to the side's end, which loses no digits.
    """
    n, game, removed = evaluator.game.n_players, evaluator.game, side == "removed"
    evaluator.announce(needed)
    weight = [1.0 / (k * math.comb(n - 1, stratum)) for stratum in range(k)]
    total, end = np.zeros(n), math.nan
    try:
        for small in _subsets_up_to(n, k, evaluator.batch_size):
            size = int(small[0].sum())
            values = evaluator.values(~small if removed else small)
            if size == 0:
                end = float(values[0])
            inside = -weight[size - 1] if size else 0.0
            outside = weight[size] if size < k else 0.0
            total += (values - end) @ np.where(small, inside, outside)
    except OutOfTimeError as error:
        raise OutOfTimeError(f"{error} before all {needed} sets were valued; use method='one_toggle'") from None
    return Estimate(
        total if removed else -total, np.zeros(n), index, None, "exact", needed, None, end if removed else None,
        None if removed else end, game.player_names, np.zeros((0, n)), np.zeros(0), "completed",
        evaluator.clock.seconds,
    )


def _subsets_up_to(n: int, k: int, batch: int) -> Iterator[np.ndarray]:
    """All sets of 0, 1, .. k of n players as bool (at most ``batch``, n), sizes one after another."""
    for size in range(k + 1):
        sets = itertools.combinations(range(n), size)
        while members := list(itertools.islice(sets, batch)):
            small = np.zeros((len(members), n), dtype=bool)
            np.put_along_axis(small, np.array(members, dtype=np.int64).reshape(len(members), size), True, axis=1)
            yield small


def _draw_masks(u: np.ndarray, k: int, removed: bool, antithetic: bool) -> list[np.ndarray]:
    """Masks from uniform numbers (count, 1 + n): one array (count, n), or two of them.

    Of a random order the first s players are the ones removed (kept), s uniform in 0..k; the second mask takes the last
    k - s players of the same order, so that the two are disjoint.
    """
    n = u.shape[1] - 1
    size = (u[:, :1] * (k + 1)).astype(np.int64)
    position = u[:, 1:].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    small = [position < size, position >= n - (k - size)] if antithetic else [position < size]
    return [~mask if removed else mask for mask in small]


def _factors(masks: np.ndarray, k: int, removed: bool) -> np.ndarray:
    """What makes toggles at the masks of :func:`_draw_masks` unbiased: float64 of the shape of ``masks``.

    Beside player i, t others are removed (kept) when s = t and i isn't in the set, chance ``(n - t) / n``, or when
    s = t + 1 and it is, chance ``(t + 1) / n``: each t < k has chance ``(n + 1) / (n (k + 1))`` where 1 / k is due.
    t = k, from s = k, isn't asked for and counts 0.
    """
    n = masks.shape[-1]
    small = ~masks if removed else masks
    others = small.sum(axis=-1, keepdims=True) - small
    return np.where(others < k, n * (k + 1) / (k * (n + 1)), 0.0)


class PartialDesign(Design):
    """Toggles of all players at random sets of at most k removed (kept) players.

    Args:
        k: largest size of a set that counts.
        removed: sets are removed from the full coalition; otherwise they are the coalitions.
        antithetic: a replicate is two disjoint sets.
    """

    def __init__(self, n_players: int, seed: int, k: int, removed: bool, antithetic: bool) -> None:
        self.n_players, self.size, self.seed = n_players, n_players, seed
        self.k, self.removed, self.antithetic = k, removed, antithetic
        self.cost = (1 + antithetic) * (1 + n_players)
        self._flips = np.concatenate([np.zeros((1, n_players), dtype=bool), np.eye(n_players, dtype=bool)])

    def draw(self, first: int, count: int) -> np.ndarray:
        """The masks: bool of shape (count, 1 or 2, n)."""
        u = uniforms(self.seed, first, count, 1 + self.n_players)
        return np.stack(_draw_masks(u, self.k, self.removed, self.antithetic), axis=1)

    def coalitions(self, draw: np.ndarray) -> np.ndarray:
        return (draw[:, :, None, :] ^ self._flips).reshape(-1, self.n_players)

    def vectors(self, draw: np.ndarray, values: np.ndarray) -> np.ndarray:
        values = values.reshape(*draw.shape[:2], -1)
        change = np.where(draw, 1.0, -1.0) * (values[..., :1] - values[..., 1:])
        return (change * _factors(draw, self.k, self.removed)).mean(axis=1)


class _PartialSampleSource(_SampleSource):
    """The same with a set for every sample."""

    def __init__(
        self, game: SampleGame, evaluator: Evaluator, seed: int, k: int, removed: bool, antithetic: bool
    ) -> None:
        super().__init__(game, evaluator, seed, antithetic)
        self.k, self.removed = k, removed

    @staticmethod
    def cost_of(n_players: int, antithetic: bool) -> int:
        return (1 + antithetic) * (n_players + 1)

    def _passes(self, replicate: int) -> list[np.ndarray]:
        n_samples = self.game.n_samples
        u = uniforms(self.seed, replicate * n_samples, n_samples, 1 + self.game.n_players)
        return _draw_masks(u, self.k, self.removed, self.antithetic)

    def _run(self, drawn: np.ndarray) -> np.ndarray:
        return self.game.toggle(drawn) * _factors(drawn, self.k, self.removed)
