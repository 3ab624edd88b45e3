"""Pairwise interactions: second differences of the game, averaged over coalitions."""

from __future__ import annotations

import numpy as np

from ..errors import BudgetError, ConfigError, DataError
from ..game.base import Game
from .blocks import mean_and_stderr
from .communicator import Communicator, shared
from .density import FAITHFUL, SHAPLEY, Density
from .designs import ToggleDesign
from .exact import check_exact_size, second_differences, tabulate
from .records import Interactions
from .samplewise import SamplePairSource, per_sample
from .sampling import BATCH_SIZE, Clock, CoalitionSource, Evaluator, OutOfTimeError, Source, gather, replicates_for
from .semivalues import check_arguments, picks_exact

__all__ = ["DEFAULT_MASKS", "interactions"]

#: Default budget of sampled interactions: masks at which all pairs are toggled.
DEFAULT_MASKS = 64


def interactions(
    game: Game, *, index: str | None = None, p: float | None = None, method: str = "auto", n_evals: int | None = None,
    seed: int = 0, antithetic: bool = True, time_limit: float | None = None, batch_size: int = BATCH_SIZE,
    progress: bool = False, communicator: Communicator | None = None,
) -> Interactions:
    """Interaction of every pair: the mean of ``v(S+i+j) - v(S+i) - v(S+j) + v(S)`` over coalitions S of the others.

    Args:
        game: the game.
        index: which coalitions the mean is over:
            ``"banzhaf"``, all alike, or each player in with chance ``p`` if that is given: also the pair coefficients
            of the least-squares fit of degree 2 under that law (faithful Banzhaf), hence the default;
            ``"shapley"``, the Shapley interaction index (SII);
            ``"faithful_shapley"``, the pairs of the faithful Shapley interaction of order 2 (2203.00870).
        p: inclusion probability in [0, 1], for "banzhaf" only; the record then calls its index "semivalue".
        method: ``"exact"`` (2^n evaluations, n <= 20), ``"sampled"`` (all pairs toggled at random masks, 1 + n +
            n(n-1)/2 evaluations a mask), ``"sample_sampled"`` (the same with a mask for every sample of a
            :class:`~mipprune.game.SampleGame`; all samples at one pair count as one evaluation), or ``"auto"``: exact
            when 2^n fits ``n_evals`` (n <= 14 if None), otherwise sample_sampled where the game can, or sampled.
        n_evals: budget in coalition evaluations, never exceeded.  None: 64 masks, or until ``time_limit``.  A sampled
            replicate's coalitions take n^3 bytes (half of that if not antithetic), a sample-wise one O(n^2).
        seed, antithetic, time_limit, batch_size, progress, communicator: as in :func:`~mipprune.estimate.shapley`.

    Raises:
        BudgetError, ConfigError, DataError: as :func:`~mipprune.estimate.shapley`.
    """
    name, density = _law("banzhaf" if index is None else index, p)
    check_arguments(game, method, ("exact", "sampled", "sample_sampled"), n_evals, seed)
    if method == "sample_sampled" and per_sample(game) is None:
        raise DataError(
            "method='sample_sampled' needs a SampleGame, whose value is a mean over samples (no callable of all "
            "outputs); method='sampled' works with coalitions that all samples share"
        )
    if communicator is not None and time_limit is not None:
        raise ConfigError("time_limit= is for one process: with communicator= give n_evals")
    n, clock = game.n_players, Clock(time_limit)
    with Evaluator(game, batch_size, clock, progress) as evaluator:
        if method == "exact" or (method == "auto" and picks_exact(n, n_evals)):
            check_exact_size(n, "method='sampled'")
            if n_evals is not None and n_evals < 1 << n:
                raise BudgetError(f"n_evals={n_evals} is too small: the exact method needs {1 << n} evaluations")
            try:
                values = second_differences(tabulate(evaluator).table, density)
                return Interactions(
                    values, np.zeros((n, n)), name, density.p, "exact", 1 << n, None, game.player_names,
                    seconds=clock.seconds,
                )
            except OutOfTimeError as error:
                if method == "exact":
                    raise OutOfTimeError(f"{error} before all values were known; use method='sampled'") from None
        samplewise = method == "sample_sampled" or (method == "auto" and per_sample(game) is not None)
        return _sampled(evaluator, name, density, n_evals, int(seed), antithetic, samplewise, communicator)


def _law(index: str, p: float | None) -> tuple[str, Density]:
    if index == "banzhaf":
        return ("banzhaf", Density(0.5)) if p is None or p == 0.5 else ("semivalue", Density(p))
    if p is not None:
        raise ConfigError(f"p={p} goes with index='banzhaf' only; {index!r} has no p")
    laws = {"shapley": SHAPLEY, "faithful_shapley": FAITHFUL}
    if index not in laws:
        raise ConfigError(f"unknown interaction index {index!r}; known: {('banzhaf', *laws)}")
    return index, laws[index]


def _sampled(
    evaluator: Evaluator, name: str, density: Density, n_evals: int | None, seed: int, antithetic: bool,
    samplewise: bool, communicator: Communicator | None,
) -> Interactions:
    game, clock = evaluator.game, evaluator.clock
    n = game.n_players
    samples = per_sample(game) if samplewise else None
    source: Source
    if samples is not None:
        source = SamplePairSource(samples, evaluator, seed, density, antithetic)
    else:
        source = CoalitionSource(ToggleDesign(n, seed, density, antithetic, pairs=True), evaluator)
    n_replicates = None
    if n_evals is not None or clock.time_limit is None:
        budget = DEFAULT_MASKS // (1 + antithetic) * source.cost if n_evals is None else n_evals
        hint = f" ({source.cost} with antithetic=False)" if antithetic else ""
        n_replicates = replicates_for(budget, 0, source, f"all pairs of {n} players at once", hint)
    evaluator.announce(None if n_replicates is None else n_replicates * source.cost)
    sharing = source if communicator is None else shared(source, communicator)
    state, termination = gather(sharing, n_replicates, evaluator.batch_size)
    means, sizes = source.finish(state)
    values, stderr = mean_and_stderr(means, sizes)
    return Interactions(
        _symmetric(values, n), _symmetric(stderr, n), name, density.p,
        "sampled" if samples is None else "sample_sampled", state.n_replicates * source.cost, seed, game.player_names,
        len(sizes) - 1, termination, clock.seconds,
    )


def _symmetric(pairs: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((n, n))
    out[np.triu_indices(n, 1)] = pairs
    return out + out.T
