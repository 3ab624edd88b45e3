"""Relaxation of any convex function under cardinalities, by projected gradients, with a bound at every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from .capped_simplex import project_capped_simplex, tangent_bounds

__all__ = ["descend_convex", "relax_convex"]

ValueAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]
Project = Callable[[np.ndarray], np.ndarray]
TangentBound = Callable[[float, np.ndarray, np.ndarray], float]


def relax_convex(
    value_and_gradient: ValueAndGradient,
    start: np.ndarray,
    total: int,
    bounds: np.ndarray,
    *,
    tolerance: float,
    limit: float | None = None,
    max_steps: int = 200,
    goes_on: Callable[[], bool] = lambda: True,
) -> np.ndarray:
    """Minimise a convex function over ``{0 <= z <= 1, sum z = total}``: spectral projected gradients.

    Every gradient also gives a tangent, and the tangent bounds *every* cardinality, so ``bounds`` rises at sizes other
    than ``total`` too.

    Args:
        start: float64, shape (n,); projected onto the set first.
        bounds: float64, shape (n + 1,), best lower bound so far per number of removed units; raised in place.
        tolerance: absolute; stop when the value is this close to ``bounds[total]``.
        limit: stop, too, when it is known on which side of it the minimum lies.
        goes_on: asked before every evaluation.

    Returns:
        The best point, float64 of shape (n,).
    """

    def bound(value: float, gradient: np.ndarray, z: np.ndarray) -> float:
        np.maximum(bounds, tangent_bounds(value, gradient, z), out=bounds)
        return float(bounds[total])

    return descend_convex(
        value_and_gradient, start, lambda y: project_capped_simplex(y, total), bound, tolerance=tolerance, limit=limit,
        max_steps=max_steps, goes_on=goes_on,
    )


def descend_convex(
    value_and_gradient: ValueAndGradient,
    start: np.ndarray,
    project: Project,
    tangent_bound: TangentBound,
    *,
    tolerance: float,
    limit: float | None = None,
    max_steps: int = 200,
    goes_on: Callable[[], bool] = lambda: True,
) -> np.ndarray:
    """Minimise a convex function over a convex set: spectral projected gradients (Birgin, Martinez, Raydan 2000).

    Steps go to the projection of ``z - t grad`` with Barzilai and Borwein's length t, and are shortened until the
    value falls below the largest of the last eight.

    Args:
        start: float64, shape (n,); projected onto the set first.
        project: nearest point of the set.
        tangent_bound: is told value, gradient and point of every tangent, and answers the best lower bound so far.
        tolerance, limit, max_steps, goes_on: as in :func:`relax_convex`.

    Returns:
        The best point, float64 of shape (n,).
    """
    z = project(start)
    value, gradient = value_and_gradient(z)
    bound = tangent_bound(value, gradient, z)
    best, best_value = z, value
    recent: deque[float] = deque([value], maxlen=8)
    spread = float(np.abs(project(z - gradient) - z).max())
    length = 1.0 / spread if spread > 0 else 1.0
    for _ in range(max_steps):
        if best_value - bound <= tolerance:
            break
        if limit is not None and (best_value <= limit or bound > limit):
            break
        direction = project(z - length * gradient) - z
        slope = float(gradient @ direction)
        if slope >= 0:  # no descent left in float64
            break
        fraction = 1.0
        while goes_on():
            trial = z + fraction * direction
            trial_value, trial_gradient = value_and_gradient(trial)
            bound = tangent_bound(trial_value, trial_gradient, trial)
            if trial_value <= max(recent) + 1e-4 * fraction * slope or fraction < 1e-8:
                break
            # minimum of the parabola through both values and the slope, kept within a tenth and a half
            curve = 2.0 * (trial_value - value - fraction * slope)
            fraction *= min(max(-slope * fraction / curve, 0.1), 0.5) if curve > 0 else 0.5
        else:
            break
        step, turn = trial - z, trial_gradient - gradient
        z, value, gradient = trial, trial_value, trial_gradient
        recent.append(value)
        if value < best_value:
            best, best_value = z, value
        curvature = float(step @ turn)
        length = min(max(float(step @ step) / curvature, 1e-10), 1e10) if curvature > 0 else 1e10
    return best
