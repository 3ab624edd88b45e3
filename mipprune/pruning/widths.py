"""Which kept counts a group may have, so that its layers' widths are multiples that the hardware likes."""

from __future__ import annotations

import math

import numpy as np

from ..graph import UnitGraph
from ..solver.curve import LADDER

__all__ = ["allowed_counts", "searched_counts"]


def allowed_counts(graph: UnitGraph, fewest: np.ndarray, multiple: int) -> tuple[np.ndarray, ...]:
    """Per group, the kept counts at which every width it makes is a multiple: int64, ascending.

    A unit that takes several entries of its tensors (a head) counts with all of them.  Keeping everything is always
    allowed, and the only choice of a group that is too small.

    Args:
        fewest: int64 (G,), fewest units to keep.
    """
    parameters = dict(graph.model.named_parameters(remove_duplicate=False))
    entries = np.full(graph.n_units, np.iinfo(np.int64).max)
    for (name, _), units in graph.unit_sites.items():
        if name in parameters and parameters[name].ndim > 1:
            found, times = np.unique(units[units >= 0], return_counts=True)
            entries[found] = np.minimum(entries[found], times)  # a flattened reader sees a channel more often
    out = []
    for group, least in zip(graph.groups, fewest.tolist(), strict=True):
        step = multiple // math.gcd(multiple, int(entries[group.offset]))
        counts = np.arange(step, group.size + 1, step)
        out.append(np.union1d(counts[counts >= least], [group.size]).astype(np.int64))
    return tuple(out)


def searched_counts(allowed: np.ndarray, most: int) -> np.ndarray:
    """The allowed counts up to ``most``; of many, an even spread with both ends."""
    counts = allowed[allowed <= most]
    if len(counts) <= LADDER:
        return counts
    return counts[np.linspace(0, len(counts) - 1, LADDER // 2 + 1).round().astype(np.int64)]
