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

#: Searches in all: the first, and repetitions under a tightened limit.
ATTEMPTS = 3
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
        """Measure ``best``; while it is too slow, search again under a limit lowered by what the table was off.

        Returns the fastest candidate seen (the first that meets the budget ends it), why the last search stopped, and
        the candidate's timing, if Ctrl-C left one.
        """
        reached = None
        try:
            reached = self._measure(search, best)
            for _ in range(ATTEMPTS - 1):
                if reached.ratio <= self.budget.ratio or termination in ("interrupted", "time_limit"):
                    break
                limits = {**limits, "latency": self._tighter(search, best, reached)}
                magnitude_mask(search.graph, limits, search.pinned, search.min_keep, search.multiple)  # is any left?
                found, termination = again(limits)
                timing = self._measure(search, found)
                if timing.ratio < reached.ratio:
                    best, reached = found, timing
        except InfeasibleError:  # nothing is faster by the table; the report shows what was reached
            pass
        except KeyboardInterrupt:
            termination = "interrupted"
        return best, termination, reached

    def _tighter(self, search: Searcher, best: Candidate, reached: LatencyComparison) -> int:
        """The limit that ``best`` would have had to meet, had the table been off as much."""
        used = search.graph.costs.cost("latency", search.graph.costs.counts(best.kept))
        return math.floor(used - (reached.ratio - self.budget.ratio) * self.dense)

    def _measure(self, search: Searcher, candidate: Candidate) -> LatencyComparison:
        small, _ = search.deployed(candidate.kept)
        return compare_latency(search.graph.model, small.eval(), self.inputs, seconds=COMPARING, seed=self.seed)
