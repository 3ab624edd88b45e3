"""Masks of every size with a small drop: greedy paths, exchanges to a local optimum, seeded kicks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["exchange", "greedy_paths", "kick", "screened_exchange"]


def greedy_paths(linear: np.ndarray, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two nested families of removal masks of ``linear @ z + 1/2 z @ curvature @ z``: bool, shape (n + 1, n) each.

    Row r removes r units.  The first family removes, from none on, the unit that raises the value least; the second
    starts from all and puts back the unit that lowers it most.  The gradient is updated by one row per step: O(n^2).
    """
    # in the kept units y = 1 - z the quadratic has the linear part -(linear + curvature 1) and the same curvature
    removed = _greedy(linear, curvature)
    added = _greedy(-(linear + curvature.sum(1)), curvature)
    return removed, ~added[::-1]


def _greedy(linear: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    n = len(linear)
    path = np.zeros((n + 1, n), dtype=bool)
    change = linear + 0.5 * np.diag(curvature)
    for r in range(n):
        unit = int(change.argmin())
        path[r + 1] = path[r]
        path[r + 1, unit] = True
        change += curvature[unit]
        change[unit] = np.inf
    return path


def exchange(
    linear: np.ndarray,
    curvature: np.ndarray,
    z: np.ndarray,
    max_swaps: int = 10_000,
    goes_on: Callable[[], bool] = lambda: True,
    group: np.ndarray | None = None,
) -> np.ndarray:
    """Swap one removed unit for one kept unit, the best pair each time, until no pair lowers the value.

    Removing i and putting j back changes the value by ``a_i + b_j - H_ij`` with ``a = grad + diag/2``,
    ``b = diag/2 - grad``.  By Cauchy-Schwarz ``H_ij <= sqrt(H_ii H_jj)``, which screens most units before the pairs
    are formed; what is left is O(n^2) per sweep, so the result is a true local optimum.

    Args:
        z: bool, shape (n,), removed units; not changed.
        goes_on: asked before every swap; ``False`` ends the search.
        group: int64, shape (n,): only units of the same group are swapped.

    Returns:
        bool, shape (n,), as many removed, of every group.
    """
    z = z.copy()
    half = 0.5 * np.diag(curvature)
    root = np.sqrt(np.maximum(2.0 * half, 0.0))
    gradient = linear + curvature @ z
    least = -1e-12 * max(float(np.abs(linear).max(initial=0.0)), float(half.max(initial=0.0)))
    for _ in range(max_swaps):
        out, back = np.flatnonzero(~z), np.flatnonzero(z)
        if len(out) == 0 or len(back) == 0 or not goes_on():
            break
        a, b = (gradient + half)[out], (half - gradient)[back]
        use = a + b.min() - root[out] * root[back].max() < least
        out, a = out[use], a[use]
        if len(out) == 0:
            break
        use = b + a.min() - root[back] * root[out].max() < least
        back, b = back[use], b[use]
        if len(back) == 0:
            break
        change = a[:, None] + b[None, :] - curvature[out[:, None], back]
        if group is not None:
            change[group[out][:, None] != group[back]] = np.inf
        best = int(change.argmin())
        if change.flat[best] >= least:
            break
        i, j = out[best // len(back)], back[best % len(back)]
        z[i], z[j] = True, False
        gradient += curvature[i] - curvature[j]
    return z


def kick(z: np.ndarray, gradient: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Swap ``strength`` random pairs, drawn among the units whose gradients lie closest to the other side's."""
    out, back = np.flatnonzero(~z), np.flatnonzero(z)
    strength = min(strength, len(out), len(back))
    near = max(4 * strength, 12)
    out = out[np.argsort(gradient[out], kind="stable")[:near]]
    back = back[np.argsort(-gradient[back], kind="stable")[:near]]
    z = z.copy()
    z[rng.choice(out, strength, replace=False)] = True
    z[rng.choice(back, strength, replace=False)] = False
    return z


def screened_exchange(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    values: Callable[[np.ndarray], np.ndarray],
    z: np.ndarray,
    *,
    width: int = 5,
    max_swaps: int = 20,
    goes_on: Callable[[], bool] = lambda: True,
) -> tuple[np.ndarray, float]:
    """Exchanges on any convex function: the ``width^2`` pairs that the gradient ranks first are evaluated exactly.

    The gradient alone can't judge a swap (it is a lower bound of the change), so a swap counts only when the exact
    value falls; the result is a local optimum among the screened pairs, not among all.

    Returns:
        The removal mask (bool, shape (n,)) and its value.
    """
    z = z.copy()
    value, gradient = value_and_gradient(z.astype(np.float64))
    for _ in range(max_swaps):
        out, back = np.flatnonzero(~z), np.flatnonzero(z)
        out = out[np.argsort(gradient[out], kind="stable")[:width]]
        back = back[np.argsort(-gradient[back], kind="stable")[:width]]
        pairs = [(i, j) for i in out for j in back]
        if not pairs or not goes_on():
            break
        trials = np.repeat(z[None].astype(np.float64), len(pairs), axis=0)
        rows = np.arange(len(pairs))
        trials[rows, [i for i, _ in pairs]] = 1.0
        trials[rows, [j for _, j in pairs]] = 0.0
        found = values(trials)
        best = int(found.argmin())
        if found[best] >= value - 1e-12 * max(1e-12, abs(value)):
            break
        z = trials[best].astype(bool)
        value, gradient = value_and_gradient(trials[best])
    return z, float(value)
