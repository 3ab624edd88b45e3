"""Shapley Pruning (2407.15875): the ranks that it compares, on one game, and beside the oracle where that is exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..game.base import Game
from ..records import Record
from .exact import exact_table
from .oracle import OracleComparison, oracle_comparison, rank_correlations, text_table
from .partial import k_partial
from .records import Estimate
from .samplewise import per_sample
from .sampling import BATCH_SIZE
from .semivalues import AUTO_EXACT_PLAYERS, leave_one_out, shapley

__all__ = ["ShapleyPruningRanks", "shapley_pruning_ranks"]


@dataclasses.dataclass(frozen=True, eq=False)
class ShapleyPruningRanks(Record):
    """The ranks of one game; printing it shows a row per rank, then their rank correlations.

    Attributes:
        estimates: name -> the index behind the rank.
        oracle: the ranks against the best set of every size; None where 2^n coalitions were too many.
    """

    estimates: dict[str, Estimate]
    oracle: OracleComparison | None

    def __str__(self) -> str:
        correlations = rank_correlations([estimate.values for estimate in self.estimates.values()])
        numbered = [f"{i} {name}" for i, name in enumerate(self.estimates, 1)]
        table = text_table(
            ["Spearman", *map(str, range(1, 1 + len(numbered)))],
            [[name, *(f"{r:.2f}" for r in row)] for name, row in zip(numbered, correlations)],
        )
        if self.oracle is not None:
            return f"{self.oracle}\n\n{table}"
        rows = [[name, e.method, str(e.n_evals), f"{e.seconds:.2f}"] for name, e in self.estimates.items()]
        return f"{text_table(['ranking', 'method', 'evals', 'seconds'], rows)}\n\n{table}"


def shapley_pruning_ranks(
    game: Game, *, ks: Sequence[int] = (2,), n_evals: int | None = None, oracle: bool | None = None, seed: int = 0,
    batch_size: int = BATCH_SIZE, progress: bool = False,
) -> ShapleyPruningRanks:
    """The ranks that Shapley Pruning (2407.15875) compares: leave-one-out, k-partial, permutation, regression.

    Each is an estimate that can be used alone: :func:`~mipprune.estimate.leave_one_out`,
    :func:`~mipprune.estimate.k_partial` on both sides, and :func:`~mipprune.estimate.shapley` with orders (every sample
    its own where the value is a mean over samples) and by regression.  With the oracle come the exact Shapley values
    and every rank's distance from the best sets (:func:`~mipprune.estimate.oracle_comparison`).  Our form; the
    paper's tables aren't reproduced.

    Args:
        game: the game; a higher value is better.
        ks: the k of the k-partial ranks, each in 1 .. n.
        n_evals: budget of each sampled rank in coalition evaluations; None: 256 (n + 1).
        oracle: evaluate all 2^n coalitions (n <= 20) and judge the ranks; None: when n <= 14.
        seed: of the sampling.
        batch_size, progress: as in :func:`~mipprune.estimate.shapley`.

    Raises:
        BudgetError, ConfigError, DataError: as the functions named above.
    """
    if len(set(ks)) != len(ks):
        raise ConfigError(f"ks={tuple(ks)}: a k is named twice")
    common: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    sampled: dict[str, Any] = {"n_evals": n_evals, "seed": seed, **common}
    orders = "permutation" if per_sample(game) is None else "sample_permutation"
    found = {"leave-one-out": leave_one_out(game, **common)}
    for k in ks:
        for side in ("removed", "kept"):
            found[f"{k}-partial {side}"] = k_partial(game, k, side=side, **sampled)
    found["permutation"] = shapley(game, method=orders, **sampled)
    found["regression"] = shapley(game, method="regression", **sampled)
    judged = None
    if oracle or (oracle is None and game.n_players <= AUTO_EXACT_PLAYERS):
        table = exact_table(game, **common)
        found["exact Shapley"] = shapley(table, method="exact")
        judged = oracle_comparison(table, found)
    return ShapleyPruningRanks(found, judged)
