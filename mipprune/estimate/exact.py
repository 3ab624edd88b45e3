"""Exact indices from the table of all 2^n values."""

from __future__ import annotations

import numpy as np

from ..errors import BudgetError
from ..game.base import Game, TableGame
from .density import Density
from .sampling import BATCH_SIZE, Clock, Evaluator

__all__ = ["EXACT_PLAYERS", "check_exact_size", "exact_table", "first_differences", "second_differences"]

#: Largest game whose table is made: 2^20 values, 8 MiB.
EXACT_PLAYERS = 20


def check_exact_size(n_players: int, instead: str) -> None:
    """Raise :class:`BudgetError` when the table of an n-player game would be too large; ``instead`` says what to do."""
    if n_players > EXACT_PLAYERS:
        raise BudgetError(
            f"the exact method takes at most {EXACT_PLAYERS} players (2^n evaluations), this game has {n_players}: "
            f"use {instead}, or pin players with PinnedGame"
        )


def exact_table(
    game: Game, *, batch_size: int = BATCH_SIZE, time_limit: float | None = None, progress: bool = False
) -> TableGame:
    """Evaluate all 2^n coalitions once and return the game as a table (n <= 20).

    Memory 8 * 2^n bytes (8 MiB at n = 20) beside one batch; time is that of 2^n evaluations.

    Args:
        game: the game.
        batch_size: coalitions that are evaluated at a time.
        time_limit: seconds.
        progress: show a progress bar.

    Raises:
        BudgetError: more than 20 players, or the time limit can't be met: known from the pace as soon as 5% of it
            have passed.
        DataError: a value isn't finite.
    """
    check_exact_size(game.n_players, "a sampled method")
    clock = Clock(time_limit)
    with Evaluator(game, batch_size, clock, progress) as evaluator:
        return tabulate(evaluator)


def tabulate(evaluator: Evaluator) -> TableGame:
    """:func:`exact_table` with an evaluator that the caller owns."""
    game, clock = evaluator.game, evaluator.clock
    n = game.n_players
    total = 1 << n
    table = np.empty(total)
    evaluator.announce(total)
    started, bits = clock.seconds, np.arange(n)
    done, batch = 0, min(64, evaluator.batch_size)
    while done < total:
        index = np.arange(done, min(done + batch, total))
        table[index] = evaluator.values((index[:, None] >> bits & 1).astype(bool))
        done, batch = done + len(index), min(2 * batch, evaluator.batch_size)  # a slow game shows its pace early
        if clock.time_limit is not None and clock.seconds > 0.05 * clock.time_limit:
            clock.check(clock.seconds + (clock.seconds - started) / done * (total - done))
    return TableGame(table, game.player_names)


def first_differences(table: np.ndarray, density: Density) -> np.ndarray:
    """``E[v(S + i) - v(S)]`` over the density's coalitions S of the others, for every i: float64 (n,).

    Time O(n 2^n), memory 3 * 2^n float64.  Differences are averaged directly rather than through the Moebius
    transform: that costs the same, and its alternating sums would lose digits.
    """
    n = len(table).bit_length() - 1
    weight = density.weights(n - 1)[_sizes(n - 1)]
    out = np.empty(n)
    for i in range(n):
        split = table.reshape(-1, 2, 1 << i)
        out[i] = weight @ (split[:, 1] - split[:, 0]).ravel()
    return out


def second_differences(table: np.ndarray, density: Density) -> np.ndarray:
    """``E[v(S + i + j) - v(S + i) - v(S + j) + v(S)]`` for every pair: float64 (n, n), symmetric, zero diagonal.

    Time O(n^2 2^n / 8), memory 3 * 2^n float64.
    """
    n = len(table).bit_length() - 1
    out = np.zeros((n, n))
    if n < 2:
        return out
    weight = density.weights(n - 2)[_sizes(n - 2)]
    for j in range(n):
        split = table.reshape(-1, 2, 1 << j)
        without_j = (split[:, 1] - split[:, 0]).ravel()  # the marginals of j, indexed by the bits of the others
        for i in range(j):
            pair = without_j.reshape(-1, 2, 1 << i)
            out[i, j] = out[j, i] = weight @ (pair[:, 1] - pair[:, 0]).ravel()
    return out


def _sizes(n: int) -> np.ndarray:
    """Number of bits of 0 .. 2^n - 1: int64 (2^n,)."""
    sizes = np.zeros(1 << n, dtype=np.int64)
    for i in range(n):
        sizes[1 << i : 2 << i] = sizes[: 1 << i] + 1
    return sizes
