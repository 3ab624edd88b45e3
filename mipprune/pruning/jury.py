"""Who has the last word on the networks that a search ends with."""

from __future__ import annotations

import numpy as np

from .oracle import RefitOracle
from .search import Searcher

__all__ = ["Jury"]


class Jury:
    """Judges the few networks that the search ends with on data that didn't lead it.

    Of many networks the one that some data like best owes part of that to the data.  With validation data, networks are
    fitted to all the calibration data, as the one that is delivered will be, and judged by the validation's labels;
    without, on other splits than the search's.  Measured: on small transformers and residual networks labels
    of a few hundred fresh samples choose better between networks of different emptied groups than any mixture with the
    divergence.
    """

    def __init__(self, search: Searcher, heads: bool) -> None:
        self._search, self._heads = search, heads
        self._judges: list[RefitOracle] = []
        self._known: dict[bytes, float] = {}

    def __call__(self, kept: np.ndarray) -> float:
        """Cross-entropy, mean over the judges."""
        key = kept.tobytes()
        if key not in self._known:
            search = self._search
            if not self._judges and search.unseen is not None:
                self._judges = [
                    RefitOracle(search.graph, search.data, search.unseen, self._heads, labels=1, whole=True)
                ]
            elif not self._judges:
                self._judges = [RefitOracle(search.graph, search.data, None, self._heads, search.seed + k, labels=1)
                                for k in (1, 2)]
            self._known[key] = float(np.mean([judge(kept) for judge in self._judges]))
        return self._known[key]

    def ranked(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """The best first; as they are when time is up."""
        if len(masks) == 1 or not self._search.goes_on():
            return masks
        return sorted(masks, key=self)
