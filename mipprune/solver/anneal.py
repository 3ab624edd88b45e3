"""Simulated annealing of one mask size on a convex quadratic, for more undecided units than a tree can take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["anneal"]

#: Exchanges drawn at once.
BATCH = 1024
#: First and last temperature, as fractions of the median diagonal of the curvature.
HOT, COLD = 0.1, 1e-3


def anneal(
    linear: np.ndarray,
    curvature: np.ndarray,
    z: np.ndarray,
    proposals: int,
    rng: np.random.Generator,
    goes_on: Callable[[], bool] = lambda: True,
) -> np.ndarray:
    """Exchanges by Metropolis' rule on ``linear @ z + 1/2 z @ curvature @ z``, the temperature falling geometrically.

    A chain that draws one exchange after another rejects nearly all of them once it is cold.  Here :data:`BATCH` are
    drawn and judged at once, the first that is accepted is made, and the draws after it are forgotten: they were
    judged against a mask that is no longer there.  That is the same chain, at O(BATCH + n) per accepted exchange or
    per batch without one.

    Args:
        z: bool, shape (n,), removed units; not changed.
        proposals: exchanges to judge.
        goes_on: asked before every batch; ``False`` ends the search.

    Returns:
        The best mask met, bool of shape (n,), as many removed.
    """
    z = z.copy()
    best, value, best_value = z.copy(), 0.0, 0.0  # values relative to the first mask
    out, back = np.flatnonzero(~z), np.flatnonzero(z)
    if len(out) == 0 or len(back) == 0 or proposals < 1:
        return best
    half = 0.5 * np.diag(curvature)
    scale = 2.0 * float(np.median(half)) or float(np.abs(linear).max(initial=0.0)) or 1.0
    gradient = linear + curvature @ z
    done = 0
    while done < proposals and goes_on():
        temperature = scale * HOT * (COLD / HOT) ** (done / proposals)
        first, second = rng.integers(len(out), size=BATCH), rng.integers(len(back), size=BATCH)
        i, j = out[first], back[second]
        change = gradient[i] + half[i] - gradient[j] + half[j] - curvature[i, j]
        accepted = change < temperature * rng.exponential(size=BATCH)
        at = int(accepted.argmax())
        if not accepted[at]:
            done += BATCH
            continue
        done += at + 1
        unit, other = int(i[at]), int(j[at])
        z[unit], z[other] = True, False
        out[first[at]], back[second[at]] = other, unit
        gradient += curvature[unit] - curvature[other]
        value += float(change[at])
        if value < best_value:
            best, best_value = z.copy(), value
    return best
