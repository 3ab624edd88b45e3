"""The search over repaired networks: which groups to empty, then widths, then units, fewer candidates every time."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from ..errors import InfeasibleError
from ..records import frozen_array
from .oracle import RefitOracle
from .polishing import best_polished, can_polish
from .search import Candidate, Searcher
from .surrogates import refit_size_curves
from .unit_exchange import UnitExchange
from .widths import WidthSearch

__all__ = ["search_widths"]

#: Networks that the searches repair and measure: as many as this many multiply-adds (of the smaller network, on all
#: samples) pay for, within a range.
SEARCH_WORK, FEWEST_TRIALS, MOST_TRIALS = 8e9, 20, 120
#: The share of them that goes to choices of groups to empty, and to widths; the rest is for exchanges of units.
PATTERN_SHARE, WIDTH_SHARE = 0.1, 0.3
#: How many choices of groups to empty share the widths' evaluations, and the exchanges.
SEMIFINALISTS, FINALISTS = 3, 2
#: Networks that are polished where the second-order repair follows: as many as this many multiply-adds pay for.
POLISH_WORK, FEWEST_POLISHED, MOST_POLISHED = 6e7, 2, 4


def search_widths(search: Searcher, limits: dict[str, int], best: Candidate, plain: np.ndarray) -> Candidate:
    """The best network around those of ``best``, judged by repaired networks; its bound stays what it was.

    Widths to start from: those of ``best``, those of the baseline's mask ``plain``, and the curves' for every choice of
    groups to empty, if there are few, or else for those that one change after another leads to.  The best choices
    share the width search, the best of these the exchanges of units.  So the result is never worse than ``plain`` by
    the oracle.  Where the second-order repair follows, a tournament of short polishes decides in the end
    (:func:`~mipprune.pruning.polishing.best_polished`).
    """
    search.tick("searching widths")
    costs = search.graph.costs
    curves = search.refit_curves()
    may_empty = bool((search.floor == 0).any())
    heads = "head" in search.repairer.names
    oracle = RefitOracle(search.graph, search.data, search.unseen, heads, search.seed, may_empty)
    widths = WidthSearch(curves, costs, limits, search.allowed, oracle, search.seed)
    trials = int(SEARCH_WORK / max(1, search.graph.macs(best.kept) * len(search.data)))
    trials = min(max(trials, FEWEST_TRIALS), MOST_TRIALS)
    fits = widths.fits(costs.counts(plain))  # not where a latency limit was tightened since
    widths.judge(costs.counts(best.kept))
    if fits:
        widths.judge(costs.counts(plain))
    _choose_empty(search, widths, limits, int(PATTERN_SHARE * trials))
    spent = len(widths.seen)
    most = max(spent, int((PATTERN_SHARE + WIDTH_SHARE) * trials))
    starts = widths.finalists(SEMIFINALISTS)
    for number, (counts, _) in enumerate(starts, 1):
        widths.run(counts, spent + (most - spent) * number // len(starts), search.goes_on)
    finalists = [(widths.mask(k), value) for k, value in widths.finalists(FINALISTS)]
    if fits and search.goes_on() and (other := oracle(plain)) < finalists[0][1]:
        finalists.append((plain, other))
    streams = [stream.group for stream, _ in oracle.fit.streams]
    exchange = UnitExchange(widths, search.pinned, search.seed, streams)
    left = trials - len(widths.seen)
    ranked: list[np.ndarray] = []
    while finalists:  # half of what is left goes to all that are left, then the worst one leaves
        share = left if len(finalists) == 1 else left // (2 * len(finalists))
        finalists = [exchange.run(*finalist, share, search.goes_on) for finalist in finalists]
        left -= share * len(finalists)
        finalists.sort(key=lambda found: found[1])
        ranked.insert(0, finalists.pop()[0])
    kept = ranked[0]
    if "lm" in search.repairer.names and can_polish(search.graph, kept) and search.goes_on():
        kept = _polished(search, oracle, widths, ranked)
    counts = costs.counts(kept)
    last = best.stages[-1]
    if (kept == widths.mask(counts)).all():
        predicted = float(sum(c.error[len(c.order) - k] for c, k in zip(curves, counts, strict=True)))
    else:
        predicted = search.predicted(kept)
    quality = search.truth(kept)
    stage = dataclasses.replace(
        last, kept=frozen_array(kept, bool), objective=predicted, surrogate_drop=predicted,
        true_drop=last.true_drop + quality.loss - best.quality.loss,
    )
    return Candidate(kept, quality, (*best.stages[:-1], stage))


def _polished(search: Searcher, oracle: RefitOracle, widths: WidthSearch, ranked: list[np.ndarray]) -> np.ndarray:
    """The best network after a short second-order repair: of ``ranked``, the best widths of other choices of groups to
    empty, and the best widths whatever they empty.
    """
    search.tick("polishing")
    costs = search.graph.costs
    work = search.graph.macs(ranked[0]) * len(search.data)
    places = min(max(int(POLISH_WORK / max(1, work)), FEWEST_POLISHED), MOST_POLISHED)
    known = [(costs.counts(kept) == 0).tolist() for kept in ranked]
    counts = [found for found, _ in widths.finalists(places) if (found == 0).tolist() not in known]
    counts += [found for found, _ in widths.best(places)]
    masks = list({mask.tobytes(): mask for mask in (*ranked, *map(widths.mask, counts))}.values())
    return best_polished(oracle, masks[:places], search.goes_on)[0]


def _choose_empty(search: Searcher, widths: WidthSearch, limits: dict[str, int], evaluations: int) -> None:
    """Judge the curves' widths for several choices of groups to empty; ``widths`` remembers them."""
    may = [g for g, least in enumerate(search.floor) if least == 0 and widths.allowed[g][0] == 0]
    if not may:
        return
    known: dict[frozenset[int], float] = {}

    def look(empty: frozenset[int]) -> None:
        if empty not in known and len(known) < evaluations and search.goes_on():
            counts = widths.trimmed(empty)
            known[empty] = np.inf if counts is None else widths.judge(counts)

    if 2 ** len(may) <= evaluations:
        for r in range(len(may) + 1):
            for chosen in itertools.combinations(may, r):
                look(frozenset(chosen))
        return
    for counts in (_without_emptying(search, limits), *map(np.array, list(widths.seen))):
        look(frozenset(g for g in may if counts is not None and counts[g] == 0))
    done: set[frozenset[int]] = set()
    while len(known) < evaluations and search.goes_on():
        left = [empty for empty in known if empty not in done]
        if not left:
            return
        best = min(left, key=lambda empty: known[empty])
        done.add(best)
        for group in may:
            look(best ^ {group})


def _without_emptying(search: Searcher, limits: dict[str, int]) -> np.ndarray | None:
    """The best widths by the curves when every group keeps a unit; ``None`` if the limits leave no room for that."""
    fewest = np.maximum(search.fewest, np.minimum(search.min_keep, search.graph.costs.sizes))
    try:
        found = search.combine(refit_size_curves(search.refit_curves(), fewest), objective="drop", budgets=limits)
    except InfeasibleError:
        return None
    return search.graph.costs.counts(found.kept)
