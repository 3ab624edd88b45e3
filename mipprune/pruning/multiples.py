"""Which kept counts a group may have, so that its layers' widths are multiples that the hardware likes."""

from __future__ import annotations

import math

import numpy as np

from ..graph import UnitGraph
from ..solver.curve import LADDER

__all__ = ["allowed_counts", "least_counts", "searched_counts", "width_steps"]


def width_steps(graph: UnitGraph, multiple: int) -> np.ndarray:
    """Per group, the kept counts at which every width it makes is a multiple are multiples of this: int64 (G,).

    A unit that takes several entries of its tensors (a head) counts with all of them.
    """
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    entries = np.full(graph.n_units, np.iinfo(np.int64).max)
    for (name, _), units in graph.unit_sites.items():
        if name in parameters and parameters[name].ndim > 1:
            found, times = np.unique(units[units >= 0], return_counts=True)
            entries[found] = np.minimum(entries[found], times)  # a flattened reader sees a channel more often
    first = [int(entries[group.offset]) for group in graph.groups]
    return np.array([multiple // math.gcd(multiple, each) for each in first], dtype=np.int64)


def least_counts(graph: UnitGraph, min_keep: int) -> np.ndarray:
    """Fewest units of every group, int64 (G,): ``min_keep``, or 0 where :func:`mipprune.allow_empty` said so."""
    may_empty = np.array([group.fewest == 0 for group in graph.groups], dtype=bool)
    return np.where(may_empty, 0, np.minimum(min_keep, graph.costs.sizes))


def allowed_counts(sizes: np.ndarray, fewest: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per group, the multiples of its step from ``fewest`` on, and its whole size: int64, ascending.

    Keeping everything is always allowed, and the only choice of a group that is too small.
    """
    out = []
    for size, least, step in zip(sizes.tolist(), fewest.tolist(), steps.tolist(), strict=True):
        counts = np.arange(0, size + 1, step)
        out.append(np.union1d(counts[counts >= least], [size]).astype(np.int64))
    return tuple(out)


def searched_counts(allowed: np.ndarray, most: int) -> np.ndarray:
    """The allowed counts up to ``most``; of many, an even spread with both ends."""
    counts = allowed[allowed <= most]
    if len(counts) <= LADDER:
        return counts
    return counts[np.linspace(0, len(counts) - 1, LADDER // 2 + 1).round().astype(np.int64)]
