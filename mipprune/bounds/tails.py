"""Tails of a weighted sum of independent coin tosses: Hoeffding, Bernstein and Chernoff."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import minimize_scalar

from ..errors import BudgetError

__all__ = ["TAILS", "bernstein", "probability", "sum_bound"]

TAILS = ("hoeffding", "bernstein", "chernoff", "best")


Number = TypeVar("Number", float, np.ndarray)


def probability(name: str, value: Any, least: str = "above") -> float:
    """``value`` as a number between 0 and 1.  ``least``: ``"above"`` 0 and below 1, or ``"keep"``: above 0, up to 1.

    Raises:
        BudgetError: anything else, by ``name``.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if least == "keep" and not (number and 0 < value <= 1):
        raise BudgetError(f"{name}: expected a probability above 0 and up to 1, got {value!r}")
    if least == "above" and not (number and 0 < value < 1):
        raise BudgetError(f"{name}: expected a probability between 0 and 1, got {value!r}")
    return float(value)


def bernstein(variance: Number, largest: Number, log_term: float) -> Number:
    """The t with ``t^2 / (2 variance + 2 largest t / 3) = log_term``; entry by entry for arrays."""
    a = largest * log_term / 3
    return a + np.sqrt(a * a + 2 * variance * log_term)


def sum_bound(c: np.ndarray, q: np.ndarray, delta: float, tail: str = "best") -> float:
    """T5: ``sum c_i z_i`` with independent ``z_i ~ Bernoulli(q_i)`` is at most this with probability 1 - ``delta``.

    ``hoeffding``: ``c.q + |c| sqrt(lg / 2)``, lg = log(1 / delta), linear in q.  ``bernstein``: ``c.q + c_max lg / 3 +
    sqrt((c_max lg / 3)^2 + 2 v lg)``, v = sum c_i^2 q_i (1 - q_i).  ``chernoff``: the least over s > 0 of ``(lg + sum
    log(1 + q_i (e^(s c_i) - 1))) / s`` (Markov's inequality for the exponential moment; every s gives a bound, so the
    search for the best needn't end at it).  ``best``: the least of the three and of ``sum c`` over ``q > 0``.

    Args:
        c: float64 (n,), at least 0; ``q``: float64 (n,), probabilities of removal.

    Raises:
        BudgetError: a delta outside (0, 1), an unknown tail.
    """
    delta = probability("delta", delta)
    if tail not in TAILS:
        raise BudgetError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
    lg, mean = math.log(1 / delta), float(c @ q)
    found = {
        "hoeffding": mean + float(np.linalg.norm(c)) * math.sqrt(lg / 2),
        "bernstein": mean + bernstein(float((c * c * q * (1 - q)).sum()), float(c.max(initial=0.0)), lg),
    }
    if tail in found:
        return found[tail]
    certain = float(c[q > 0].sum())
    largest = float(c.max(initial=0.0))
    found["chernoff"] = certain
    if largest > 0 and certain > 0:
        def exponent(log_s: float) -> float:
            s = math.exp(log_s)
            u = s * c
            # log(1 - q + q e^u) without overflow
            return float((lg + (u + np.log(q + (1 - q) * np.exp(-u)))[q > 0].sum()) / s)

        best = minimize_scalar(exponent, bounds=(math.log(1e-3 / largest), math.log(700 / largest)), method="bounded")
        found["chernoff"] = min(certain, float(best.fun))
    return found["chernoff"] if tail == "chernoff" else min(*found.values(), certain)
