"""The plain baseline that every result is shown beside, and the first incumbent: an equal share, by magnitude."""

from __future__ import annotations

import numpy as np

from ..costs import CostModel
from ..errors import InfeasibleError
from ..graph import UnitGraph

__all__ = ["magnitude_mask", "unit_magnitudes"]


def unit_magnitudes(graph: UnitGraph) -> np.ndarray:
    """Euclidean norm of the weights that produce each unit, over all its producers: float64 (n_units,)."""
    tensors = dict(graph.model.named_parameters())
    square = np.zeros(graph.n_units + 1)
    for (name, dim), units in graph.unit_sites.items():
        if dim == 0 and name in tensors and tensors[name].ndim > 1:
            norms = (tensors[name].detach().double() ** 2).flatten(1).sum(1).cpu().numpy()
            np.add.at(square, units, norms)  # unit -1 (not prunable) lands in the extra last entry
    return np.sqrt(square[:-1])


def magnitude_mask(
    graph: UnitGraph, limits: dict[str, int], keep: np.ndarray, min_keep: int
) -> np.ndarray:
    """Keep the same share of every group, largest weights first: the largest share that meets ``limits``.

    What rounding down leaves of the limits is used up, one unit at a time in the group of the smallest share.

    Args:
        limits: resource -> absolute limit.
        keep: bool (n_units,), units that must stay.

    Raises:
        InfeasibleError: even the smallest network allowed exceeds a limit.
    """
    costs = graph.costs
    fewest = np.maximum(costs.counts(keep), np.minimum(min_keep, costs.sizes))
    _refuse_impossible(costs, limits, fewest)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = all(costs.cost(r, _share(costs, middle, fewest)) <= limit for r, limit in limits.items())
        low, high = (middle, high) if fits else (low, middle)
    counts = costs.sizes if _fits(costs, limits, costs.sizes) else _share(costs, low, fewest)
    counts = _filled(costs, limits, counts)
    score = np.where(keep, np.inf, unit_magnitudes(graph))
    mask = np.zeros(graph.n_units, dtype=bool)
    for group, count in zip(graph.groups, counts, strict=True):
        order = np.argsort(-score[group.units], kind="stable")
        mask[group.offset + order[:count]] = True
    return mask


def _filled(costs: CostModel, limits: dict[str, int], counts: np.ndarray) -> np.ndarray:
    counts = counts.copy()
    while True:
        for g in np.argsort(counts / costs.sizes, kind="stable"):
            counts[g] += 1
            if counts[g] <= costs.sizes[g] and _fits(costs, limits, counts):
                break
            counts[g] -= 1
        else:
            return counts


def _share(costs: CostModel, share: float, fewest: np.ndarray) -> np.ndarray:
    return np.maximum(np.floor(share * costs.sizes).astype(np.int64), fewest)


def _fits(costs: CostModel, limits: dict[str, int], counts: np.ndarray) -> bool:
    return all(costs.cost(resource, counts) <= limit for resource, limit in limits.items())


def _refuse_impossible(costs: CostModel, limits: dict[str, int], fewest: np.ndarray) -> None:
    for resource, limit in limits.items():
        smallest = costs.cost(resource, fewest)
        if smallest > limit:
            dense = costs.cost(resource, costs.sizes)
            raise InfeasibleError(
                f"{resource} can't go below {smallest:,} ({smallest / dense:.1%} of the dense network) with the layers "
                f"that may be pruned and min_keep; the budget is {limit:,}. Raise the budget, lower min_keep, or pin "
                f"fewer layers",
                requirement=resource,
                nearest=smallest / dense,
            )
