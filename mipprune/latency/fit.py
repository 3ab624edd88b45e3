"""From timings at a few widths to a cost of degree two in the kept counts, with its error.  Knows no torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.optimize

from ..costs import BilinearCost
from ..records import Record, frozen_array

__all__ = ["FEMTOSECONDS", "OpFit", "fit_operations", "latency_cost", "predict"]

#: Costs are integers.  A multiply-add of a large layer takes less than a picosecond on a GPU, so the unit is finer;
#: int64 holds two and a half hours of femtoseconds.
FEMTOSECONDS = 1e15


@dataclasses.dataclass(frozen=True, eq=False)
class OpFit(Record):
    """What one operation costs, in seconds: ``constant + sum linear k_g + sum products k_left k_right``, all >= 0.

    Attributes:
        groups: int64 (m,), the groups whose counts change the operation's shapes.
        linear: float64 (m,), seconds per unit of each.
        left, right: int64 (p,), group numbers of the products.
        products: float64 (p,), seconds per unit squared.
    """

    constant: float
    groups: np.ndarray
    linear: np.ndarray
    left: np.ndarray
    right: np.ndarray
    products: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Seconds at the rows of ``counts`` (D, G): float64 (D,)."""
        k = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        return self.constant + k[:, self.groups] @ self.linear + (k[:, self.left] * k[:, self.right]) @ self.products


def fit_operations(
    counts: np.ndarray, seconds: np.ndarray, groups: list[np.ndarray], pairs: np.ndarray
) -> tuple[OpFit, ...]:
    """Nonnegative least squares for every operation apart (Lawson and Hanson 1974).

    Nonnegative, because an operation doesn't get faster when it grows, and the search relies on that.

    Args:
        counts: int64 (D, G), kept counts of the networks timed.
        seconds: float64 (n_ops, D).
        groups: per operation, the groups that its shapes depend on.
        pairs: int64 (P, 2), the pairs of groups whose product may cost something; those of the multiply-adds.
    """
    scale = counts.max(0).astype(np.float64)
    out = []
    for times, own in zip(seconds, groups, strict=True):
        both = np.array([pair for pair in pairs.tolist() if set(pair) <= set(own.tolist())], dtype=np.int64)
        left, right = both.reshape(-1, 2).T
        k = counts / scale
        features = np.column_stack([np.ones(len(k)), k[:, own], k[:, left] * k[:, right]])
        x, _ = scipy.optimize.nnls(features, times)
        m = len(own)
        out.append(OpFit(
            float(x[0]), frozen_array(own, np.int64), frozen_array(x[1 : 1 + m] / scale[own]),
            frozen_array(left, np.int64), frozen_array(right, np.int64),
            frozen_array(x[1 + m :] / (scale[left] * scale[right])),
        ))
    return tuple(out)


def latency_cost(ops: tuple[OpFit, ...], share: float, overhead: float, n_groups: int) -> BilinearCost:
    """``overhead + share * sum of the operations``, in whole femtoseconds; a cost that adds up to below 0 starts at 0.

    Args:
        share: how much of the operations' own times shows in the network's; below 1 where they overlap.
        overhead: seconds beside them; negative where timing the operations apart made them slower.
    """
    linear = np.zeros(n_groups)
    products: dict[tuple[int, int], float] = {}
    constant = overhead + share * sum(op.constant for op in ops)
    for op in ops:
        np.add.at(linear, op.groups, share * op.linear)
        for g, h, value in zip(op.left.tolist(), op.right.tolist(), op.products.tolist()):
            if value:
                key = (min(g, h), max(g, h))
                products[key] = products.get(key, 0.0) + share * value
    whole = {key: round(value * FEMTOSECONDS) for key, value in sorted(products.items())}
    terms = np.array([(*key, value) for key, value in whole.items() if value], dtype=np.int64).reshape(-1, 3)
    return BilinearCost(
        constant=max(round(constant * FEMTOSECONDS), 0), linear=np.round(linear * FEMTOSECONDS).astype(np.int64),
        left=terms[:, 0], right=terms[:, 1], coefficient=terms[:, 2],
    )


def predict(cost: BilinearCost, counts: np.ndarray) -> np.ndarray:
    """Seconds at the rows of ``counts``: float64 (D,)."""
    return np.array([cost(row) for row in np.atleast_2d(counts)]) / FEMTOSECONDS
