"""Who has the last word on the networks that a search ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .oracle import MOST_MEMORY, RefitOracle
from .search import Searcher

__all__ = ["Jury"]


class Jury:
    """Judges the few networks that a search ends with on more data than the one split that led it.

    Of many networks the one that a split likes best owes part of that to the split.  Networks with the same groups
    emptied are compared by what led the search, mean over three splits: every sample's logits count, so that it is a
    sure measure of small differences.  But the divergence favours networks that imitate the dense one's whole
    depth over shallower ones that classify as well; between different emptied groups the labels decide: of validation
    data, if there are any, on which the network is judged as it would be delivered, or else of the three splits.
    Of 36 ways to pair six measures this was among the best two, by the accuracy of the networks picked (a small
    transformer, a residual network and a chain of convolutions, nine budgets, five seeds).

    Other splits keep the dense network's values on theirs, as the first one does; where these take more than
    MOST_MEMORY bytes, the first split judges alone.

    Args:
        search: its data and seed.
        lead: the split that led the search.
    """

    def __init__(self, search: Searcher, lead: RefitOracle) -> None:
        self._search, self._lead = search, lead
        self._large = lead.fit.memory() > MOST_MEMORY
        self._others: list[RefitOracle] = []
        self._whole: RefitOracle | None = None

    def best(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """The best of masks with the same groups emptied; by the search's own split alone when time is up."""
        splits = self._splits() if len(masks) > 1 and self._search.goes_on() else [self._lead]
        return min(masks, key=lambda kept: np.mean([split(kept) for split in splits]))

    def ranked(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Masks with different groups emptied, the best first; by the search's own split alone when time is up."""
        if len(masks) == 1:
            return list(masks)
        return sorted(masks, key=self._labels() if self._search.goes_on() else self._lead)

    def _splits(self) -> list[RefitOracle]:
        search, lead = self._search, self._lead
        if not self._others and not self._large:
            self._others = [
                RefitOracle(search.graph, search.data, search.unseen, lead.head, search.seed + k, lead.labels,
                            ridges=lead.ridges, sensitivity=lead.fit.sensitivity)
                for k in (1, 2)
            ]
        return [lead, *self._others]

    def _labels(self) -> Callable[[np.ndarray], float]:
        search = self._search
        if search.unseen is None or self._large:
            return lambda kept: float(np.mean([split.losses(kept).cross_entropy for split in self._splits()]))
        if self._whole is None:
            self._whole = RefitOracle(search.graph, search.data, search.unseen, self._lead.head, whole=True,
                                      sensitivity=self._lead.fit.sensitivity)
        whole = self._whole
        return lambda kept: whole.losses(kept).cross_entropy
