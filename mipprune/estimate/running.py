"""From a source of replicates to an estimate: the end that sampled estimators share."""

from __future__ import annotations

from .blocks import mean_and_stderr
from .records import Estimate
from .sampling import Evaluator, Source, gather, replicates_for

__all__ = ["run_source"]


def run_source(
    source: Source, evaluator: Evaluator, budget: int | None, spent: int, *, index: str, p: float | None, method: str,
    seed: int, value_full: float | None = None, value_empty: float | None = None,
) -> Estimate:
    """Gather replicates until ``budget`` evaluations, ``spent`` ones included, are used up or the clock says stop.

    Args:
        budget: None to run until the time limit of the evaluator's clock.

    Raises:
        BudgetError: the budget or the time is too short for two replicates.
    """
    game = evaluator.game
    n_replicates = None
    if budget is not None:
        n_replicates = replicates_for(budget, spent, source.cost, f"{method} sampling of {game.n_players} players")
    evaluator.announce(None if n_replicates is None else spent + n_replicates * source.cost)
    blocks, termination = gather(source, n_replicates, evaluator.batch_size)
    means, sizes = blocks.means, blocks.sizes
    values, stderr = mean_and_stderr(means, sizes)
    return Estimate(
        values, stderr, index, p, method, spent + blocks.n_replicates * source.cost, seed, value_full, value_empty,
        game.player_names, means, sizes, termination, evaluator.clock.seconds,
    )
