"""The plain baseline that every result is shown beside, and the first incumbent: an equal share, by magnitude."""

from __future__ import annotations

import numpy as np

from ..costs import CostModel
from ..errors import InfeasibleError
from ..graph import CoarseUnit, UnitGraph
from .multiples import allowed_counts, least_counts, width_steps

__all__ = ["magnitude_mask", "unit_magnitudes"]


def unit_magnitudes(graph: UnitGraph) -> np.ndarray:
    """Euclidean norm of the weights that produce each unit, over all its producers: float64 (n_units,).

    Of a coarse unit, that of all weights of its modules.
    """
    tensors = dict(graph.model.named_parameters())
    if graph.coarse:
        return np.array([_norm_of(graph, unit) for unit in graph.coarse])
    square = np.zeros(graph.n_units + 1)
    for (name, dim), units in graph.unit_sites.items():
        if dim == 0 and name in tensors and tensors[name].ndim > 1:
            norms = (tensors[name].detach().double() ** 2).flatten(1).sum(1).cpu().numpy()
            np.add.at(square, units, norms)  # unit -1 (not prunable) lands in the extra last entry
    return np.sqrt(square[:-1])


def _norm_of(graph: UnitGraph, unit: CoarseUnit) -> float:
    modules = [graph.model.get_submodule(removal.module) for removal in unit.removals]
    weights = [p.detach().double() for m in modules for p in m.parameters() if p.ndim > 1]
    return float(np.sqrt(sum(float((w**2).sum()) for w in weights)))


def magnitude_mask(
    graph: UnitGraph, limits: dict[str, int], keep: np.ndarray, min_keep: int, multiple: int = 1
) -> np.ndarray:
    """Keep the same share of every group, largest weights first: the largest share that meets ``limits``.

    What rounding down leaves of the limits is used up, one unit at a time in the group of the smallest share.

    Args:
        limits: resource -> absolute limit.
        keep: bool (n_units,), units that must stay.
        multiple: kept widths are multiples of it, see :func:`~mipprune.pruning.multiples.width_steps`.

    Raises:
        InfeasibleError: even the smallest network allowed exceeds a limit.
    """
    costs = graph.costs
    steps = width_steps(graph, multiple)
    for floor in (np.minimum(min_keep, costs.sizes), least_counts(graph, min_keep)):
        allowed = allowed_counts(costs.sizes, np.maximum(costs.counts(keep), floor), steps)
        fewest = np.array([counts[0] for counts in allowed], dtype=np.int64)
        if _fits(costs, limits, fewest):
            break  # no group is emptied without need
    _refuse_impossible(costs, limits, fewest)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = all(costs.cost(r, _share(costs, middle, allowed)) <= limit for r, limit in limits.items())
        low, high = (middle, high) if fits else (low, middle)
    counts = costs.sizes if _fits(costs, limits, costs.sizes) else _share(costs, low, allowed)
    counts = _filled(costs, limits, counts, allowed)
    score = np.where(keep, np.inf, unit_magnitudes(graph))
    mask = np.zeros(graph.n_units, dtype=bool)
    for group, count in zip(graph.groups, counts, strict=True):
        order = np.argsort(-score[group.units], kind="stable")
        mask[group.offset + order[:count]] = True
    return mask


def _filled(
    costs: CostModel, limits: dict[str, int], counts: np.ndarray, allowed: tuple[np.ndarray, ...]
) -> np.ndarray:
    """The counts with what the limits still allow added, the group that lost most first."""
    counts = counts.copy()
    while True:
        for g in np.argsort(counts / costs.sizes, kind="stable"):
            more = counts.copy()
            more[g] = min(allowed[g][allowed[g] > counts[g]], default=counts[g])
            if more[g] > counts[g] and _fits(costs, limits, more):
                counts = more
                break
        else:
            return counts


def _share(costs: CostModel, share: float, allowed: tuple[np.ndarray, ...]) -> np.ndarray:
    """The largest allowed count up to this share of every group, or its smallest."""
    wanted = np.floor(share * costs.sizes)
    return np.array([c[max(np.searchsorted(c, w, side="right") - 1, 0)] for c, w in zip(allowed, wanted)])


def _fits(costs: CostModel, limits: dict[str, int], counts: np.ndarray) -> bool:
    return all(costs.cost(resource, counts) <= limit for resource, limit in limits.items())


def _refuse_impossible(costs: CostModel, limits: dict[str, int], fewest: np.ndarray) -> None:
    for resource, limit in limits.items():
        smallest = costs.cost(resource, fewest)
        if smallest > limit:
            dense = costs.cost(resource, costs.sizes)
            raise InfeasibleError(
                f"{resource} can't go below {smallest:,} ({smallest / dense:.1%} of the dense network) with the layers "
                f"that may be pruned, min_keep and multiple; the budget is {limit:,}. Raise the budget, lower min_keep "
                f"or multiple, or pin fewer layers",
                requirement=resource,
                nearest=smallest / dense,
            )
