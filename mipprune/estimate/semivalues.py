"""The importance of every player: Shapley, Banzhaf, p-binomial semivalues, leave-one-out."""

from __future__ import annotations

import numpy as np

from ..errors import BudgetError, ConfigError, DataError
from ..game.base import Game, TableGame
from .blocks import mean_and_stderr
from .density import SHAPLEY, Density
from .designs import PermutationDesign, ToggleDesign
from .exact import EXACT_PLAYERS, check_exact_size, first_differences, tabulate
from .records import Estimate
from .samplewise import SampleToggleSource, SampleWalkSource, per_sample
from .sampling import BATCH_SIZE, Clock, CoalitionSource, Evaluator, OutOfTimeError, Source, gather, replicates_for

__all__ = ["AUTO_EXACT_PLAYERS", "EVALS_PER_PLAYER", "banzhaf", "leave_one_out", "semivalue", "shapley"]

#: "auto" without a budget is exact up to this many players (16,384 evaluations).
AUTO_EXACT_PLAYERS = 14

#: Default budget of sampled methods, in coalition evaluations per player.
EVALS_PER_PLAYER = 256


def shapley(
    game: Game, *, method: str = "auto", n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
) -> Estimate:
    """Shapley values: the mean marginal contribution over all orders of the players.

    Args:
        game: the game.
        method: ``"exact"`` (all 2^n coalitions, n <= 20), ``"permutation"`` (random orders; values sum to
            v(N) - v(empty) exactly, n - 1 evaluations an order), ``"one_toggle"`` (single toggles at random coalitions
            of uniform density, n + 1 evaluations a coalition); ``"sample_permutation"`` and ``"sample_one_toggle"``,
            the same with an order (coalition) for every sample of a :class:`~mipprune.game.SampleGame`, where a pass
            of all samples over n toggles counts as n evaluations (n + 1 for one_toggle); or ``"auto"``: exact when
            2^n fits ``n_evals`` (n <= 14 if that is None), otherwise sample_permutation, or permutation for a game
            whose value is no mean over samples.
        n_evals: budget in coalition evaluations, never exceeded.  None: 256 (n + 1), or until ``time_limit``.
        seed: of the sampling.  Results depend on it, on the budget and on ``antithetic``, not on ``batch_size``.
        antithetic: pair every order (coalition) with its reverse (complement).
        time_limit: seconds; when they have passed, or on Ctrl-C, what was gathered so far is returned.
        batch_size: coalitions per call of the game.
        progress: show a progress bar.

    Raises:
        BudgetError: too many players for exact, too small a budget, or a time limit too short for two replicates.
        ConfigError: an unknown method or a bad seed.
        DataError: the game has no players or a value that isn't finite, or a sample-wise method is asked for and the
            game's value is no mean over samples.
    """
    return _estimate(
        game, "shapley", SHAPLEY, method, "permutation", n_evals, seed, antithetic, time_limit, batch_size, progress
    )


def banzhaf(
    game: Game, *, method: str = "auto", n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
) -> Estimate:
    """Banzhaf values: the mean marginal contribution over all coalitions, the semivalue with p = 1/2.

    Methods ``"exact"``, ``"one_toggle"``, ``"sample_one_toggle"`` and ``"auto"``; arguments and errors as
    :func:`shapley`.
    """
    return _estimate(
        game, "banzhaf", Density(0.5), method, "one_toggle", n_evals, seed, antithetic, time_limit, batch_size, progress
    )


def semivalue(
    game: Game, *, p: float, method: str = "auto", n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
) -> Estimate:
    """p-binomial semivalues (2311.10468): the mean marginal contribution where each other player is in with chance p.

    p = 1/2 is Banzhaf, p = 1 leave-one-out, p = 0 every player on its own; the last two are exact with n + 1
    evaluations, which ``"auto"`` uses.  Methods ``"exact"``, ``"one_toggle"``, ``"sample_one_toggle"`` and ``"auto"``;
    other arguments and errors as :func:`shapley`.  With the same seed and budget, estimates at two p rest on common
    random numbers.

    Args:
        p: inclusion probability in [0, 1]; the density of the networks one wants to rank units for.
        antithetic: two negatively dependent masks a replicate, complements for p = 1/2; see :class:`Density`.
    """
    density = Density(p)
    if p in (0.0, 1.0) and method in ("auto", "exact"):
        check_arguments(game, method, ("exact",), n_evals, seed)
        if n_evals is not None and n_evals < game.n_players + 1:
            raise BudgetError(f"n_evals={n_evals} is too small: p={p:g} needs {game.n_players + 1} evaluations")
        return _corner(game, "semivalue", p, time_limit, batch_size, progress)
    return _estimate(
        game, "semivalue", density, method, "one_toggle", n_evals, seed, antithetic, time_limit, batch_size, progress
    )


def leave_one_out(
    game: Game, *, time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False
) -> Estimate:
    """What removing each player from the full coalition costs, ``v(N) - v(N - i)``: exact, n + 1 evaluations."""
    return _corner(game, "leave_one_out", 1.0, time_limit, batch_size, progress)


def picks_exact(n_players: int, n_evals: int | None) -> bool:
    """Whether "auto" makes the whole table."""
    if n_evals is None:
        return n_players <= AUTO_EXACT_PLAYERS
    return n_players <= EXACT_PLAYERS and 1 << n_players <= n_evals


def check_arguments(game: Game, method: str, known: tuple[str, ...], n_evals: int | None, seed: int) -> None:
    """Errors that every estimation shares."""
    if method not in ("auto", *known):
        raise ConfigError(f"unknown method {method!r}; known here: {('auto', *known)}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed={seed!r}: expected an integer >= 0")
    if n_evals is not None and (isinstance(n_evals, bool) or not isinstance(n_evals, int | np.integer) or n_evals < 1):
        raise BudgetError(f"n_evals={n_evals!r}: expected a number of evaluations, an integer >= 1")
    if game.n_players < 1:
        raise DataError("the game has no players")


def _estimate(
    game: Game, index: str, density: Density, method: str, sampled: str, n_evals: int | None, seed: int,
    antithetic: bool, time_limit: float | None, batch_size: int, progress: bool,
) -> Estimate:
    shared = tuple(dict.fromkeys((sampled, "one_toggle")))
    check_arguments(game, method, ("exact", *shared, *map("sample_{}".format, shared)), n_evals, seed)
    samples = per_sample(game)
    if samples is None and method.startswith("sample_"):
        raise DataError(
            f"method={method!r} needs a SampleGame, whose value is a mean over samples (no callable of all outputs); "
            f"method={method.removeprefix('sample_')!r} works with coalitions that all samples share"
        )
    sampled = sampled if samples is None else f"sample_{sampled}"
    clock = Clock(time_limit)
    with Evaluator(game, batch_size, clock, progress) as evaluator:
        if method == "exact" or (method == "auto" and picks_exact(game.n_players, n_evals)):
            check_exact_size(game.n_players, f"method={sampled!r}")
            if n_evals is not None and n_evals < 1 << game.n_players:
                raise BudgetError(
                    f"n_evals={n_evals} is too small: the exact method needs {1 << game.n_players} evaluations; "
                    f"method={sampled!r} takes fewer"
                )
            try:
                return _from_table(tabulate(evaluator), index, density, clock)
            except OutOfTimeError as error:
                if method == "exact":
                    raise OutOfTimeError(f"{error} before all values were known; use method={sampled!r}") from None
        picked = sampled if method == "auto" else method
        return _sampled(evaluator, index, density, picked, n_evals, int(seed), antithetic)


def _from_table(table: TableGame, index: str, density: Density, clock: Clock) -> Estimate:
    return Estimate(
        first_differences(table.table, density), np.zeros(table.n_players), index, density.p, "exact",
        len(table.table), None, float(table.table[-1]), float(table.table[0]), table.player_names,
        np.zeros((0, table.n_players)), np.zeros(0), "completed", clock.seconds,
    )


def _sampled(
    evaluator: Evaluator, index: str, density: Density, method: str, n_evals: int | None, seed: int, antithetic: bool
) -> Estimate:
    game, clock = evaluator.game, evaluator.clock
    n, walks = game.n_players, method.endswith("permutation")
    samples = per_sample(game) if method.startswith("sample_") else None
    if samples is not None:
        cost = (SampleWalkSource if walks else SampleToggleSource).cost_of(n, antithetic)
    else:
        cost = PermutationDesign.cost_of(n, antithetic) if walks else ToggleDesign.cost_of(n, antithetic)
    # with a time limit and no budget, run until the time is up; a game with nothing to draw needs no more than 2
    budget = EVALS_PER_PLAYER * (n + 1) if n_evals is None and (clock.time_limit is None or not cost) else n_evals
    n_replicates = None
    if budget is not None:
        hint = f" ({2 + cost} with antithetic=False)" if antithetic else ""
        n_replicates = replicates_for(budget, 2, cost, f"{method} sampling of {n} players", hint)
    evaluator.announce(None if n_replicates is None else 2 + n_replicates * cost)
    value_empty, value_full = map(float, evaluator.values(np.repeat([[False], [True]], n, axis=1)))
    source: Source
    if samples is not None and walks:
        source = SampleWalkSource(samples, evaluator, seed, antithetic)
    elif samples is not None:
        source = SampleToggleSource(samples, evaluator, seed, density, antithetic)
    elif walks:
        source = CoalitionSource(PermutationDesign(n, seed, value_empty, value_full, antithetic), evaluator)
    else:
        source = CoalitionSource(ToggleDesign(n, seed, density, antithetic), evaluator)
    blocks, termination = gather(source, n_replicates, evaluator.batch_size)
    means, sizes = blocks.means, blocks.sizes
    values, stderr = mean_and_stderr(means, sizes)
    return Estimate(
        values, stderr, index, density.p, method, 2 + blocks.n_replicates * cost, seed, value_full, value_empty,
        game.player_names, means, sizes, termination, clock.seconds,
    )


def _corner(
    game: Game, index: str, p: float, time_limit: float | None, batch_size: int, progress: bool
) -> Estimate:
    """The semivalues at p = 0 and p = 1, whose only coalition of the others is empty or full."""
    n = game.n_players
    if n < 1:
        raise DataError("the game has no players")
    clock = Clock(time_limit)
    inside = p == 1.0
    with Evaluator(game, batch_size, clock, progress) as evaluator:
        evaluator.announce(n + 1)
        flips = np.concatenate([np.zeros((1, n), dtype=bool), np.eye(n, dtype=bool)])
        end, *single = evaluator.values(flips ^ inside)
    values = (end - np.array(single)) * (1.0 if inside else -1.0)
    return Estimate(
        values, np.zeros(n), index, p, "exact", n + 1, None, float(end) if inside else None,
        None if inside else float(end), game.player_names, np.zeros((0, n)), np.zeros(0), "completed", clock.seconds,
    )
