"""The search over repaired networks: which groups to empty, then widths, then units, fewer candidates every time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ..costs import CostModel
from ..errors import InfeasibleError
from ..records import frozen_array
from ..solver import Recombination
from .jury import Jury
from .measure import Quality
from .oracle import RefitOracle
from .search import Candidate, OutOfTime, Searcher
from .surrogates import refit_size_curves
from .unit_exchange import UnitExchange
from .widths import WidthSearch

__all__ = ["as_candidate", "search_widths"]

#: Networks that the searches repair and measure: as many as this many multiply-adds (of the smaller network, on all
#: samples) pay for, within a range, and no more than so many for every two groups that can exchange units, and so many
#: more where groups may be emptied.
SEARCH_WORK, FEWEST_TRIALS, MOST_TRIALS, TRIALS_PER_PAIR, EMPTY_TRIALS = 2.5e9, 12, 60, 3, 20
#: The share of them that goes to choices of groups to empty, and to widths; the rest is for exchanges of units.  In
#: seven runs on three small networks the first two took 24% off the divergence, twice as many exchanges 6% more.
PATTERN_SHARE, WIDTH_SHARE = 0.2, 0.6
#: How many choices of groups to empty share the widths' evaluations, come before the jury, and share the exchanges.
STARTS, SEMIFINALISTS, FINALISTS = 3, 3, 2
#: Of the masks that an exchange came along, the jury sees so many, the last ones.
JUDGED = 2


def search_widths(search: Searcher, limits: dict[str, int], by_curves: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The mask of the best network around that of ``by_curves``, judged by repaired networks.

    Widths to start from: those of the curves' mask, those of the baseline's mask ``plain``, and the curves' for every
    choice of groups to empty, if there are few, or else for those that one change after another leads to.  The best
    choices share the width search; the best of these by the jury (:class:`~mipprune.pruning.jury.Jury`), with ``plain``
    among them, share the exchanges of units, and the jury says how far to follow these.
    """
    search.tick("searching widths")
    costs = search.graph.costs
    curves = search.refit_curves
    may_empty = bool((search.floor == 0).any())
    heads = "head" in search.repairer.names
    oracle = RefitOracle(search.graph, search.data, search.unseen, heads, search.seed, may_empty,
                         sensitivity=search.repairer.sensitivity)
    oracle.settle(by_curves)
    widths = WidthSearch(curves, costs, limits, search.allowed, oracle, search.seed)
    trials = int(SEARCH_WORK / max(1, search.graph.macs(by_curves) * len(search.data)))
    pairs = len(curves) * (len(curves) - 1)
    trials = min(trials, MOST_TRIALS, TRIALS_PER_PAIR * pairs + (EMPTY_TRIALS if may_empty else 0))
    trials = search.scaled(max(trials, FEWEST_TRIALS))
    fits = widths.fits(costs.counts(plain))  # not where a latency limit was tightened since
    widths.judge(costs.counts(by_curves))
    if fits:
        widths.judge(costs.counts(plain))
    _choose_empty(search, widths, limits, int(PATTERN_SHARE * trials))
    spent = len(widths.seen)
    most = max(spent, int((PATTERN_SHARE + WIDTH_SHARE) * trials))
    first = widths.finalists(STARTS)
    for number, (counts, _) in enumerate(first, 1):
        widths.run(counts, spent + (most - spent) * number // len(first), search.goes_on)
    jury = Jury(search, oracle)
    pool = [widths.mask(k) for k, _ in widths.finalists(SEMIFINALISTS)] + ([plain] if fits else [])
    starts = jury.ranked(list(_by_emptied(costs, pool, oracle)))[:FINALISTS]
    streams = [stream.group for stream, _ in oracle.fit.streams]
    exchange = UnitExchange(widths, search.pinned, search.seed, streams, keep_empty=True)
    left = trials - len(widths.seen)
    paths = [[start] for start in starts]  # from every finalist over better and better masks
    while True:  # half of what is left goes to all that are left, then the worst one leaves
        share = left if len(paths) == 1 else left // (2 * len(paths))
        left -= share * len(paths)
        for path in paths:
            path += exchange.run(path[-1], share, search.goes_on)
        if len(paths) == 1:
            break
        ends = jury.ranked([path[-1] for path in paths])[:-1]
        paths = [path for path in paths if any(path[-1] is end for end in ends)]
    return jury.best([paths[0][0], *paths[0][1:][-JUDGED:]])


def as_candidate(search: Searcher, found: Recombination, kept: np.ndarray, dense: Quality) -> Candidate:
    """A mask that the search over networks ended with, measured; its bound is that of the curves' problem."""
    quality = search.truth(kept)
    stage = search.stage(found, dense, quality, None)
    if (kept != found.kept).any():
        predicted = float(search.refit_model.errors(kept).sum())
        stage = dataclasses.replace(stage, kept=frozen_array(kept, bool), objective=predicted, surrogate_drop=predicted)
    return Candidate(kept, quality, (stage,))


def _by_emptied(
    costs: CostModel, masks: list[np.ndarray], oracle: Callable[[np.ndarray], float]
) -> Iterator[np.ndarray]:
    """The best mask for each choice of emptied groups."""
    alike: dict[bytes, list[np.ndarray]] = {}
    for kept in masks:
        alike.setdefault((costs.counts(kept) == 0).tobytes(), []).append(kept)
    yield from (min(some, key=oracle) for some in alike.values())


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
    """The best widths by the curves when every group keeps a unit; ``None`` if limits or time leave no room."""
    fewest = np.maximum(search.fewest, np.minimum(search.min_keep, search.graph.costs.sizes))
    try:
        found = search.combine(refit_size_curves(search.refit_curves, fewest), objective="drop", budgets=limits)
    except (InfeasibleError, OutOfTime):  # out of time the best network so far counts, which the search still knows
        return None
    return search.graph.costs.counts(found.kept)
