"""Within a tolerance: smaller and smaller networks, each repaired and judged on samples that its repairs didn't see."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..records import frozen_array
from .oracle import Losses, RefitOracle
from .search import Candidate, Searcher
from .unit_exchange import UnitExchange
from .widths import WidthSearch

__all__ = ["RiseOracle", "shrink"]

#: Networks to repair and judge in all, and at one cost before the step towards a smaller one is halved.
TRIALS, PATIENCE = 40, 8


class RiseOracle(RefitOracle):
    """By how many nats the repaired network's cross-entropy lies above the dense one's on samples its refit didn't see.

    Repairs are fitted to the calibration data, so that these judge them too kindly: a network within 0.02 nats there
    lay 0.05 above the dense one on new images (a small CNN, digits).
    """

    def __init__(self, search: Searcher) -> None:
        super().__init__(
            search.graph, search.data, search.unseen, "head" in search.repairer.names, search.seed,
            sensitivity=search.repairer.sensitivity,
        )
        self._dense = self._losses(self.fit.judged_logits).cross_entropy

    def _loss(self, losses: Losses) -> float:
        return losses.cross_entropy - self._dense


def shrink(search: Searcher, oracle: RiseOracle, best: Candidate, nats: float, minimize: str) -> Candidate:
    """A network no dearer in ``minimize`` than ``best``, within ``nats`` for the oracle and on the calibration data.

    Again and again the limit is lowered, the units of the least predicted loss per cost leave until it's met, and
    exchanges of units bring the loss down; where they don't bring it within the tolerance, the next step is half as
    long.  A local search; the bound is that of the problem over the curves whose limit the network found just meets.
    """
    search.tick("shrinking")
    costs = search.graph.costs
    allowed = search.truth(np.ones(search.graph.n_units, dtype=bool)).loss + nats
    oracle.settle(best.kept)
    widths = WidthSearch(search.refit_curves, costs, {}, search.allowed, oracle, search.seed)
    exchange = UnitExchange(widths, search.pinned, search.seed, [stream.group for stream, _ in oracle.fit.streams])
    kept, cost, left = best.kept, costs.cost(minimize, costs.counts(best.kept)), search.scaled(TRIALS)
    step = max(1, cost // 8)
    while step and left > 0 and search.goes_on():
        widths.limits = {minimize: cost - step}
        start = exchange.thinned(kept)
        trial = None
        if start is not None:
            before = len(oracle.known)
            trial = [start, *exchange.run(start, min(PATIENCE, left) - 1, search.goes_on, enough=nats)][-1]
            left -= max(1, len(oracle.known) - before)
        if trial is not None and oracle(trial) <= nats and search.truth(trial).loss <= allowed:
            kept, cost = trial, costs.cost(minimize, costs.counts(trial))
        else:
            step //= 2
    if kept is best.kept:
        return best
    quality, predicted, last = search.truth(kept), float(search.refit_model.errors(kept).sum()), best.stages[-1]
    limit = max(predicted, last.max_drop or 0.0)
    problem = search.combine(search.curves(np.ones(len(kept), dtype=bool)), objective=minimize, max_drop=limit)
    stage = dataclasses.replace(
        last, kept=frozen_array(kept, bool), objective=float(cost), bound=min(problem.bound, cost), max_drop=limit,
        surrogate_drop=predicted, true_drop=last.true_drop + quality.loss - best.quality.loss,
        seconds=last.seconds + problem.seconds,
    )
    return Candidate(kept, quality, (*best.stages[:-1], stage))
