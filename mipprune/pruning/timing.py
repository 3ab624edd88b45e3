"""A latency budget: the table before the search, the real networks after it, and another search where they disagree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch

from ..errors import InfeasibleError
from ..game import LabelledData
from ..graph import UnitGraph
from ..latency import LatencyComparison, LatencyTable, compare_latency, measure_latency
from ..latency.fit import FEMTOSECONDS
from .baseline import magnitude_mask
from .options import Budget, Latency
from .search import Candidate, Searcher

__all__ = ["LatencyCheck"]

#: Searches in all: the first, and repetitions under another limit.
ATTEMPTS = 4
#: The share of the budget that should be used.
NEAR = 0.97
#: Seconds spent on a table that wasn't given, and on each comparison of two networks.
MEASURING, COMPARING = 20.0, 2.0

Search = Callable[[dict[str, int]], tuple[Candidate, str]]


@dataclasses.dataclass(frozen=True)
class LatencyCheck:
    """The latency budget of one run, the samples that it is timed on, and what says how long every width takes."""

    budget: Latency
    inputs: tuple[torch.Tensor, ...]
    table: LatencyTable
    seed: int

    @classmethod
    def of(
        cls, budgets: Sequence[Budget], graph: UnitGraph, data: LabelledData, multiple: int, time_limit: float | None,
        seed: int, progress: bool,
    ) -> Self | None:
        """``None`` if no budget is a latency.  Samples are repeated where the data has fewer than a batch."""
        budget = next((b for b in budgets if isinstance(b, Latency)), None)
        if budget is None:
            return None
        table = budget.table
        if table is not None and not isinstance(table, LatencyTable):
            table = LatencyTable.load(Path(table))
        size = budget.batch_size if table is None else table.input_shapes[0][0]
        index = torch.arange(size) % len(data)
        inputs = tuple(x[index.to(x.device)] for x in data.inputs)
        if table is None:
            seconds = MEASURING if time_limit is None else min(MEASURING, time_limit / 4)
            table = measure_latency(graph, inputs, multiple=multiple, seconds=seconds, seed=seed, progress=progress)
        return cls(budget, inputs, table, seed)

    @property
    def dense(self) -> int:
        """The dense network's time in the table's unit, as measured: a fit may miss widths that run very well."""
        return round(float(self.table.total[0]) * FEMTOSECONDS)

    @property
    def limit(self) -> int:
        """The budget in the table's unit."""
        return math.floor(self.budget.ratio * self.dense)

    def enforce(
        self, search: Searcher, best: Candidate, termination: str, limits: dict[str, int], again: Search
    ) -> tuple[Candidate, str, LatencyComparison | None]:
        """Measure ``best``; while it is too slow, or needlessly fast, search again under another limit.

        Returns the candidate that meets the budget with the least loss, else the fastest one; why the last search
        stopped; and the candidate's timing, if Ctrl-C left one.
        """
        seen: list[tuple[Candidate, LatencyComparison]] = []
        try:
            seen.append((best, self._measure(search, best)))
            while len(seen) < ATTEMPTS and termination not in ("interrupted", "time_limit"):
                limit = self._next_limit([(self._table_cost(search, c), timing.ratio) for c, timing in seen])
                if limit is None:
                    break
                now = {**limits, "latency": limit}
                magnitude_mask(search.graph, now, search.pinned, search.min_keep, search.multiple)  # is any mask left?
                found, termination = again(now)
                seen.append((found, self._measure(search, found)))
        except InfeasibleError:  # nothing is faster by the table; the report shows what was reached
            pass
        except KeyboardInterrupt:
            termination = "interrupted"
        if not seen:
            return best, termination, None
        met = [pair for pair in seen if pair[1].ratio <= self.budget.ratio]
        winner = min(met, key=lambda p: p[0].quality.loss) if met else min(seen, key=lambda p: p[1].ratio)
        return winner[0], termination, winner[1]

    def _table_cost(self, search: Searcher, candidate: Candidate) -> int:
        return search.graph.costs.cost("latency", search.graph.costs.counts(candidate.kept))

    def _next_limit(self, seen: list[tuple[int, float]]) -> int | None:
        """The limit to search under next, given (table's cost, measured ratio) of what was found; ``None``: enough."""
        wanted = self.budget.ratio
        fast, slow = ([pair for pair in seen if (pair[1] <= wanted) == ok] for ok in (True, False))
        if not slow:  # raise the limit once where the table was too careful
            cost, ratio = seen[0]
            careful = ratio < NEAR * wanted and len(seen) == 1
            return math.floor(cost + (wanted - ratio) * self.dense) if careful else None
        if not fast:  # lower the limit by what the table was off at the fastest so far
            cost, ratio = min(slow, key=lambda pair: pair[1])
            return math.floor(cost - (ratio - wanted) * self.dense)
        (low, reached), (high, missed) = max(fast, key=lambda pair: pair[1]), min(slow, key=lambda pair: pair[1])
        if reached >= NEAR * wanted or high <= low:
            return None
        return math.floor(low + (high - low) * (wanted - reached) / (missed - reached))

    def _measure(self, search: Searcher, candidate: Candidate) -> LatencyComparison:
        small, _ = search.deployed(candidate.kept)
        return compare_latency(search.graph.model, small.eval(), self.inputs, seconds=COMPARING, seed=self.seed)
