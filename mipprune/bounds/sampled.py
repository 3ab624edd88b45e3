"""A bound for random masks from masks that were drawn: no norms, and a confidence instead of a proof."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom
from torch import nn

from ..errors import BudgetError
from ..game import as_data
from ..graph import UnitGraph
from ..records import frozen_array
from .gap import GapBound, keep_probabilities, network_and_data
from .tails import probability
from .validate import measured_gaps, measured_weight_gaps
from .weights import WeightMasks

__all__ = ["order_statistic", "sampled_pruning"]


def sampled_pruning(
    model: nn.Module | UnitGraph, data: Any, *, keep: float | np.ndarray, delta: float = 0.05, what: str = "neurons",
    confidence: float = 0.99, n_masks: int | None = None, seed: int = 0,
) -> GapBound:
    """Bound for random masks as in :func:`random_pruning`, read off the gaps of ``n_masks`` masks that are drawn here.

    With probability ``confidence`` over this draw, the gap of another random mask is at most the bound with probability
    1 - ``delta``: each sample's, their root mean square, and the largest of them, each by itself.  Distribution-free
    (the tolerance limits of Wilks 1941, see :func:`order_statistic`), and near the true quantile at any depth, where T5
    and T6 are proved and loose.  It says nothing about masks that were chosen.

    Args:
        model, data, keep, what: as in :func:`random_pruning`.
        n_masks: masks to draw, by default four times the fewest that are enough; ``n_masks`` times N forward passes.
        seed: of the masks.

    Raises:
        BudgetError: arguments out of range, or fewer masks than ``delta`` and ``confidence`` ask for.
        TraceError, DataError: as :func:`random_pruning`.
    """
    delta, confidence = probability("delta", delta), probability("confidence", confidence)
    fewest = math.ceil(math.log(1 - confidence) / math.log(1 - delta))
    n = 4 * fewest if n_masks is None else n_masks
    if not isinstance(n, int) or n < fewest:
        raise BudgetError(f"n_masks: delta={delta} at confidence {confidence} takes at least {fewest} masks, got {n!r}")
    rng = np.random.default_rng(seed)
    if what == "neurons":
        graph, _, _ = network_and_data(model, data)
        p = keep_probabilities(keep, graph.n_units)
        gaps = measured_gaps(graph, as_data(data, graph).inputs[0], rng.random((n, graph.n_units)) < p)
    elif what == "weights":
        share, found = probability("keep", keep, "keep"), WeightMasks(model, data)
        drawn = (
            {name: np.where(rng.random(w.shape) < share, w, 0.0) / share for name, w in found.weights.items()}
            for _ in range(n)
        )
        gaps = measured_weight_gaps(found.graph, as_data(data, found.graph).inputs[0], drawn)
    else:
        raise BudgetError(f"what must be 'neurons' or 'weights', got {what!r}")
    place = order_statistic(n, delta, confidence) - 1
    rms, worst = np.sqrt((gaps**2).mean(1)), gaps.max(1)
    return GapBound("sampled", frozen_array(np.sort(gaps, 0)[place]), float(np.sort(rms)[place]),
                    float(np.sort(worst)[place]), {}, delta)


def order_statistic(n: int, delta: float, confidence: float) -> int:
    """The least j for which the j-th smallest of n independent draws is, with probability ``confidence``, exceeded by
    another draw with probability at most ``delta``.

    It is below the (1 - delta)-quantile only if j draws are, and each is with probability at most 1 - delta: so with
    probability at most ``P(Binomial(n, 1 - delta) >= j)``, for any distribution.
    """
    places = np.arange(1, n + 1)
    return int(places[binom.sf(places - 1, n, 1 - delta) <= 1 - confidence][0])
