"""Formulations of others as linear MIPs, for ``benchmarks/solve.py``.  The first n columns are the kept units.

A further formulation (a ReLU network in the MIP, say) is one more function that returns a :class:`Peer`, and one more
``peer_row`` in ``solve.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from solve_cases import Layer

from mipprune.solver import LinearMip, MipBuilder

__all__ = ["Peer", "linearised_pairs", "margin_rows"]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A linear MIP, and its meaning without it.

    Attributes:
        mip: the program.
        samples: how many it looks at.
        counted: the objective is a number of units.
        objective, feasible: of a kept mask (bool, (n,)), evaluated without the program.
        surrogate: the function that the rankings of the baselines look at.
        size: the number of units to keep, or ``None`` when it is minimised.
    """

    mip: LinearMip
    samples: int
    counted: bool
    objective: Callable[[np.ndarray], float]
    feasible: Callable[[np.ndarray], bool]
    surrogate: Any
    size: int | None

    def ranked(self, order: np.ndarray) -> float:
        """The objective when units go in this order, as many as the requirement lets."""
        kept = np.ones(len(order), dtype=bool)
        if self.size is not None:
            kept[order[: len(order) - self.size]] = False
            return self.objective(kept)
        for unit in order:
            kept[unit] = False
            if not self.feasible(kept):
                kept[unit] = True
                break
        return self.objective(kept)


def margin_rows(layer: Layer, samples: int, wrong: float = 0.02) -> Peer:
    """Fewest units so that at most ``wrong`` of the samples that the head has right lose their positive margin.

    Per sample k and class j other than its own: ``sum_i (w_y - w_j)_i a_ki s_i + b_y - b_j >= -M_kj e_k`` with the
    smallest valid M_kj, ``e_k`` binary, ``sum e_k <= wrong N``.
    """
    head, n = layer.head, layer.n
    right = np.flatnonzero((head.activations @ head.weight.T + head.bias).argmax(1) == head.targets)[:samples]
    a, y = head.activations[right], head.targets[right]
    allowed = int(wrong * len(right))
    builder = MipBuilder()
    kept = builder.add_columns(n, cost=1.0, lower=0.0, upper=1.0, integer=True)
    missed = builder.add_columns(len(right), cost=0.0, lower=0.0, upper=1.0, integer=True)
    for k in range(len(right)):
        for j in range(len(head.bias)):
            if j == y[k]:
                continue
            row, shift = (head.weight[y[k]] - head.weight[j]) * a[k], head.bias[y[k]] - head.bias[j]
            big = max(0.0, -(float(np.minimum(row, 0.0).sum()) + shift))
            builder.add_row(np.append(kept, missed[k]), np.append(row, big), lower=-shift)
    builder.add_row(missed, np.ones(len(missed)), upper=float(allowed))

    def feasible(mask: np.ndarray) -> bool:
        logits = (a * mask) @ head.weight.T + head.bias
        own = logits[np.arange(len(y)), y]
        rest = logits.copy()
        rest[np.arange(len(y)), y] = -np.inf
        return int((own - rest.max(1) < -1e-7).sum()) <= allowed

    return Peer(builder.build(), len(right), True, lambda mask: float(mask.sum()), feasible, head, None)


def linearised_pairs(layer: Layer, keep: int) -> Peer:
    """``gates`` with a column ``p_ij`` for the product of every two removed units: a linear MIP of n(n+1)/2 columns."""
    gates, n = layer.gates, layer.n
    matrix, linear = gates.curvature, gates.gradient + 0.5 * np.diag(gates.curvature)
    first, second = np.triu_indices(n, 1)
    builder = MipBuilder()
    kept = builder.add_columns(n, cost=-linear, lower=0.0, upper=1.0, integer=True)  # z = 1 - kept
    builder.constant = float(linear.sum())
    pairs = builder.add_columns(len(first), cost=matrix[first, second], lower=0.0, upper=1.0)
    for column, i, j in zip(pairs, first, second, strict=True):
        if matrix[i, j] > 0:  # the product is at least z_i + z_j - 1
            builder.add_row(np.array([column, kept[i], kept[j]]), np.ones(3), lower=1.0)
        else:
            builder.add_row(np.array([column, kept[i]]), np.ones(2), upper=1.0)
            builder.add_row(np.array([column, kept[j]]), np.ones(2), upper=1.0)
    builder.add_row(kept, np.ones(n), upper=float(keep))
    return Peer(
        builder.build(), len(layer.head.targets), False, lambda mask: gates.drop(~mask),
        lambda mask: int(mask.sum()) <= keep, gates, keep,
    )
