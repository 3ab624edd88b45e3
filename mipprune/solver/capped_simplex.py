"""Masks of one size with fractions allowed, ``{z in [0, 1]^n : sum z = r}``: projection and tangent bounds."""

from __future__ import annotations

import numpy as np

__all__ = ["project_capped_simplex", "tangent_bounds"]


def project_capped_simplex(y: np.ndarray, total: float) -> np.ndarray:
    """Nearest point to ``y`` (shape (n,)) of ``{z in [0, 1]^n : sum z = total}``, Euclidean.  O(n log n), exact.

    Our derivation: by the optimality conditions ``z = clip(y - t, 0, 1)``, whose sum falls in t, piecewise linearly
    with breaks at ``y`` and ``y - 1``; the right piece is found among the sorted breaks and solved for t.

    Raises:
        ValueError: ``total`` lies outside [0, n].
    """
    n = len(y)
    if not 0 <= total <= n:
        raise ValueError(f"no point of [0, 1]^{n} has the sum {total}")
    low, high = np.sort(y - 1.0), np.sort(y)
    breaks = np.sort(np.concatenate([low, high]))
    # sum of clip(y - t, 0, 1) = sum max(y - t, 0) - sum max(y - 1 - t, 0), each from sorted prefix sums
    sums = _excess(high, breaks) - _excess(low, breaks)
    at = int(np.searchsorted(-sums, -total, side="right"))  # sums[at - 1] >= total > sums[at]
    if at == 0:
        return np.ones(n)
    if at == len(breaks):
        return np.zeros(n)
    left, right = breaks[at - 1], breaks[at]
    fall = sums[at - 1] - sums[at]
    t = left if fall <= 0 else left + (right - left) * (sums[at - 1] - total) / fall
    return np.clip(y - t, 0.0, 1.0)


def _excess(ascending: np.ndarray, t: np.ndarray) -> np.ndarray:
    """``sum_i max(ascending_i - t, 0)`` for every ``t``."""
    tail = np.concatenate([np.cumsum(ascending[::-1])[::-1], [0.0]])
    first = np.searchsorted(ascending, t, side="right")
    return tail[first] - t * (len(ascending) - first)


def tangent_bounds(value: float, gradient: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Lower bounds of a convex function on every cardinality at once, from one of its tangents: shape (n + 1,).

    Entry r bounds the function on ``{w in [0, 1]^n : sum w = r}``: a tangent lies below the function, and its least
    value there takes the r smallest entries of the gradient.  ``z`` may be any point, inside or not.  O(n log n).
    """
    bounds = np.empty(len(gradient) + 1)
    bounds[0] = 0.0
    np.cumsum(np.sort(gradient), out=bounds[1:])
    bounds += value - float(gradient @ z)
    return bounds
