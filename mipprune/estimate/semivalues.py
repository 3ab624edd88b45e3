"""The importance of every player: Shapley, Banzhaf, p-binomial semivalues, leave-one-out."""

from __future__ import annotations

import os

import numpy as np

from ..errors import BudgetError, ConfigError, DataError
from ..game.base import Game, TableGame
from .communicator import Communicator
from .density import SHAPLEY, Density
from .exact import EXACT_PLAYERS, check_exact_size, first_differences, tabulate
from .methods import INDEX_METHODS, Settings, run_sampled
from .records import Estimate
from .sampling import BATCH_SIZE, Clock, Evaluator, OutOfTimeError
from .stopping import CutResolved

__all__ = ["AUTO_EXACT_PLAYERS", "banzhaf", "leave_one_out", "semivalue", "shapley"]

#: "auto" without a budget is exact up to this many players (16,384 evaluations).
AUTO_EXACT_PLAYERS = 14


def shapley(
    game: Game, *, method: str = "auto", n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, stop: CutResolved | None = None, keep_samples: bool = False,
    checkpoint: str | os.PathLike[str] | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
    communicator: Communicator | None = None,
) -> Estimate:
    """Shapley values: the mean marginal contribution over all orders of the players.

    Args:
        game: the game.
        method: ``"auto"``: exact when 2^n fits ``n_evals`` (n <= 14 if that is None), otherwise sample_permutation, or
            permutation for a game whose value is no mean over samples; or one of

            * ``"exact"``: all 2^n coalitions, n <= 20.
            * ``"sample_permutation"``, ``"sample_one_toggle"``: permutation and one_toggle with an order (coalition)
              for every sample of a :class:`~mipprune.game.SampleGame`; a pass of all samples over n toggles counts as
              n evaluations (n + 1 for one_toggle).
            * ``"permutation"``: random orders; values sum to v(N) - v(empty) exactly, n - 1 evaluations an order.
            * ``"one_toggle"``: single toggles at random coalitions of uniform density, n + 1 evaluations each.
            * ``"regression"``: least squares on coalitions sampled by leverage (2410.01917), one evaluation each.
            * ``"adjusted"``: a quarter of the budget fits a quadratic proxy whose Shapley values are known; the
              regression above estimates the rest.  Antithetic pairs cancel pairwise terms already, so it helps only
              with ``antithetic=False``.

            The last two have a bias of the order 1 / n_evals, below their standard errors.  Which of permutation and
            regression is better depends on the game: regression where it is nearly additive.
        n_evals: budget in coalition evaluations, never exceeded.  None: 256 (n + 1), or until ``time_limit``.
        seed: of the sampling.  Results depend on it, on the budget and on ``antithetic``, not on ``batch_size``.
        antithetic: pair every order (coalition) with its reverse (complement).
        time_limit: seconds; when they have passed, or on Ctrl-C, what was gathered so far is returned.
        stop: end earlier, when the cut between the players one wants to keep and the others is resolved.
        keep_samples: keep the marginals of every sample too (``Estimate.samples``, N n numbers); only with the
            sample-wise methods.
        checkpoint: a file that a long run is saved to every few seconds, and goes on from if it exists.  A resumed run
            gives the same bits as an undisturbed one; a larger ``n_evals`` adds to what is there.
        batch_size: coalitions per call of the game.
        progress: show a progress bar.
        communicator: share the sampling among several processes (:class:`mipprune.TorchCommunicator` under torchrun).
            All of them call with the same arguments and get the same result, that of one process; the exact method
            isn't shared.  Not with ``checkpoint`` or ``time_limit``.

    Raises:
        BudgetError: too many players for exact, too small a budget, or a time limit too short for two replicates.
        ConfigError: an unknown method, a bad seed or rule, options that don't go together.
        DataError: the game has no players or a value that isn't finite; a sample-wise method is asked for and the
            game's value is no mean over samples; a checkpoint of another game or other settings.
    """
    return _estimate(game, "shapley", SHAPLEY, Settings(
        method, n_evals, seed, antithetic, time_limit, stop, keep_samples, checkpoint, batch_size, progress,
        communicator,
    ))


def banzhaf(
    game: Game, *, method: str = "auto", n_evals: int | None = None, seed: int = 0, antithetic: bool = True,
    time_limit: float | None = None, stop: CutResolved | None = None, keep_samples: bool = False,
    checkpoint: str | os.PathLike[str] | None = None, batch_size: int = BATCH_SIZE, progress: bool = False,
    communicator: Communicator | None = None,
) -> Estimate:
    """Banzhaf values: the mean marginal contribution over all coalitions, the semivalue with p = 1/2.

    Args:
        game, n_evals, seed, time_limit, stop, keep_samples, checkpoint, batch_size, progress, communicator: as in
            :func:`shapley`.
        method, antithetic: as in :func:`semivalue`.

    Raises:
        BudgetError, ConfigError, DataError: as :func:`shapley`.
    """
    return _estimate(game, "banzhaf", Density(0.5), Settings(
        method, n_evals, seed, antithetic, time_limit, stop, keep_samples, checkpoint, batch_size, progress,
        communicator,
    ))


def semivalue(
    game: Game, *, p: float | None = None, n_keep: int | None = None, method: str = "auto", n_evals: int | None = None,
    seed: int = 0, antithetic: bool = True, time_limit: float | None = None, stop: CutResolved | None = None,
    keep_samples: bool = False, checkpoint: str | os.PathLike[str] | None = None, batch_size: int = BATCH_SIZE,
    progress: bool = False, communicator: Communicator | None = None,
) -> Estimate:
    """p-binomial semivalues (2311.10468): the mean marginal contribution where each other player is in with chance p.

    p = 1/2 is Banzhaf, p = 1 leave-one-out, p = 0 every player on its own; the last two are exact with n + 1
    evaluations, which ``"auto"`` uses.  With the same seed and budget, estimates at two p rest on common random
    numbers.

    Args:
        p: inclusion probability in [0, 1].  Which coalitions are asked changes the ranking a lot; the ones to ask are
            those of the density one wants to prune to, so the default is ``n_keep / n``.
        n_keep: number of players that are going to be kept; give it or ``p``.
        method: ``"exact"``, ``"one_toggle"``, ``"sample_one_toggle"`` and ``"auto"`` as in :func:`shapley`;
            ``"reuse"``: every coalition counts for every player, one evaluation each (maximum sample reuse,
            2205.15466); ``"adjusted"``: reuse on what a quadratic proxy, fitted to a quarter of the budget, leaves
            over.  For a game whose value is no mean over samples "auto" means one_toggle, or adjusted where p is not
            1/2 and there are 64 evaluations per player and more.
        antithetic: two negatively dependent masks a replicate, complements for p = 1/2; see :class:`Density`.

    Other arguments as in :func:`shapley`.

    Raises:
        BudgetError, DataError: as :func:`shapley`.
        ConfigError: both or neither of ``p`` and ``n_keep``, one out of range, or as :func:`shapley`.
    """
    if (p is None) == (n_keep is None):
        raise ConfigError("give either p, the inclusion probability, or n_keep, the number of players to be kept")
    if n_keep is not None:
        if not 0 <= n_keep <= game.n_players:
            raise ConfigError(f"n_keep={n_keep}: the game has {game.n_players} players")
        p = n_keep / max(game.n_players, 1)
    density = Density(p)
    settings = Settings(
        method, n_evals, seed, antithetic, time_limit, stop, keep_samples, checkpoint, batch_size, progress,
        communicator,
    )
    if p in (0.0, 1.0) and method in ("auto", "exact"):
        check_arguments(game, method, ("exact",), n_evals, seed)
        if n_evals is not None and n_evals < game.n_players + 1:
            raise BudgetError(f"n_evals={n_evals} is too small: p={p:g} needs {game.n_players + 1} evaluations")
        return _corner(game, "semivalue", float(p), time_limit, batch_size, progress)
    return _estimate(game, "semivalue", density, settings)


def leave_one_out(
    game: Game, *, time_limit: float | None = None, batch_size: int = BATCH_SIZE, progress: bool = False
) -> Estimate:
    """What removing each player from the full coalition costs, ``v(N) - v(N - i)``: exact, n + 1 evaluations.

    Args:
        game, time_limit, batch_size, progress: as in :func:`shapley`.

    Raises:
        BudgetError: the time limit can't be met.
        DataError: a value isn't finite.
    """
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


def _estimate(game: Game, index: str, density: Density, settings: Settings) -> Estimate:
    method, n_evals = settings.method, settings.n_evals
    check_arguments(game, method, ("exact", *INDEX_METHODS["shapley" if density.p is None else "semivalue"]), n_evals,
                    settings.seed)
    settings.check(game)
    clock = Clock(settings.time_limit)
    with Evaluator(game, settings.batch_size, clock, settings.progress) as evaluator:
        instead = "permutation" if density.p is None else "one_toggle"
        may_be_exact = not settings.keep_samples and picks_exact(game.n_players, n_evals)
        if method == "exact" or (method == "auto" and may_be_exact):
            check_exact_size(game.n_players, f"method={instead!r}")
            if n_evals is not None and n_evals < 1 << game.n_players:
                raise BudgetError(
                    f"n_evals={n_evals} is too small: the exact method needs {1 << game.n_players} evaluations; "
                    f"method={instead!r} takes fewer"
                )
            try:
                return _from_table(tabulate(evaluator), index, density, clock)
            except OutOfTimeError as error:
                if method == "exact":
                    raise OutOfTimeError(f"{error} before all values were known; use method={instead!r}") from None
        return run_sampled(evaluator, index, density, settings)


def _from_table(table: TableGame, index: str, density: Density, clock: Clock) -> Estimate:
    return Estimate(
        first_differences(table.table, density), np.zeros(table.n_players), index, density.p, "exact",
        len(table.table), None, float(table.table[-1]), float(table.table[0]), table.player_names,
        np.zeros((0, table.n_players)), np.zeros(0), "completed", clock.seconds,
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
