"""Good tangent points before the first linear program: minimisers of the smooth Lagrangian over the box of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import minimize

from .problem import Problem

__all__ = ["smooth_points"]

#: Most prices that are tried, and steps of the quasi-Newton method per price.
PRICES, STEPS = 16, 80
#: Prices are known well enough when they differ by less than this factor.
RESOLUTION = 1.02


def smooth_points(problem: Problem, kept: np.ndarray, goes_on: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Minimisers of ``drop(z) - price * saved(z)`` over the box, for prices that close in on the right one.

    ``saved`` is linear: what every unit saves of the objective (or of the budgets) next to the mask ``kept``.  The
    right price spends ``max_drop``, or the budgets, exactly; there a single tangent at the minimiser gives the bound of
    the whole convex relaxation, as its linearisation is minimal at the same point.  Found by bisection with L-BFGS-B,
    each price starting from the last point.  Yields float64 vectors (n,), the best last; heuristic, nothing relies on
    them.
    """
    surrogate = problem.surrogate
    low, high = problem.remove.astype(float), 1.0 - problem.keep
    saved = _savings(problem, kept)
    if surrogate.is_linear or not saved.any() or (problem.objective != "drop" and problem.max_drop is None):
        return
    target = float(saved @ ~kept)  # about what the budgets ask for
    below, above, price = 0.0, np.inf, _first_price(problem, kept, saved)
    z = (~kept).astype(float)
    bounds = np.stack([low, high], axis=1)
    for _ in range(PRICES):
        if not goes_on():
            return
        found = minimize(
            _lagrangian(problem, saved, price), z, jac=True, bounds=bounds, method="L-BFGS-B",
            options={"maxiter": STEPS, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20},
        )
        z = np.clip(found.x, low, high)
        if problem.objective == "drop":
            enough = float(saved @ z) >= target
        else:
            enough = surrogate.drop(z) > problem.drop_limit
        yield z
        below, above = (below, price) if enough else (price, above)
        if below > 0 and above / below < RESOLUTION:
            return
        price = price * 4.0 if np.isinf(above) else (0.25 * above if below == 0 else float(np.sqrt(below * above)))


def _lagrangian(
    problem: Problem, saved: np.ndarray, price: float
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    def value_and_gradient(z: np.ndarray) -> tuple[float, np.ndarray]:
        drop, gradient = problem.surrogate.drop_and_gradient(z)
        return (drop / price - float(saved @ z)), gradient / price - saved

    return value_and_gradient


def _savings(problem: Problem, kept: np.ndarray) -> np.ndarray:
    """What the removal of each unit saves of the objective, or of the budgets as fractions, next to ``kept``."""
    counts = problem.costs.counts(kept)
    names = list(problem.budgets) if problem.objective == "drop" else [problem.objective]
    total = np.zeros(len(counts))
    for name in names:
        cost = problem.costs[name]
        now = cost(counts)
        for group in range(len(counts)):
            step = np.zeros(len(counts), dtype=np.int64)
            step[group] = 1 if counts[group] == 0 else -1
            total[group] += abs(cost(counts + step) - now) / max(1.0, abs(problem.budgets.get(name, 1.0)))
    return total[problem.costs.group_of_unit]


def _first_price(problem: Problem, kept: np.ndarray, saved: np.ndarray) -> float:
    """The drop per saving of a typical unit at the incumbent."""
    slope = np.abs(problem.surrogate.drop_and_gradient((~kept).astype(float))[1])
    used = saved > 0
    return max(float(np.median(slope[used] / saved[used])), 1e-12)
